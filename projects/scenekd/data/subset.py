"""A fixed share of the images, chosen by id: the same for every epoch, worker, engine and list order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def stable_subset(image_ids: Iterable[str], fraction: float, seed: int, salt: str = "") -> set[str]:
    """Exactly round(n · fraction) of the n different ids: those whose hash of (seed, salt, id) ranks lowest.

    A smaller fraction's subset lies inside a larger one's. ``salt`` makes choices with one seed independent.

    Raises:
        ValueError: ``fraction`` outside 0…1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must lie in 0…1, got {fraction}")
    ranked = _ranked(image_ids, seed, salt)
    return set(ranked[: round(len(ranked) * fraction)])


def subset_of_classes(
    labels: Mapping[str, int], seed: int, *, fraction: float = 1.0, number: int | None = None, salt: str = ""
) -> set[str]:
    """Of each class the images that :func:`stable_subset` would take of it alone, or the first ``number`` of its
    ranking (all of a class that has fewer).

    Args:
        labels: image id → class.

    Raises:
        ValueError: ``fraction`` outside 0…1.
    """
    by_class: dict[int, list[str]] = {}
    for image_id, label in labels.items():
        by_class.setdefault(label, []).append(image_id)
    parts = (
        stable_subset(ids, fraction, seed, salt) if number is None else _ranked(ids, seed, salt)[:number]
        for ids in by_class.values()
    )
    return set[str]().union(*parts)


def _ranked(image_ids: Iterable[str], seed: int, salt: str) -> list[str]:
    return sorted(set(image_ids), key=lambda i: hashlib.sha256(f"{seed}/{salt}/{i}".encode()).digest())
