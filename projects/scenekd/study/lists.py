"""A view of a VOC-layout folder with image lists of its own, beside those that are there.

Images and labels are links, so nothing is copied, and the source stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.subset import stable_subset
from ..data.voc_layout import find_voc_folder, read_list
from ..errors import UserError
from ..files import write_text

_LISTS = "ImageSets"


def link_with_lists(source: Path, folder: Path, lists: Sequence[Mapping[str, Any]]) -> None:
    """Make ``folder``, or bring it up to date.

    Args:
        source: a VOCdevkit or a VOC-layout folder.
        lists: ``{name, take, without, share, seed, optional}`` each, in an order in which those that are named
            come first: the ids of the list ``take`` (as ``Segmentation/train``) that are not in ``without``, or the
            share of them whose ids hash lowest. ``optional`` lists are left out where ``take`` is missing.

    Raises:
        UserError: no such folder or list, or ``folder`` shows another source.
    """
    source = find_voc_folder(str(source), "2012" if (source / "VOC2012").is_dir() else None).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(source.iterdir()):
        if part.name != _LISTS:
            link(part, folder / part.name)
    for path in sorted((source / _LISTS).glob("*/*.txt")):
        link(path, folder / _LISTS / path.parent.name / path.name)
    for entry in lists:
        _write_list(folder / _LISTS, entry)


def link(target: Path, place: Path) -> None:
    """Make ``place`` a link to ``target``.

    Raises:
        UserError: something else is there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink() and place.readlink() == target:
        return
    if place.exists() or place.is_symlink():
        raise UserError(f"{place}: is there already, and is no link to {target}; delete {place.parent}")
    place.symlink_to(target)


def _write_list(sets: Path, entry: Mapping[str, Any]) -> None:
    path = sets / f"{entry['take']}.txt"
    if not path.is_file():
        if entry.get("optional"):
            return
        raise UserError(f"{path}: no such list")
    ids = read_list(path)
    if "share" in entry:
        chosen = stable_subset(ids, float(entry["share"]), int(entry.get("seed", 0)), salt="study")
        ids = [image_id for image_id in ids if image_id in chosen]
    if "without" in entry:
        out = set(read_list(sets / f"{entry['without']}.txt"))
        ids = [image_id for image_id in ids if image_id not in out]
    if not ids:
        raise UserError(f"{sets / entry['name']}.txt: would be empty")
    write_text(sets / f"{entry['name']}.txt", "\n".join(ids) + "\n")
