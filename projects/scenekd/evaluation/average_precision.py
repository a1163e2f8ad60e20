"""VOC's average precision from matched detections, for many IoU thresholds and image weights.

Shape shorthand: D: detections; T: IoU thresholds; C: classes; I: images; B: resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .matching_voc import Matches

# VOC2007's eleven recall levels, as the public evaluators compute them: 3 · 0.1 is a hair above 0.3, so that
# a recall of exactly 3/10 does not reach the fourth level there.
VOC07_LEVELS = np.arange(11) * 0.1

# Detections × resamples handled at once: bounds the memory of the bootstrap.
_CELLS_AT_ONCE = 2_000_000


class PrecisionRecall:
    """Detections sorted by falling score within their class (stable), ready for any threshold.

    ``order`` (D,) int64 are their places in ``matches``.
    """

    def __init__(self, matches: Matches, num_classes: int) -> None:
        by_score = np.argsort(-matches.scores, kind="stable")
        # numpy's stable sort counts where integers are short, and merges where they are long.
        labels = matches.labels[by_score].astype(np.min_scalar_type(num_classes))
        self.order = by_score[np.argsort(labels, kind="stable")]
        self._class_starts = np.searchsorted(matches.labels[self.order], np.arange(num_classes + 1))
        self._overlap, self._truth = matches.overlap[self.order], matches.truth[self.order]
        self._image = matches.image[self.order]
        self._difficult = matches.truth_difficult
        countable = ~matches.truth_difficult
        self._truth_image = matches.truth_image[countable]
        self._truth_labels = matches.truth_labels[countable]
        self.positives = np.bincount(self._truth_labels, minlength=num_classes)
        self.num_classes = num_classes

    def flags(self, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """(D,) bool each, in sorted order: true positive, and counted (true or false positive)."""
        hit = np.flatnonzero(self._overlap > iou_threshold)
        truth = self._truth[hit]
        on_difficult = self._difficult[truth]
        counted = np.ones(len(self.order), bool)
        counted[hit[on_difficult]] = False
        hit, truth = hit[~on_difficult], truth[~on_difficult]
        # The best-scored detection claims the box: written back to front, the first is what stays.
        claimed = np.full(len(self._difficult), -1, np.int64)
        claimed[truth[::-1]] = hit[::-1]
        positive = np.zeros(len(self.order), bool)
        positive[claimed[claimed >= 0]] = True
        return positive, counted

    def average_precision(
        self, iou_thresholds: Sequence[float], *, use_07_metric: bool = False
    ) -> np.ndarray:
        """(T, C) float64 in 0…1; NaN for a class without countable ground truth."""
        result = np.full((len(iou_thresholds), self.num_classes), np.nan)
        levels = VOC07_LEVELS if use_07_metric else None
        for t, threshold in enumerate(iou_thresholds):
            positive, counted = self.flags(threshold)
            for k in np.flatnonzero(self.positives):
                part = slice(self._class_starts[k], self._class_starts[k + 1])
                hits = np.flatnonzero(positive[part])
                found = np.arange(1, len(hits) + 1)
                precision = found / np.cumsum(counted[part])[hits]
                result[t, k] = average(precision, found, self.positives[k], levels)
        return result

    def weighted_average_precision(
        self, weights: np.ndarray, iou_threshold: float, *, use_07_metric: bool = False
    ) -> np.ndarray:
        """AP where every image, with its detections and boxes, stands as often as its weight says.

        Copies of one image follow each other in the ranking; the precision envelope over a run of true
        positives is that of its end, so a run counts as one step of recall.

        Args:
            weights: (B, I) whole numbers ≥ 0.

        Returns:
            (B, C), NaN for a class without countable ground truth in that resample.
        """
        result = np.full((len(weights), self.num_classes), np.nan)
        positive, counted = self.flags(iou_threshold)
        levels = VOC07_LEVELS if use_07_metric else None
        for k in np.flatnonzero(self.positives):
            part = slice(self._class_starts[k], self._class_starts[k + 1])
            truth_images = self._truth_image[self._truth_labels == k]
            result[:, k] = weighted_ap(
                positive[part], counted[part], self._image[part], truth_images, weights, levels
            )
        return result


def weighted_ap(
    positive: np.ndarray,
    counted: np.ndarray,
    image: np.ndarray,
    truth_images: np.ndarray,
    weights: np.ndarray,
    levels: np.ndarray | None,
) -> np.ndarray:
    """AP of one class under image weights.

    Args:
        positive, counted: (D,) bool, by falling score: true positive; true or false positive.
        image: (D,) of each detection.
        truth_images: (P,) image of each countable box.
        weights: (B, I) whole numbers ≥ 0.
        levels: recall levels, see :func:`average`.

    Returns:
        (B,), NaN where the resample holds no countable box.
    """
    hits = np.flatnonzero(positive)
    # What comes after the last true positive changes nothing.
    used = np.flatnonzero(counted[: hits[-1] + 1]) if len(hits) else hits
    images, is_hit = image[used], positive[used]
    result = np.full(len(weights), np.nan)
    chunk = max(1, _CELLS_AT_ONCE // max(len(used), len(truth_images), 1))
    for start in range(0, len(weights), chunk):
        # Images first, so that picking a detection's weights copies a row.
        drawn = np.ascontiguousarray(weights[start : start + chunk].T, dtype=np.int32)
        total = drawn[truth_images].sum(axis=0)
        ranks = np.cumsum(drawn[images], axis=0, dtype=np.int32)[is_hit]
        found = np.cumsum(drawn[images[is_hit]], axis=0, dtype=np.int32)
        ap = average(found / np.maximum(ranks, 1), found, np.maximum(total, 1), levels)
        result[start : start + chunk] = np.where(total > 0, ap, np.nan)
    return result


def average(
    precision: np.ndarray, found: np.ndarray, positives: np.ndarray, levels: np.ndarray | None
) -> np.ndarray:
    """AP from the precision at each true positive.

    Args:
        precision: (P, …) at the P true positives, in order of rank.
        found: (P, …) true positives up to there; found / positives is the recall.
        positives: (…) or a number, > 0.
        levels: (L,) recall levels, rising from 0: the mean over them of the best precision at that recall or
            beyond. None: the area under the monotone envelope of the curve.
    """
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    if levels is None:
        return (envelope * np.diff(found, axis=0, prepend=0) / positives).sum(axis=0)
    # Recall rises, so the best precision at a level is the envelope where recall first reaches it.
    reached = np.searchsorted(levels, found / positives, side="right")
    return (envelope * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(levels)
