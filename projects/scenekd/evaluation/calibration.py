"""Expected calibration error: how far confidence is from the share of what is right.

Guo et al., On Calibration of Modern Neural Networks, 2017, section 2: with the predictions sorted into B bins of
equal width by their confidence, ECE = Σ_b n_b / n · |right_b − confidence_b|, where right_b is the share of
right predictions in the bin and confidence_b their mean confidence.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .arrays import to_numpy

BINS = 15


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence, int64 in 0…B − 1: [0, 1/B), [1/B, 2/B), … the last with 1.

    Raises:
        ValueError: a confidence outside 0…1.
    """
    if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1):
        raise ValueError("confidences must lie in 0…1")
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


class CalibrationBins:
    """Sums over predictions in bins of their confidence, see :func:`bin_of`.

    Args:
        bins: B.
    """

    def __init__(self, bins: int = BINS) -> None:
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        self.count = np.zeros(bins, np.int64)
        self.confidence = np.zeros(bins)
        self.right = np.zeros(bins)

    def add(self, confidence: Any, right: Any) -> None:
        """Count predictions.

        Args:
            confidence: (N,) in 0…1. right: (N,) bool.
        """
        confidence, right = to_numpy(confidence).reshape(-1), to_numpy(right).reshape(-1)
        if confidence.shape != right.shape:
            raise ValueError(f"{len(confidence)} confidences for {len(right)} predictions")
        bins = len(self.count)
        place = bin_of(confidence, bins)
        self.count += np.bincount(place, minlength=bins)
        self.confidence += np.bincount(place, confidence, minlength=bins)
        self.right += np.bincount(place, right, minlength=bins)

    def error(self) -> float:
        """ECE in 0…1; NaN where nothing was counted."""
        total = int(self.count.sum())
        return float(np.abs(self.right - self.confidence).sum() / total) if total else math.nan
