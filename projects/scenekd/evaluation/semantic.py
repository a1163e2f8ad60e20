"""Semantic segmentation: confusion matrix, its summaries, and one record per image.

Shape shorthand: K: dense classes, background first; I: images; B: resamples.

Which classes a mean covers: mIoU is the mean over the classes with a non-empty union, that is, those that
occur in the labels or in the predictions (elsewhere IoU is 0/0, NaN, and left out). Mean accuracy covers the
classes that occur in the labels. fwIoU weighs by the labels' frequency, so absent classes weigh nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from ..sample import IGNORE_INDEX
from .arrays import defined_mean, to_numpy
from .image_records import ImageRecords
from .statistics import bootstrap_interval

# OpenCV returns float32 counts, exact up to 2²⁴ pixels in one cell.
_PIXELS_AT_ONCE = 1 << 24


def confusion_matrix(
    pred: np.ndarray | Tensor,
    label: np.ndarray | Tensor,
    num_classes: int,
    ignore_index: int | None = IGNORE_INDEX,
) -> np.ndarray:
    """Count the pixels of each (label, predicted class).

    Args:
        pred, label: whole numbers, of one shape (any). Labels are 0…K−1 or ``ignore_index``.
        num_classes: K.
        ignore_index: pixels with this label are left out, whatever is predicted there; None: none are.

    Returns:
        (K, K) int64, indexed [label, pred].

    Raises:
        ValueError: shapes differ, values are not whole numbers, K < 1, or a value of a counted pixel lies
            outside 0…K−1.
    """
    predicted, truth = to_numpy(pred), to_numpy(label)
    if predicted.shape != truth.shape:
        raise ValueError(f"pred and label differ in shape: {predicted.shape}, {truth.shape}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    for name, values in (("pred", predicted), ("label", truth)):
        if not (np.issubdtype(values.dtype, np.integer) or values.dtype == bool):
            raise ValueError(f"{name} must hold whole numbers, got {values.dtype}")
    as_bytes = _as_bytes(predicted), _as_bytes(truth)
    if as_bytes[0] is not None and as_bytes[1] is not None:
        return _count_bytes(as_bytes[0], as_bytes[1], num_classes, ignore_index)
    return _count_any(predicted, truth, num_classes, ignore_index)


def _as_bytes(values: np.ndarray) -> np.ndarray | None:
    """The values as a flat uint8 array, or None where they do not fit."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values).reshape(-1)
    # Read as unsigned, what is below 0 is far above 255: one pass instead of two.
    if values.size and values.view(f"u{values.dtype.itemsize}").max() > 255:
        return None
    return values.astype(np.uint8).reshape(-1)


def _count_bytes(
    pred: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int | None
) -> np.ndarray:
    # A joint histogram of two 8-bit images: several times faster than a bincount of int64 indices. It leaves
    # out what lies outside the range, so the sum shows whether something did.
    bins = min(num_classes, 256)
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for start in range(0, pred.size, _PIXELS_AT_ONCE):
        part = slice(start, start + _PIXELS_AT_ONCE)
        table = cv2.calcHist([label[part], pred[part]], [0, 1], None, [bins, bins], [0, bins, 0, bins])
        matrix[:bins, :bins] += table.astype(np.int64)
    ignored = 0
    if ignore_index is not None and 0 <= ignore_index < 256:
        ignored = int(np.count_nonzero(label == ignore_index))
        matrix[ignore_index : ignore_index + 1] = 0
    if int(matrix.sum()) + ignored != pred.size:
        return _count_any(pred, label, num_classes, ignore_index)  # names the value
    return matrix


def _count_any(pred: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int | None) -> np.ndarray:
    counted = np.ones(label.shape, bool) if ignore_index is None else label != ignore_index
    predicted, truth = pred[counted].astype(np.int64), label[counted].astype(np.int64)
    _refuse(predicted, truth, num_classes)
    flat = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def _refuse(pred: np.ndarray, label: np.ndarray, num_classes: int) -> None:
    """Raise where values that are to be counted lie outside 0…K−1."""
    for name, values in (("pred", pred), ("label", label)):
        outside = values[(values < 0) | (values >= num_classes)]
        if outside.size:
            raise ValueError(f"{name} holds {int(outside[0])}, outside 0…{num_classes - 1}")


