"""A mask as run lengths: how many pixels, column by column, are outside, then inside, then outside, …

It is the form of COCO's uncompressed RLE, so pycocotools reads it as it stands. It is decoded here, because
pycocotools does not check that the runs fill the mask, and what a cache holds is not to be trusted.
"""

from __future__ import annotations

import numpy as np


def encode_runs(mask: np.ndarray) -> np.ndarray:
    """(R,) uint32 run lengths of an (H, W) bool mask; they sum to H · W, and the first may be 0."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0, 0] if flat.size and flat[0] else [0]
    return np.diff(np.concatenate([start, edges, [flat.size]])).astype(np.uint32)


def decode_runs(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The (H, W) bool mask; a ValueError where the runs do not fill it."""
    if int(runs.sum(dtype=np.uint64)) != size[0] * size[1]:
        raise ValueError(f"run lengths do not fill a mask of {size[0]} × {size[1]}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size[::-1]).T
