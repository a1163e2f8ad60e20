"""A predictor that looks at no image: the line that every student must beat.

Segmentation: every position takes the class that stands there most often in the training masks, positions
compared as fractions of the image. Detection: every image gets, for each class, the mean training box of that
class (as fractions of the image), scored by the share of training images that hold the class. Its mask is the
filled box. Classification: every image has the classes' shares of the training images.
"""

from __future__ import annotations

import cv2
import numpy as np

from ..data.records import Dataset
from ..sample import IGNORE_INDEX

# Cells a side at which positions are compared.
_GRID = 64


class TrivialPredictor:
    """The predictor drawn from the labels of ``dataset``."""

    def __init__(self, dataset: Dataset) -> None:
        self._layout = frequent_layout(dataset)
        self._boxes, self._scores = mean_boxes(dataset)
        self._prior = class_prior(dataset)

    def predict(self, height: int, width: int) -> dict[str, np.ndarray | None]:
        """boxes, labels, scores, masks, sem_seg and class_scores of an image of that size; None for a task without
        labels."""
        layout, labels = self._layout, np.flatnonzero(self._scores)
        sem_seg = None
        if layout is not None:
            sem_seg = cv2.resize(layout, (width, height), interpolation=cv2.INTER_NEAREST)
        boxes = self._boxes[labels] * np.array([width, height, width, height])
        return {
            "boxes": boxes if len(labels) else None,
            "labels": labels,
            "scores": self._scores[labels],
            "masks": fill_boxes(boxes, height, width) if len(labels) else None,
            "sem_seg": sem_seg,
            "class_scores": self._prior,
        }


def fill_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, H, W) bool: the pixels whose centre lies in each of (N, 4) boxes; what a mask must do better than."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    x1, y1, x2, y2 = (side[:, None] for side in np.asarray(boxes).reshape(-1, 4).T)
    across, down = (x >= x1) & (x < x2), (y >= y1) & (y < y2)
    filled: np.ndarray = down[:, :, None] & across[:, None]
    return filled


def frequent_layout(dataset: Dataset) -> np.ndarray | None:
    """(64, 64) uint8, the most frequent class of each position over the masks; None without a mask."""
    votes = np.zeros((len(dataset.classes) + 1, _GRID, _GRID), np.int64)
    masks = 0
    for record in dataset.records:
        if record.has_sem_seg:
            mask = dataset.read_sem_seg(record)
            mask = cv2.resize(mask, (_GRID, _GRID), interpolation=cv2.INTER_NEAREST)
            rows, columns = np.nonzero(mask != IGNORE_INDEX)
            votes[mask[rows, columns], rows, columns] += 1
            masks += 1
    return votes.argmax(axis=0).astype(np.uint8) if masks else None


def class_prior(dataset: Dataset) -> np.ndarray | None:
    """(C,) log of each class's share of the images, one image of each class added so that none is 0; None without a
    class label."""
    labels = [record.class_label for record in dataset.records if record.class_label is not None]
    if not labels:
        return None
    count = np.bincount(labels, minlength=len(dataset.classes)) + 1
    return np.log(count / count.sum())


def mean_boxes(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(C, 4) mean box of each class as fractions of the image; (C,) share of labelled images that hold it."""
    total, count = np.zeros((len(dataset.classes), 4)), np.zeros(len(dataset.classes))
    images, holding = 0, np.zeros(len(dataset.classes))
    for record in dataset.records:
        if record.boxes is None or record.labels is None:
            continue
        images += 1
        height, width = record.size()
        np.add.at(total, record.labels, record.boxes / np.array([width, height, width, height]))
        np.add.at(count, record.labels, 1)
        holding[np.unique(record.labels)] += 1
    return total / np.maximum(count, 1)[:, None], holding / max(images, 1)
