"""A fixed share of the images, chosen by id: the same for every epoch, worker, engine and list order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def stable_subset(image_ids: Iterable[str], fraction: float, seed: int, salt: str = "") -> set[str]:
    """Exactly round(n · fraction) of the n different ids: those whose hash of (seed, salt, id) ranks lowest.

    A smaller fraction's subset lies inside a larger one's. ``salt`` makes choices with one seed independent.

    Raises:
        ValueError: ``fraction`` outside 0…1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must lie in 0…1, got {fraction}")
    unique = set(image_ids)
    ranked = sorted(unique, key=lambda i: hashlib.sha256(f"{seed}/{salt}/{i}".encode()).digest())
    return set(ranked[: round(len(unique) * fraction)])
