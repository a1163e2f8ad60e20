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
    total = size[0] * size[1]
    outside = (runs < 0) | (runs > total)  # told apart from the sum, which could wrap around
    if outside.any() or int(runs.sum(dtype=np.uint64)) != total:
        raise ValueError(f"run lengths do not fill a mask of {size[0]} × {size[1]}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size[::-1]).T


def runs_from_text(text: str | bytes) -> np.ndarray:
    """(R,) int64 run lengths from COCO's compressed form; not checked for filling any mask.

    A number is written as groups of five bits, the lowest first, each as the character 48 + group, plus 32 where
    another follows; bit 4 of the last group is the sign. From the fourth on, it is the difference to the run two
    before it (so inside is told by inside, outside by outside).

    Raises:
        ValueError: a character that none of these is, or a number that does not end or is too long.
    """
    data = text.encode("ascii") if isinstance(text, str) else text
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    last = codes & 32 == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("no compressed run lengths")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff([*starts, len(codes)])
    if lengths.max() > 7:
        raise ValueError("a run of over 2³⁴ pixels")
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[last] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
