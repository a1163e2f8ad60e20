"""What a teacher is, what it says about an image, and where what it said is read from.

Shape shorthand: H, W: size of the un-augmented image; N: boxes; C: classes; K = C + 1: dense classes,
background first; h, w: the teacher's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..sample import SoftSegmentation

TASKS = ("detection", "segmentation")


class Detections(NamedTuple):
    """Boxes of one image, sorted by falling score: boxes (N, 4) float32 xyxy pixels of the un-augmented
    image, 0-based; labels (N,) int64 in 0…C−1; scores (N,) float32 in 0…1."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def build(cls, boxes: Any, labels: Any, scores: Any) -> Detections:
        """From anything array-like, with the right types, sorted by falling score (stable)."""
        scores = np.asarray(scores, np.float32).reshape(-1)
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        labels = np.asarray(labels, np.int64).reshape(-1)
        if not len(boxes) == len(labels) == len(scores):
            raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels, {len(scores)} scores")
        order = np.argsort(-scores, kind="stable")
        return cls(boxes[order], labels[order], scores[order])

    def keep(self, min_score: float, max_boxes: int | None) -> Detections:
        """The boxes with a score of at least ``min_score``, at most ``max_boxes`` of them."""
        chosen = np.flatnonzero(self.scores >= min_score)[:max_boxes]
        return Detections(*(part[chosen] for part in self))


@dataclass
class TeacherOutput:
    """What a teacher says about one un-augmented image; None for a task it does not have.

    Boxes, labels and scores are as in :class:`Detections`, in any order.
    """

    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    segmentation: SoftSegmentation | None = None

    @property
    def detections(self) -> Detections | None:
        """The boxes with their right types, sorted; None without a detection task."""
        if self.boxes is None:
            return None
        return Detections.build(self.boxes, self.labels, self.scores)


@dataclass
class TeacherInfo:
    """Where an output comes from. Goes into the manifest of a cache.

    Attributes:
        type: as in ``TEACHER.<TASK>.TYPE``.
        name: of the model.
        weights_sha256: of the weight file, or of the weights themselves where there is none; "" if unknown.
        trained_on: names of the data sets that the teacher was trained on, where known.
        form: of the dense output: logits, probabilities or scores; "" for a detector.
    """

    type: str
    name: str
    weights_sha256: str = ""
    trained_on: tuple[str, ...] = ()
    form: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "type": self.type,
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "trained_on": list(self.trained_on),
            "form": self.form,
            **self.extra,
        }


@runtime_checkable
class Teacher(Protocol):
    """A model that is asked, never trained: evaluation mode, no gradients, batch statistics untouched.

    ``classes`` are its own object classes, without background; labels and dense classes refer to them.
    """

    classes: tuple[str, ...]
    tasks: tuple[str, ...]

    def info(self) -> dict[str, Any]:
        """The fields of :class:`TeacherInfo`."""
        ...

    def predict(self, images: Sequence[np.ndarray]) -> list[TeacherOutput]:
        """One output for each (H, W, 3) uint8 RGB image, at its own size."""
        ...


@runtime_checkable
class TeacherStore(Protocol):
    """Saved outputs by image id: a cache, or a folder of saved files."""

    classes: tuple[str, ...]

    @property
    def info(self) -> dict[str, Any]:
        """The fields of :class:`TeacherInfo`."""
        ...

    def __contains__(self, image_id: object) -> bool: ...

    def get_detections(self, image_id: str) -> Detections:
        """The boxes of an image. A UserError where the store has none for it, or the record is damaged."""
        ...

    def get_segmentation(self, image_id: str) -> SoftSegmentation:
        """The dense output of an image. A UserError where the store has none, or the record is damaged."""
        ...
