"""How well a score tells outliers from inliers.

Conventions are OpenOOD's (Yang et al., NeurIPS 2022; version 1.5): a score is higher for what is more unfamiliar, and
the **outlier is the positive side** of AUROC, AUPR-out and FPR95; AUPR-in turns both around. The areas under the
precision-recall curves are trapezoids between the points of all thresholds, begun at recall 0 with precision 1, no
average precision. Samples of one score are told apart by no threshold, so they enter together: in the AUROC a tied
pair counts ½.

The papers on outlier scores (Hendrycks and Gimpel, ICLR 2017; Liang et al., ICLR 2018; Lee et al., NeurIPS 2018) have
the inlier as positive side of FPR95: it is here, too, as ``fpr95_inlier``, and it is this one that a threshold fitted
on inliers alone meets (:func:`scenekd.outliers.fit_threshold`).

Shape shorthand: N: samples; K: distinct scores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .arrays import to_numpy

TPR = 0.95


@dataclass(frozen=True)
class OutlierMetrics:
    """All in 0…1.

    Attributes:
        auroc: chance that an outlier scores above an inlier, ties half.
        aupr_in, aupr_out: area under precision and recall with inliers, with outliers as the positive side.
        fpr95: share of inliers taken for outliers where 95 % of the outliers are found.
        fpr95_inlier: share of outliers taken for inliers where 95 % of the inliers are kept.
        detection_error: smallest mean of the two errors over all thresholds (both sides equally frequent).
    """

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95: float
    fpr95_inlier: float
    detection_error: float

    def percentages(self) -> dict[str, float]:
        """Name → value in 0…100."""
        return {name: 100 * value for name, value in asdict(self).items()}


def outlier_metrics(inliers: Any, outliers: Any) -> OutlierMetrics:
    """All metrics of one score.

    Args:
        inliers, outliers: (N,) finite scores of either side, higher = more unfamiliar; arrays or tensors.

    Raises:
        ValueError: a side is empty, not one-dimensional, or holds a score that is not finite.
    """
    low, high = _side("inlier", inliers), _side("outlier", outliers)
    found, false = _roc(low, high)
    kept, passed = _roc(-high, -low)
    num_in, num_out = len(low), len(high)
    return OutlierMetrics(
        auroc=float(np.trapezoid(found, false)),
        aupr_in=_area_of_precision(kept * num_in, passed * num_out),
        aupr_out=_area_of_precision(found * num_out, false * num_in),
        fpr95=_false_at(found, false),
        fpr95_inlier=_false_at(kept, passed),
        detection_error=float(((1 - found) + false).min() / 2),
    )


def _side(name: str, scores: Any) -> np.ndarray:
    values = to_numpy(scores)
    if values.ndim != 1 or not len(values):
        raise ValueError(
            f"{name} scores must be one number for each of at least one sample, got {values.shape}"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name} scores must be finite; {bad} of {len(values)} are not")
    return values


def _roc(negatives: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K + 1,) shares of positives and of negatives at or above each threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([negatives, positives]))[::-1]
    # Those at or above t: in ascending order of −score, those up to −t.
    found, false = (
        np.searchsorted(np.sort(-side), -thresholds, side="right") / len(side)
        for side in (positives, negatives)
    )
    return np.concatenate([[0.0], found]), np.concatenate([[0.0], false])


def _false_at(found: np.ndarray, false: np.ndarray) -> float:
    """The false share at the first threshold that finds 95 %."""
    return float(false[np.argmax(found >= TPR)])


def _area_of_precision(found: np.ndarray, false: np.ndarray) -> float:
    """Trapezoids under precision over recall, from the counts found and false at each threshold."""
    taken = found + false
    precision = np.concatenate([[1.0], found[1:] / taken[1:]])
    return float(np.trapezoid(precision, found / found[-1]))
