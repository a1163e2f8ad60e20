"""Classification: accuracy, its mean over classes, top-5, calibration; one record an image.

Shape shorthand: C: classes; I: images; b: resamples; S: statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from torch import Tensor

from .arrays import class_logits, defined_mean, group_matrix
from .calibration import BINS, bin_of
from .image_records import ImageRecords
from .ranking import top_n_accuracy
from .statistics import bootstrap_interval

TOP = 5


class Scored(NamedTuple):
    """One image: its class, the likeliest class by the network and that one's probability, and whether its class is
    among the first five (0…1: ties count by chance)."""

    label: int
    predicted: int
    confidence: float
    top5: float


class ClassificationRecords(ImageRecords[Scored]):
    """The label and the network's word on every image.

    Args:
        classes: C names.
    """

    def add(self, image_id: str, scores: np.ndarray | Tensor, label: int) -> None:
        """Record one image; an image that is there already is left as it is.

        Args:
            scores: (C,) finite logits; their softmax is the confidence.

        Raises:
            ValueError: not C finite scores, or a label outside 0…C−1.
        """
        if image_id in self._records:
            return
        logits = class_logits(scores, len(self.classes))
        top = top_n_accuracy(logits[None], np.array([label]))
        confidence = min(float(softmax(logits).max()), 1.0)
        self._records[image_id] = Scored(
            int(label), int(logits.argmax()), confidence, float(top[min(TOP, len(top)) - 1])
        )

    def summary(self, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """Percentages: accuracy, top5 (with more than five classes), balanced_accuracy (mean over the classes that
        have images), ECE (:mod:`.calibration`, 15 bins of the likeliest class's probability), and per class
        ``ACC-<name>``, its share of images that are right (NaN: it has none).

        Args:
            bootstrap: resamples of the images for the 95 % intervals ``<key>_interval`` = [low, high]; 0: none.
        """
        statistic = _Statistic(self._sorted(), len(self.classes))
        keys = ["accuracy", "top5", "balanced_accuracy", "ECE", *(f"ACC-{name}" for name in self.classes)]
        wanted = [i for i, key in enumerate(keys) if key != "top5" or len(self.classes) > TOP]
        values = statistic(np.ones((1, len(self))))[0]
        result: dict[str, Any] = {keys[i]: 100 * float(values[i]) for i in wanted}
        if bootstrap:
            low, high = bootstrap_interval(statistic, len(self), resamples=bootstrap, seed=seed)
            result |= {f"{keys[i]}_interval": [100 * float(low[i]), 100 * float(high[i])] for i in wanted}
        return result


class _Statistic:
    """Weights of the images (b, I) → the statistics (b, 4 + C) in 0…1: accuracy, top-5, balanced accuracy, ECE, and
    the accuracy of each class."""

    def __init__(self, records: Sequence[Scored], num_classes: int) -> None:
        label, predicted, confidence, self._top5 = (np.array(column) for column in zip(*records))
        self._right = (label == predicted).astype(np.float64)
        self._gap = self._right - confidence
        self._by_class = group_matrix(label, num_classes)
        self._by_bin = group_matrix(bin_of(confidence), BINS)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        weights = weights.astype(np.float64)
        total = weights.sum(axis=1)
        with np.errstate(invalid="ignore"):
            of_class = (self._by_class @ (weights * self._right).T).T / (self._by_class @ weights.T).T
        columns = (
            weights @ self._right / total,
            weights @ self._top5 / total,
            defined_mean(of_class),
            np.abs(self._by_bin @ (weights * self._gap).T).sum(axis=0) / total,
        )
        return np.concatenate([np.stack(columns, axis=1), of_class], axis=1)
