"""Which classes are frequent and which are rare: pairs of class groups from a YAML file.

    groups: {kitchen: [teapot, ice cream]}      own groups of classes, where wanted
    pairs: {home_zoo: {inliers: [kitchen], outliers: [animal]}}

A member of a pair is an own group, a group of the data set (CIFAR-100's superclasses, WordNet's in tiny-imagenet), or a
class; looked up in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenekd.config import read_config
from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.teachers.uri import nearest

SHIPPED = Path(__file__).parent / "pairs"


@dataclass(frozen=True)
class Pair:
    """Classes by their numbers, in the order in which the file names them; the two lists share none."""

    name: str
    inliers: tuple[int, ...]
    outliers: tuple[int, ...]


def read_pair(source: str, name: str, dataset: Dataset) -> Pair:
    """The pair ``name`` of a file, or of a shipped one (``cifar100``, ``tiny_imagenet``, ``scenes``).

    Raises:
        UserError: no such file or pair, a member that the data set does not have, or a class on both sides.
    """
    path = _find(source)
    tree = read_config(path)
    pairs, groups = (tree.get(key) if isinstance(tree, dict) else None for key in ("pairs", "groups"))
    if not isinstance(pairs, dict) or not pairs or not isinstance(groups or {}, dict):
        raise UserError(f"{path}: holds no pairs; write pairs: {{NAME: {{inliers: […], outliers: […]}}}}")
    if name not in pairs:
        known = ", ".join(nearest(name, map(str, pairs)))
        raise UserError(f"STREAM.PAIR: {path} has no pair {name!r}; choose one of {known}")
    sides = {}
    for side in ("inliers", "outliers"):
        members = pairs[name].get(side) if isinstance(pairs[name], dict) else None
        if not isinstance(members, list) or not members:
            raise UserError(f"{path}: pair {name} names no {side}; give a list of groups or classes")
        sides[side] = _classes(members, groups or {}, dataset, f"{path}: pair {name}")
    both = [dataset.classes[c] for c in sides["inliers"] if c in sides["outliers"]]
    if both:
        raise UserError(f"{path}: pair {name}: {', '.join(both)} among inliers and outliers; keep one")
    return Pair(name, **sides)


def _find(source: str) -> Path:
    shipped = SHIPPED / f"{source}.yaml"
    if Path(source).suffix or not shipped.is_file():
        if not Path(source).is_file():
            names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
            raise UserError(f"STREAM.PAIRS: {source}: no such file; give a YAML of pairs, or {names}")
        return Path(source)
    return shipped


def _classes(members: Sequence[Any], groups: dict[str, Any], dataset: Dataset, where: str) -> tuple[int, ...]:
    """The numbers of the members' classes, each once."""
    places = {name: place for place, name in enumerate(dataset.classes)}
    found: list[int] = []
    for member in map(str, members):
        own = groups.get(member)
        if isinstance(own, list):
            names = [str(one) for one in own]
        else:
            grouped = (c for c, g in zip(dataset.classes, dataset.groups) if g == member)
            names = list(grouped) or [member]
        for name in names:
            if name not in places:
                known = nearest(name, {*dataset.classes, *dataset.groups}, 5)
                raise UserError(
                    f"{where}: {dataset.name} has no group or class {name!r}; nearest: {', '.join(known)}"
                )
            found.append(places[name])
    return tuple(dict.fromkeys(found))