def segmentation_scores(
    intersection: np.ndarray, labelled: np.ndarray, predicted: np.ndarray
) -> dict[str, Any]:
    """All summaries from the three pixel counts per class; leading axes are kept.

    Args:
        intersection: (…, K) pixels of class k predicted as k.
        labelled, predicted: (…, K) pixels labelled, predicted as k.

    Returns:
        iou, accuracy: (…, K), NaN where undefined; mIoU, mACC, fwIoU, pACC: (…); all in 0…1, and NaN where no
        pixel was counted.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        total = labelled.sum(-1)
        iou = intersection / (labelled + predicted - intersection)
        accuracy = intersection / labelled
        return {
            "iou": iou,
            "accuracy": accuracy,
            "mIoU": defined_mean(iou),
            "mACC": defined_mean(accuracy),
            "fwIoU": (np.nan_to_num(iou) * labelled).sum(-1) / total,
            "pACC": intersection.sum(-1) / total,
        }


class SegmentationRecords(ImageRecords[tuple[np.ndarray, np.ndarray]]):
    """One confusion matrix per image: the flat indices of its cells with a count, and their counts.

    Args:
        classes: K names, background first.
        ignore_index: as in :func:`confusion_matrix`.
    """

    def __init__(self, classes: Sequence[str], ignore_index: int | None = IGNORE_INDEX) -> None:
        super().__init__(classes)
        self.ignore_index = ignore_index

    def add(self, image_id: str, pred: np.ndarray | Tensor, label: np.ndarray | Tensor) -> None:
        """Record one image; an image that is there already is left as it is."""
        if image_id in self._records:
            return
        matrix = confusion_matrix(pred, label, len(self.classes), self.ignore_index).reshape(-1)
        cells = np.flatnonzero(matrix)
        self._records[image_id] = cells, matrix[cells]

    def matrix(self) -> np.ndarray:
        """(K, K) int64 [label, pred], summed over the images."""
        size = len(self.classes)
        total = np.zeros(size * size, np.int64)
        for cells, counts in self._records.values():
            total[cells] += counts
        return total.reshape(size, size)

    def summary(self, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """Percentages: mIoU, fwIoU, mACC, pACC, and per class ``IoU-<name>``, ``ACC-<name>`` (NaN:
        undefined).

        Args:
            bootstrap: resamples of the images for the 95 % intervals ``mIoU_interval`` and
                ``IoU-<name>_interval`` = [low, high]; 0: none.
        """
        counts = self.class_counts()
        scores = segmentation_scores(*counts.sum(axis=1))
        result: dict[str, Any] = {
            name: 100 * float(scores[name]) for name in ("mIoU", "fwIoU", "mACC", "pACC")
        }
        for k, name in enumerate(self.classes):
            result[f"IoU-{name}"] = 100 * float(scores["iou"][k])
            result[f"ACC-{name}"] = 100 * float(scores["accuracy"][k])
        if bootstrap:

            def statistic(weights: np.ndarray) -> np.ndarray:
                # float64 products are exact here and, unlike integer ones, run through BLAS.
                drawn = segmentation_scores(*(weights.astype(np.float64) @ counts))
                return np.concatenate([drawn["mIoU"][:, None], drawn["iou"]], axis=1)

            low, high = bootstrap_interval(statistic, counts.shape[1], resamples=bootstrap, seed=seed)
            for k, key in enumerate(["mIoU", *(f"IoU-{name}" for name in self.classes)]):
                result[f"{key}_interval"] = [100 * float(low[k]), 100 * float(high[k])]
        return result

    def image_scores(self) -> dict[str, dict[str, float]]:
        """Image id → its mIoU over the classes that are labelled or predicted in it and its pACC; percent, NaN where
        all of it is void."""
        scores = segmentation_scores(*self.class_counts())
        return {
            image_id: {name: 100 * float(scores[name][i]) for name in ("mIoU", "pACC")}
            for i, image_id in enumerate(sorted(self._records))
        }

    def class_counts(self) -> np.ndarray:
        """(3, I, K) float64: intersection, labelled, predicted; images sorted, so that draws repeat."""
        size = len(self.classes)
        counts = np.zeros((3, len(self._records), size))
        for i, (cells, values) in enumerate(self._sorted()):
            label, pred = np.divmod(cells, size)
            np.add.at(counts[0, i], label[label == pred], values[label == pred])
            np.add.at(counts[1, i], label, values)
            np.add.at(counts[2, i], pred, values)
        return counts
