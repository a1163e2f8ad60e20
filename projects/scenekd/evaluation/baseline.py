"""A predictor that looks at no image: the line that every student must beat.

Segmentation: every position takes the class that stands there most often in the training masks, positions
compared as fractions of the image. Detection: every image gets, for each class, the mean training box of that
class (as fractions of the image), scored by the share of training images that hold the class.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ..data.records import Dataset
from ..sample import IGNORE_INDEX
from .evaluator import Evaluator

# Cells a side at which positions are compared.
_GRID = 64


def trivial_baseline(
    train_dataset: Dataset, test_dataset: Dataset, evaluator: Evaluator | None = None
) -> dict[str, dict[str, Any]]:
    """Score the trivial predictor, drawn from ``train_dataset``, on ``test_dataset``.

    Args:
        evaluator: of ``test_dataset``, without records; by default one with the default metrics.

    Returns:
        as :meth:`Evaluator.summarize`; a task without training labels is left out.

    Raises:
        ValueError: the data sets have different classes.
        UserError: no task has labels in both.
    """
    if train_dataset.classes != test_dataset.classes:
        raise ValueError("the training and the test set have different classes")
    evaluator = evaluator or Evaluator(test_dataset)
    layout = frequent_layout(train_dataset)
    boxes, scores = mean_boxes(train_dataset)
    labels = np.flatnonzero(scores)
    for record in test_dataset.records:
        height, width = record.size()
        mask = None
        if layout is not None:
            mask = cv2.resize(layout, (width, height), interpolation=cv2.INTER_NEAREST)
        scaled = boxes[labels] * np.array([width, height, width, height])
        evaluator.add_arrays(
            record.image_id,
            boxes=scaled if len(labels) else None,
            labels=labels,
            scores=scores[labels],
            sem_seg=mask,
        )
    return evaluator.summarize()


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
