"""What a teacher is, what it says about an image, and where what it said is read from.

Shape shorthand: H, W: size of the un-augmented image; N: boxes; C: classes; K = C + 1: dense classes,
background first; h, w: the teacher's own grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..sample import SoftSegmentation

TASKS = ("detection", "segmentation")


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one image, sorted by falling score.

    Iterating gives boxes, labels and scores, all that a teacher must say.

    Attributes:
        boxes: (N, 4) float32 xyxy pixels of the un-augmented image, 0-based.
        labels: (N,) int64 in 0…C−1. scores: (N,) float32 in 0…1.
        class_probabilities: (N, C + 1) float32, background last, the distribution that each score is taken
            from; None where the teacher does not tell.
        quality: (N,) float32 in 0…1, how well the duplicates of each box agree with it, see
            :func:`scenekd.boxes_merge.duplicate_quality`; None where nobody has looked.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    class_probabilities: np.ndarray | None = None
    quality: np.ndarray | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.boxes, self.labels, self.scores))

    @classmethod
    def build(cls, boxes: Any, labels: Any, scores: Any, class_probabilities: Any = None) -> Detections:
        """From anything array-like, with the right types, sorted by falling score (stable)."""
        scores = np.asarray(scores, np.float32).reshape(-1)
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        labels = np.asarray(labels, np.int64).reshape(-1)
        if not len(boxes) == len(labels) == len(scores):
            raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels, {len(scores)} scores")
        if class_probabilities is not None:
            class_probabilities = np.asarray(class_probabilities, np.float32)
            if class_probabilities.ndim != 2 or len(class_probabilities) != len(boxes):
                raise ValueError(f"{len(boxes)} boxes, class probabilities {class_probabilities.shape}")
        return cls(boxes, labels, scores, class_probabilities).take(np.argsort(-scores, kind="stable"))

    def take(self, index: np.ndarray) -> Detections:
        """The boxes of ``index`` (bool or integers), in its order."""
        vectors, quality = self.class_probabilities, self.quality
        return Detections(
            self.boxes[index],
            self.labels[index],
            self.scores[index],
            None if vectors is None else vectors[index],
            None if quality is None else quality[index],
        )

    def keep(self, min_score: float, max_boxes: int | None) -> Detections:
        """The boxes with a score of at least ``min_score``, at most ``max_boxes`` of them."""
        return self.take(np.flatnonzero(self.scores >= min_score)[:max_boxes])


@dataclass
class TeacherOutput:
    """What a teacher says about one un-augmented image; None for a task it does not have.

    Boxes, labels, scores and class probabilities are as in :class:`Detections`, in any order.
    """

    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    segmentation: SoftSegmentation | None = None
    class_probabilities: np.ndarray | None = None

    @property
    def detections(self) -> Detections | None:
        """The boxes with their right types, sorted; None without a detection task."""
        if self.boxes is None:
            return None
        return Detections.build(self.boxes, self.labels, self.scores, self.class_probabilities)


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
