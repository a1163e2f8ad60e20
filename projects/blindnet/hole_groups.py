"""Several regions of one picture hidden at once: which of them together, and what training hides beside an object.

N: regions; G: groups; P: cells of a grid over the picture; H, W: the picture.
"""

from __future__ import annotations

import numpy as np

from scenekd.data.holes import areas, draw_hole, extents

_SWEEPS = 3  # over all regions, each of which may change its group
_BESIDE = 0.5  # of a box's sides: how far a place beside it is shifted at most
_CELLS = 48  # along a side of the grid on which areas are measured


def group_holes(holes: np.ndarray, weights: np.ndarray, groups: int) -> np.ndarray:
    """Which regions to hide together, so that each loses as little as possible of what it could have seen.

    A region that is hidden with others loses what they cover beyond it. With W_g the summed weight of a group and |U_g|
    the area that it covers, all lose Σ_g W_g |U_g|, up to a constant: regions that overlap belong together, and those
    that weigh much among few. Regions are placed one by one, the heaviest first, and then moved while that helps.

    Args:
        holes: (N, H, W) bool. weights: (N,) ≥ 0. groups: G ≥ 1.

    Returns:
        (N,) int64 in 0…G−1; with N ≤ G each has its own.

    Raises:
        ValueError: no group, or another number of weights.
    """
    if groups < 1 or weights.shape != (len(holes),):
        raise ValueError(f"{groups} groups for {len(holes)} regions with weights {weights.shape}")
    if len(holes) <= groups:
        return np.arange(len(holes))
    step = max(1, max(holes.shape[1:]) // _CELLS)
    cells = holes[:, ::step, ::step].reshape(len(holes), -1)
    weights = weights + 1e-3  # what weighs nothing still costs its group's others nothing more than it must
    counts = np.zeros((groups, cells.shape[1]), np.int64)
    total, place = np.zeros(groups), np.full(len(holes), -1)
    order = np.argsort(-weights, kind="stable")
    for _ in range(1 + _SWEEPS):
        before = place.copy()
        for i in order:
            if place[i] >= 0:
                counts[place[i]] -= cells[i]
                total[place[i]] -= weights[i]
            covered = counts > 0
            old = covered.sum(axis=1)
            new = (covered | cells[i]).sum(axis=1)
            place[i] = int(np.argmin((total + weights[i]) * new - total * old))
            counts[place[i]] += cells[i]
            total[place[i]] += weights[i]
        if (place == before).all():
            break
    return place


def also_hidden(
    boxes: np.ndarray,
    place: int,
    shape: str,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    most: int,
    margin: int = 0,
) -> np.ndarray | None:
    """Up to ``most`` further regions to hide with an object, (H, W) bool, or None for none: each is, as likely, another
    object, a place beside the hidden one, or any place of any object's size, as the detections of a picture are.

    Args:
        boxes: (N, 4). place: the hidden object. shape, margin: as in :func:`scenekd.data.holes.extents`; a segment's
            neighbours are boxes. size: (H, W).
    """
    count = int(rng.integers(0, most + 1)) if most else 0
    if not count:
        return None
    shape = "box" if shape == "segment" else shape
    others = np.delete(boxes, place, axis=0)
    hidden = np.zeros(size, bool)
    for _ in range(count):
        kind = int(rng.integers(0, 3))
        sides = boxes[rng.integers(0, len(boxes))]
        if kind == 0 and len(others):
            box = others[rng.integers(0, len(others))]
        elif kind == 1:
            box = boxes[place]
            box = box + np.tile(rng.uniform(-_BESIDE, _BESIDE, 2) * (box[2:] - box[:2]), 2)
        else:
            wide, high = sides[2:] - sides[:2]
            x, y = rng.uniform(0, 1, 2) * np.maximum([size[1] - wide, size[0] - high], 0)
            box = np.array([x, y, x + wide, y + high])
        if areas(extents(box[None], shape, size, margin))[0]:
            hidden |= draw_hole(box, shape, size, rng, margin=margin)
    return hidden
