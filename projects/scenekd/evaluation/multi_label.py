"""Multi-label classification: the average precision of each class over the images, and its mean.

AP = Σ_n (R_n − R_{n−1}) P_n over the distinct scores, falling: images of equal score are one step, so that constant
scores give exactly the share of images that show the class. There is neither interpolation nor an envelope, as in
scikit-learn's ``average_precision_score``.

Shape shorthand: C: classes; I: images; b: resamples; S: statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .arrays import class_logits, defined_mean
from .image_records import ImageRecords
from .statistics import bootstrap_interval


class Shown(NamedTuple):
    """One image: its scores (C,) and what it shows (C,): 1, 0, or below 0 where that does not count."""

    scores: np.ndarray
    presence: np.ndarray


class MultiLabelRecords(ImageRecords[Shown]):
    """The network's word on which classes every image shows.

    Args:
        classes: C names.
    """

    def add(self, image_id: str, scores: np.ndarray | Tensor, presence: np.ndarray) -> None:
        """Record one image; an image that is there already is left as it is.

        Args:
            scores: (C,) finite, higher where a class is likelier shown.
            presence: (C,) as in :mod:`scenekd.data.presence`.

        Raises:
            ValueError: not C finite scores, or C numbers of presence.
        """
        if image_id in self._records:
            return
        logits = class_logits(scores, len(self.classes))
        if not np.isfinite(logits).all():
            raise ValueError("class_scores are not finite")
        if np.shape(presence) != logits.shape:
            raise ValueError(f"presence is {np.shape(presence)}, there are {len(self.classes)} classes")
        self._records[image_id] = Shown(logits, np.asarray(presence))

    def summary(self, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """In percent: ``mAP``, the mean over the classes that some image shows; ``chance``, what constant scores would
        have; ``AP-<name>`` (NaN: no image shows it); and ``images``, their number.

        Args:
            bootstrap: resamples of the images for the 95 % intervals ``<key>_interval`` = [low, high]; 0: none.
        """
        statistic = _Statistic(self._sorted(), len(self.classes))
        keys = ["mAP", "chance", *(f"AP-{name}" for name in self.classes)]
        values = statistic(np.ones((1, len(self))))[0]
        result: dict[str, Any] = {key: 100 * float(value) for key, value in zip(keys, values)}
        if bootstrap:
            bounds = bootstrap_interval(statistic, len(self), resamples=bootstrap, seed=seed)
            rows = zip(keys, *bounds)
            result |= {f"{key}_interval": [100 * float(low), 100 * float(high)] for key, low, high in rows}
        return result | {"images": len(self)}


class _Statistic:
    """Weights of the images (b, I) → the statistics (b, 2 + C) in 0…1: mean AP, mean share of images, AP by class."""

    def __init__(self, records: Sequence[Shown], num_classes: int) -> None:
        scores = np.stack([record.scores for record in records])
        presence = np.stack([record.presence for record in records])
        self._classes = []
        for k in range(num_classes):
            counted = np.flatnonzero(presence[:, k] >= 0)
            order = counted[np.argsort(-scores[counted, k], kind="stable")]
            ranked = scores[order, k]
            ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(order) else order
            self._classes.append((order, presence[order, k] == 1, ends))

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        weights = weights.astype(np.float64)
        columns = np.stack([_average_precision(weights, *own) for own in self._classes], axis=1)
        shares = np.stack([_share(weights, *own[:2]) for own in self._classes], axis=1)
        means = [defined_mean(columns), defined_mean(np.where(np.isnan(columns), np.nan, shares))]
        return np.concatenate([np.stack(means, axis=1), columns], axis=1)


def _average_precision(
    weights: np.ndarray, order: np.ndarray, positive: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """(b,) AP of one class, NaN where no image shows it.

    Args:
        weights: (b, I). order: images by falling score. positive: (of those) which show the class.
        ends: the last place of each run of equal scores.
    """
    ranked = weights[:, order]
    found = np.cumsum(ranked * positive, axis=1)[:, ends]
    seen = np.cumsum(ranked, axis=1)[:, ends]
    if not len(ends):
        return np.full(len(weights), np.nan)
    gained = np.diff(found, axis=1, prepend=0.0)
    total = found[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        # a run of images that a resample lacks has found nothing new
        return np.where(gained > 0, gained * found / seen, 0.0).sum(axis=1) / np.where(
            total > 0, total, np.nan
        )


def _share(weights: np.ndarray, order: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(b,) share of the counted images that show a class."""
    ranked = weights[:, order]
    with np.errstate(invalid="ignore"):
        return (ranked * positive).sum(axis=1) / ranked.sum(axis=1)
