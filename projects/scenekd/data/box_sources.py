"""What ground truth and a detection teacher say of the boxes of one image, as columns of a Sample.

N: boxes of one source; C: object classes. The options are those of ``cfg.DISTILL.DETECTION``; with all at their
defaults a box carries its label and its confidence, as in the thesis.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from ..boxes_merge import duplicate_quality, vectors_from_boxes
from ..errors import UserError
from ..teachers.merged import unmerged
from ..teachers.options import our_classes
from ..teachers.protocol import Detections, InstanceDetections

logger = logging.getLogger(__name__)

CHOICES = {
    "CLASS_TARGET": ("hard", "vector"),
    "BOX_WEIGHT": ("score", "quality", "none"),
    "NEGATIVES": ("plain", "teacher_aware"),
}

Columns = dict[str, np.ndarray]


def check_plain_boxes(cfg: Any) -> None:
    """Refuse what a pipeline that carries boxes, labels and scores alone cannot do.

    Raises:
        UserError: an option of ``DISTILL.DETECTION`` that asks for more.
    """
    for name, (plain, *_) in CHOICES.items():
        if cfg.DISTILL.DETECTION[name] != plain:
            value = cfg.DISTILL.DETECTION[name]
            raise UserError(
                f"DISTILL.DETECTION.{name}: {value} needs SceneKD's own loader; set it to {plain}"
            )


class BoxSources:
    """Makes columns (``boxes, labels, confidences, from_teacher, difficult``, and by options more) of boxes.

    With ``CLASS_TARGET vector``: ``class_probabilities``, one-hot for ground truth. With ``BOX_WEIGHT quality``
    or ``none``: ``box_weights``, 1 for ground truth and for all by ``none``.

    Raises:
        UserError: an option's value does not exist, or is out of range.
    """

    def __init__(self, cfg: Any) -> None:
        node = cfg.DISTILL.DETECTION
        for name, values in CHOICES.items():
            if node[name] not in values:
                raise UserError(f"DISTILL.DETECTION.{name}: {node[name]!r} is none of {', '.join(values)}")
        self.num_classes = len(our_classes(cfg))
        self.min_score, self.use_confidence = node.MIN_SCORE, node.USE_CONFIDENCE
        self.vectors, self.box_weight = node.CLASS_TARGET == "vector", node.BOX_WEIGHT
        self.mask_confidence = cfg.DISTILL.INSTANCE_SEGMENTATION.USE_CONFIDENCE
        self.quality_iou = cfg.TEACHER.DETECTION.MERGE_IOU
        self.doubts = node.NEGATIVES == "teacher_aware"
        self.doubts_of_ground_truth = self.doubts and node.NEGATIVES_GROUND_TRUTH
        self._told = False

    def check_teacher(self, there: bool) -> None:
        """Refuse ``NEGATIVES_GROUND_TRUTH`` where no detection teacher's store is open."""
        if self.doubts_of_ground_truth and not there:
            raise UserError(
                "DISTILL.DETECTION.NEGATIVES_GROUND_TRUTH: needs a teacher's boxes, and POLICY asks for none; "
                "set POLICY combined with TEACHER_WEIGHT 0, or NEGATIVES_GROUND_TRUTH False"
            )

    def ground_truth(self, boxes: np.ndarray, labels: np.ndarray, difficult: np.ndarray) -> Columns:
        """Columns of annotated boxes, (N, 4), (N,), (N,)."""
        ones = np.ones(len(boxes), np.float32)
        columns = _columns(boxes, labels, ones, False, difficult)
        if self.vectors:
            columns["class_probabilities"] = np.eye(self.num_classes + 1, dtype=np.float32)[labels]
        if self.box_weight != "score":
            columns["box_weights"] = ones
        return columns

    def none(self) -> Columns:
        """Columns of no box."""
        return self.ground_truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))

    def teacher(self, found: Detections) -> Columns:
        """Columns of a teacher's boxes that reach ``MIN_SCORE``; the others still count as overlapping them."""
        keep = found.scores >= self.min_score
        scores = found.scores[keep]
        confidences = scores if self.use_confidence else np.ones_like(scores)
        columns = _columns(
            found.boxes[keep], found.labels[keep], confidences, True, np.zeros(len(scores), bool)
        )
        if self.vectors:
            columns["class_probabilities"] = self._vectors(found)[keep]
        if self.box_weight != "score":
            columns["box_weights"] = self._quality(found)[keep]
        return columns

    def of_masks(self, found: InstanceDetections) -> Columns:
        """Columns of the boxes of a teacher of masks, which teach no detection."""
        columns = self.ground_truth(found.boxes, found.labels, np.zeros(len(found.boxes), bool))
        if self.mask_confidence:
            columns["confidences"] = found.scores
        return columns | {"from_teacher": np.ones(len(found.boxes), bool)}

    def _vectors(self, found: Detections) -> np.ndarray:
        if found.class_probabilities is not None:
            return found.class_probabilities
        if not self._told:
            self._told = True
            logger.info(
                "the detection teacher's boxes come without class probabilities; they are built from the boxes' "
                "scores (a cache made before there were any: tools/cache_teacher.py --rebuild adds them)"
            )
        return vectors_from_boxes(*found, num_classes=self.num_classes)

    def _quality(self, found: Detections) -> np.ndarray:
        if self.box_weight == "none":
            return np.ones(len(found.boxes), np.float32)
        if found.quality is not None:
            return found.quality
        return duplicate_quality(unmerged(*found), found.boxes, found.labels, iou_threshold=self.quality_iou)


def _columns(
    boxes: np.ndarray, labels: np.ndarray, confidences: np.ndarray, teacher: bool, difficult: np.ndarray
) -> Columns:
    return {
        "boxes": boxes,
        "labels": labels,
        "confidences": confidences,
        "from_teacher": np.full(len(boxes), teacher),
        "difficult": difficult,
    }
