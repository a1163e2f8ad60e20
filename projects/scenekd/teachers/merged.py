"""Several detection teachers as one store, and the merging of boxes as they are read.

N: boxes of all teachers of an image; C: object classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..boxes_merge import Merged, duplicate_quality, nms, soft_nms, vectors_from_boxes, weighted_box_fusion
from ..errors import UserError
from ..sample import SoftSegmentation
from .protocol import Detections, TeacherStore

MERGES = ("none", "nms", "soft_nms", "soft_nms_linear", "wbf")


class MergedStore:
    """Boxes of one or more stores, scores calibrated, concatenated and merged.

    An image is held where any of the stores holds it; those that do not hold it say nothing of it. Qualities are
    taken from all boxes before merging. Where a teacher of several tells class probabilities and another does
    not, the latter's are built by :func:`scenekd.boxes_merge.vectors_from_boxes`.

    Merging costs processor time with every draw: 200 boxes of 20 classes 1.5 ms by nms, 3 ms by soft_nms and 5 ms
    by wbf, where it was measured.

    Args:
        stores: at least one, all for the same classes.
        factors: of each store's scores, > 0; a score is at most 1. Class probabilities follow: those of the
            object classes are multiplied, background takes what is left.
        merge: one of ``MERGES``. iou_threshold: of nms, soft_nms_linear, wbf and quality. sigma: of soft_nms.

    Raises:
        UserError: an argument is outside its range.
    """

    def __init__(
        self,
        stores: Sequence[TeacherStore],
        factors: Sequence[float],
        *,
        merge: str = "none",
        iou_threshold: float = 0.5,
        sigma: float = 0.5,
    ) -> None:
        if merge not in MERGES:
            raise UserError(f"TEACHER.DETECTION.MERGE: {merge!r} is none of {', '.join(MERGES)}")
        if not 0 < iou_threshold <= 1 or not sigma > 0:
            raise UserError("TEACHER.DETECTION: MERGE_IOU must be in (0, 1] and MERGE_SIGMA positive")
        if not min(factors) > 0:
            raise UserError(f"TEACHER.DETECTION.SCORE_FACTOR: must be positive, got {min(factors)}")
        self.stores, self.factors, self.classes = list(stores), list(factors), stores[0].classes
        self.merge, self.iou_threshold, self.sigma = merge, iou_threshold, sigma

    @property
    def info(self) -> dict[str, Any]:
        """The first teacher's fields, with all names and all training sets."""
        infos = [store.info for store in self.stores]
        trained_on = dict.fromkeys(name for info in infos for name in info.get("trained_on", ()))
        name = " + ".join(str(info.get("name", "")) for info in infos)
        return infos[0] | {"name": name, "trained_on": list(trained_on)}

    def __contains__(self, image_id: object) -> bool:
        return any(image_id in store for store in self.stores)

    def get_segmentation(self, image_id: str) -> SoftSegmentation:
        """None is held."""
        raise ValueError(f"boxes of image {image_id} are merged here, no dense outputs")

    def get_detections(self, image_id: str) -> Detections:
        """The merged boxes of an image, in our classes, with qualities."""
        parts = [
            (i, calibrate(store.get_detections(image_id), factor))
            for i, (store, factor) in enumerate(zip(self.stores, self.factors))
            if image_id in store
        ]
        if not parts:
            self.stores[0].get_detections(image_id)  # says what is missing
        found = _concatenate([boxes for _, boxes in parts], len(self.classes))
        teacher = np.concatenate([np.full(len(boxes.boxes), i) for i, boxes in parts])
        merged = self._merger(teacher, len(parts))(*found)
        quality = duplicate_quality(merged, found.boxes, found.labels, iou_threshold=self.iou_threshold)
        vectors = found.class_probabilities
        if vectors is not None:
            vectors = (merged.shares @ vectors).astype(np.float32)
        return Detections(merged.boxes, merged.labels, merged.scores, vectors, quality)

    def _merger(self, teacher: np.ndarray, num_teachers: int) -> Callable[..., Merged]:
        iou = self.iou_threshold
        if self.merge == "nms":
            return functools.partial(nms, iou_threshold=iou)
        if self.merge == "soft_nms":
            return functools.partial(soft_nms, method="gaussian", sigma=self.sigma)
        if self.merge == "soft_nms_linear":
            return functools.partial(soft_nms, method="linear", iou_threshold=iou)
        if self.merge == "wbf":
            return functools.partial(
                weighted_box_fusion, iou_threshold=iou, teacher=teacher, num_teachers=num_teachers
            )
        return unmerged


def unmerged(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Merged:
    """Every box as it is, sorted by falling score."""
    order = np.argsort(-scores, kind="stable")
    return Merged(boxes[order], labels[order], scores[order], np.eye(len(boxes))[order])


def calibrate(detections: Detections, factor: float) -> Detections:
    """Detections with scores, and class probabilities of objects, times ``factor``; neither exceeds 1."""
    if factor == 1:
        return detections
    scores = np.minimum(detections.scores * np.float32(factor), 1)
    vectors = detections.class_probabilities
    if vectors is not None:
        objects = vectors[:, :-1] * np.float32(factor)
        total = objects.sum(1, keepdims=True)
        vectors = np.concatenate([objects / np.maximum(total, 1), np.maximum(1 - total, 0)], axis=1)
    return Detections(detections.boxes, detections.labels, scores, vectors)


def _concatenate(parts: Sequence[Detections], num_classes: int) -> Detections:
    boxes, labels, scores = (np.concatenate(columns) for columns in zip(*parts))
    vectors = None
    if any(part.class_probabilities is not None for part in parts):
        vectors = np.concatenate(
            [
                vectors_from_boxes(*part, num_classes=num_classes)
                if part.class_probabilities is None
                else part.class_probabilities
                for part in parts
            ]
        )
    return Detections(boxes, labels, scores, vectors)
