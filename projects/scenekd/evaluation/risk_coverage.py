"""Risk against coverage: how often a student is wrong on the share of samples that it keeps for itself.

Samples are answered from the most familiar on; what is beyond is handed on. The area under the curve (AURC) is the mean
of the selective risk over all coverages (Geifman, Uziel and El-Yaniv, ICLR 2019).

Shape shorthand: N: samples; K: distinct scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import to_numpy


@dataclass(frozen=True)
class RiskCoverage:
    """A curve; samples of one score are answered together, or not.

    Attributes:
        coverage: (K,) shares of samples answered, rising to 1. risk: (K,) shares of these that are wrong.
        threshold: (K,) the highest score among these.
        aurc: mean risk of the first n samples over n = 1…N, ties in expectation over their order, in 0…1.
        best_aurc: that of a score that puts all that is wrong last.
    """

    coverage: np.ndarray
    risk: np.ndarray
    threshold: np.ndarray
    aurc: float
    best_aurc: float

    def coverage_at(self, risk: float) -> float:
        """The largest coverage whose risk is at most ``risk`` (in 0…1); 0 where there is none."""
        within = self.coverage[self.risk <= risk]
        return float(within.max()) if len(within) else 0.0

    def threshold_at(self, risk: float, highest: float = math.inf) -> float:
        """The largest threshold up to ``highest`` with a risk of at most ``risk``; minus infinity: there is none."""
        within = self.threshold[(self.risk <= risk) & (self.threshold <= highest)]
        return float(within.max()) if len(within) else -math.inf


def risk_coverage(scores: Any, wrong: Any) -> RiskCoverage:
    """The curve of a score.

    Args:
        scores: (N,) finite, higher = more unfamiliar. wrong: (N,) bool, whether the student's answer is wrong.

    Raises:
        ValueError: no samples, lengths that differ, or a score that is not finite.
    """
    score, fault = to_numpy(scores).astype(np.float64), to_numpy(wrong).astype(np.float64)
    if score.ndim != 1 or not len(score) or fault.shape != score.shape:
        raise ValueError(f"scores and wrong must be (N,) with N > 0, got {score.shape} and {fault.shape}")
    if not np.isfinite(score).all():
        raise ValueError("scores must be finite")
    threshold, place = np.unique(score, return_inverse=True)
    count = np.bincount(place)
    answered, faults = count.cumsum(), np.bincount(place, fault).cumsum()
    # Within a tie every next sample is wrong with the tie's own share.
    expected = np.repeat(np.bincount(place, fault) / count, count).cumsum()
    return RiskCoverage(
        answered / len(score),
        faults / answered,
        threshold,
        _mean_risk(expected),
        _mean_risk(np.sort(fault).cumsum()),
    )


def _mean_risk(faults: np.ndarray) -> float:
    """Mean over n of the share of faults among the first n, of their cumulative number (N,)."""
    return float((faults / np.arange(1, len(faults) + 1)).mean())
