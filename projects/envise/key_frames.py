"""Which frames of a video the teacher is asked about: the rule of JITNet (Mullapudi et al., ICCV 2019, algorithm 1).

H, W: size of a mask; K: dense classes, background first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.errors import UserError
from scenekd.evaluation.semantic import confusion_matrix, segmentation_scores

KEY = "MODEL.ENVISE.SEGMENTATION"
STATISTICS, PICTURES = ("kept", "frame"), ("none", "masks", "overlay")


@dataclass(frozen=True)
class FrameOptions:
    """The keys of ``MODEL.ENVISE.SEGMENTATION`` in small letters; their meaning stands beside their defaults in
    :mod:`.config`."""

    threshold: float
    max_updates: int
    min_stride: int
    max_stride: int
    background: bool
    object_weight: float
    statistics: str
    pictures: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> FrameOptions:
        """From a configuration.

        Raises:
            UserError: a value out of its range.
        """
        node = cfg.MODEL.ENVISE.SEGMENTATION
        if not 0 <= node.THRESHOLD <= 1:
            raise UserError(f"{KEY}.THRESHOLD: {node.THRESHOLD} is no mean IoU between 0 and 1")
        if node.MAX_UPDATES < 0:
            raise UserError(f"{KEY}.MAX_UPDATES: {node.MAX_UPDATES} must be at least 0")
        if not 1 <= node.MIN_STRIDE <= node.MAX_STRIDE:
            raise UserError(
                f"{KEY}: MIN_STRIDE {node.MIN_STRIDE} and MAX_STRIDE {node.MAX_STRIDE} must be at least 1, the latter "
                "no smaller"
            )
        if not node.OBJECT_WEIGHT > 0:
            raise UserError(f"{KEY}.OBJECT_WEIGHT: {node.OBJECT_WEIGHT} must be above 0")
        for name, known in (("STATISTICS", STATISTICS), ("PICTURES", PICTURES)):
            if node[name] not in known:
                raise UserError(f"{KEY}.{name}: {node[name]!r}; choose {', '.join(known)}")
        return cls(
            threshold=node.THRESHOLD,
            max_updates=node.MAX_UPDATES,
            min_stride=node.MIN_STRIDE,
            max_stride=node.MAX_STRIDE,
            background=node.BACKGROUND,
            object_weight=node.OBJECT_WEIGHT,
            statistics=node.STATISTICS,
            pictures=node.PICTURES,
        )


class KeyFrames:
    """The stride between two key frames: it doubles where the student is good enough, and halves where it is not.

    Args:
        threshold: in agreement, from which on the student is good enough. least, most: bounds of the stride.

    Attributes:
        stride: between this key frame and the next; key frames lie at its multiples. next: position from which on the
            next frame that can be read is a key frame. good: whether the student was good enough at the last one.
    """

    def __init__(self, threshold: float, least: int, most: int) -> None:
        self._threshold, self._least, self._most = threshold, least, most
        self.stride, self.next, self.good = least, 0, False

    def is_due(self, position: int) -> bool:
        """Whether the frame at ``position`` is a key frame."""
        return position >= self.next

    def is_good(self, agreement: float) -> bool:
        """Whether so much agreement, 0…1, asks for no further update."""
        return agreement >= self._threshold

    def passed(self, position: int, agreement: float) -> None:
        """A key frame is done, and this is the agreement after its updates."""
        self.good = self.is_good(agreement)
        self.stride = min(self._most, 2 * self.stride) if self.good else max(self._least, self.stride // 2)
        self.next = (position // self.stride + 1) * self.stride

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"stride": self.stride, "next": self.next, "good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.stride, self.next, self.good = int(state["stride"]), int(state["next"]), bool(state["good"])


def mask_agreement(student: np.ndarray, teacher: np.ndarray, num_classes: int, *, background: bool) -> float:
    """Mean IoU, 0…1, of two masks over the classes that the teacher's names.

    Args:
        student, teacher: (H, W) class numbers 0…K−1. num_classes: K.
        background: whether background is one of the classes; where the teacher names nothing else, it is.
    """
    matrix = confusion_matrix(student, teacher, num_classes)
    named = matrix.sum(axis=1) > 0
    if not background and named[1:].any():
        named[0] = False
    iou = segmentation_scores(matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0))["iou"]
    return float(iou[named].mean())
