"""Top-n accuracy by the true class's rank, with ties broken at random in expectation.

Shape shorthand: N: cases; C: classes.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .arrays import to_numpy


def top_n_accuracy(scores: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> np.ndarray:
    """The share of cases whose true class ranks among the first n, for every n.

    With g classes scored above the true one and t others scored equal, random tie-breaking puts the true
    class at each of the ranks g + 1 … g + t + 1 with the same probability; the expectation is returned.
    Constant scores therefore give n / C.

    Args:
        scores: (N, C) finite; larger is better.
        labels: (N,) whole numbers in 0…C−1.

    Returns:
        (C,) float64; entry n − 1 is the top-n accuracy in 0…1, the last entry is 1.

    Raises:
        ValueError: no cases, shapes that disagree, a score that is not finite, a label out of range.
    """
    # Equal pairs are counted first, so that constant scores give n / C without rounding.
    pairs, counts = np.unique(true_ranks(scores, labels), axis=0, return_counts=True)
    num_cases, num_classes = to_numpy(scores).shape
    return (counts / num_cases) @ chances_within(pairs, num_classes)


def true_ranks(scores: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> np.ndarray:
    """(N, 2) int64: how many classes are scored above the true one, and how many equal to it, itself counted.

    Args and errors: as of :func:`top_n_accuracy`.
    """
    values, truth = to_numpy(scores), to_numpy(labels)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise ValueError(f"scores (N, C) and labels (N,) disagree: {values.shape}, {truth.shape}")
    if not values.size:
        raise ValueError("top-n accuracy needs at least one case and one class")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    num_classes = values.shape[1]
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= num_classes:
        raise ValueError(f"labels must be whole numbers in 0…{num_classes - 1}")
    true_scores = np.take_along_axis(values, truth[:, None].astype(np.int64), axis=1)
    above = (values > true_scores).sum(axis=1)
    tied = (values == true_scores).sum(axis=1)
    return np.stack([above, tied], axis=1)


def chances_within(ranks: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, C): entry n − 1 is the chance that the true class is among the first n, ties broken at random.

    Args:
        ranks: (N, 2), see :func:`true_ranks`.
    """
    first_n = np.arange(1, num_classes + 1)
    return np.clip((first_n - ranks[:, :1]) / ranks[:, 1:], 0, 1)
