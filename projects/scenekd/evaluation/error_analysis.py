"""What a detector's false positives are (Hoiem, Chodpathumwan and Dai, ECCV 2012, section 2).

Of each class its G surest detections are looked at, G the number of its countable boxes, so that a perfect detector has
none wrong. A detection is

    correct       IoU with a box of its class above .5, and the first of that box
    localisation  IoU with a box of its class of .1 and more, or a second detection of a box
    similar       else, IoU of .1 and more with a box of a similar class
    other         else, with a box of any other class
    background    else

What lies on a "difficult" box of its class (IoU above .5) is left out.

N: detections and M: boxes of one image; C: classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..boxes import iou_matrix
from .arrays import to_numpy
from .image_records import ImageRecords

KINDS = ("correct", "localisation", "similar", "other", "background")
LOOSE = 0.1  # from this IoU on a detection has to do with a box

# Groups of VOC's classes that look alike, as in the paper; classes of no group resemble nothing.
SIMILAR = (
    ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
    ("bird", "cat", "cow", "dog", "horse", "sheep", "person"),
    ("chair", "diningtable", "sofa"),
)


@dataclass(frozen=True)
class ImageErrors:
    """What the analysis keeps of one image.

    Attributes:
        labels, scores: (N,) of the detections.
        own: (N,) largest IoU with a box of the class. truth: (N,) that box, −1 where there is none.
        similar, other: (N,) largest IoU with a box of a similar, of any other class.
        difficult: (M,) bool. truth_labels: (M,).
    """

    labels: np.ndarray
    scores: np.ndarray
    own: np.ndarray
    truth: np.ndarray
    similar: np.ndarray
    other: np.ndarray
    difficult: np.ndarray
    truth_labels: np.ndarray


class ErrorRecords(ImageRecords[ImageErrors]):
    """Detection errors of a data set.

    Args:
        classes: C names.
        similar: groups of names; names that are not among ``classes`` do not matter.
        iou_threshold: above it a detection is right.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        similar: Iterable[Iterable[str]] = SIMILAR,
        iou_threshold: float = 0.5,
    ) -> None:
        super().__init__(classes)
        self.iou_threshold = iou_threshold
        self._similar = np.zeros((len(self.classes), len(self.classes)), bool)
        for group in similar:
            members = [self.classes.index(name) for name in group if name in self.classes]
            self._similar[np.ix_(members, members)] = True
        np.fill_diagonal(self._similar, False)

    def add(self, image_id: str, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """Record one image; arguments as in :func:`.detection.voc_ap`."""
        if image_id in self._records:
            return
        labels = to_numpy(prediction["labels"]).astype(np.int64).reshape(-1)
        truth = to_numpy(target["labels"]).astype(np.int64).reshape(-1)
        boxes, truth_boxes = (
            torch.from_numpy(to_numpy(part["boxes"]).astype(np.float64).reshape(-1, 4))
            for part in (prediction, target)
        )
        iou = iou_matrix(boxes, truth_boxes).numpy()
        same = labels[:, None] == truth[None]
        alike = self._similar[labels][:, truth] if len(truth) else np.zeros_like(same)
        difficult = target.get("difficult")
        own, index = _largest(iou, same)
        self._records[image_id] = ImageErrors(
            labels,
            to_numpy(prediction["scores"]).astype(np.float64).reshape(-1),
            own,
            index,
            _largest(iou, alike)[0],
            _largest(iou, ~same & ~alike)[0],
            np.zeros(len(truth), bool) if difficult is None else to_numpy(difficult).astype(bool),
            truth,
        )

    def counts(self) -> np.ndarray:
        """(C, 5) int64: of each class's surest detections, how many are of each of :data:`KINDS`."""
        images = self._sorted()
        labels, scores = (np.concatenate([getattr(i, name) for i in images]) for name in ("labels", "scores"))
        image = np.repeat(np.arange(len(images)), [len(i.labels) for i in images])
        first = np.cumsum([0, *(len(i.labels) for i in images)])
        table = np.zeros((len(self.classes), len(KINDS)), np.int64)
        for label in range(len(self.classes)):
            wanted = sum(int((~i.difficult & (i.truth_labels == label)).sum()) for i in images)
            chosen = np.flatnonzero(labels == label)
            chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
            claimed: set[tuple[int, int]] = set()
            for detection in chosen.tolist():
                if not wanted:
                    break
                number = int(image[detection])
                kind = self._kind(images[number], detection - int(first[number]), number, claimed)
                if kind is not None:
                    table[label, KINDS.index(kind)] += 1
                    wanted -= 1
        return table

    def _kind(
        self, image: ImageErrors, detection: int, number: int, claimed: set[tuple[int, int]]
    ) -> str | None:
        own, truth = image.own[detection], int(image.truth[detection])
        if own > self.iou_threshold:
            if image.difficult[truth]:
                return None
            first = (number, truth) not in claimed
            claimed.add((number, truth))
            return "correct" if first else "localisation"
        if own >= LOOSE:
            return "localisation"
        if image.similar[detection] >= LOOSE:
            return "similar"
        return "other" if image.other[detection] >= LOOSE else "background"

    def summary(self, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """Percent of the looked-at detections: each kind over all classes, and ``<kind>-<class>``; NaN for a class
        without any. The shares are a description: no interval is drawn, ``bootstrap`` and ``seed`` are not used."""
        table = self.counts().astype(np.float64)
        with np.errstate(invalid="ignore"):
            shares = 100 * table / table.sum(axis=1, keepdims=True)
            total = 100 * table.sum(axis=0) / table.sum()
        result = {kind: float(share) for kind, share in zip(KINDS, total)}
        for name, row in zip(self.classes, shares):
            result |= {f"{kind}-{name}": float(share) for kind, share in zip(KINDS, row)}
        return result


def _largest(iou: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the largest IoU with the boxes that ``among`` (N, M) allows, and which; 0 and −1 where none is allowed."""
    if not iou.shape[1]:
        return np.zeros(len(iou)), np.full(len(iou), -1, np.int64)
    allowed = np.where(among, iou, -1.0)
    index = allowed.argmax(axis=1)
    value = allowed[np.arange(len(iou)), index]
    return np.maximum(value, 0.0), np.where(value >= 0, index, -1)
