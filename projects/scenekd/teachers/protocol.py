"""What a teacher is, what it says about an image, and where what it said is read from.

Shape shorthand: H, W: size of the un-augmented image; N: boxes; C: classes; K = C + 1: dense classes,
background first; h, w: the teacher's own grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..sample import TASKS, SoftSegmentation
from ..source_weights import SAVED_TASKS
from .runs import decode_runs, encode_runs

__all__ = [
    "SAVED_TASKS",
    "TASKS",
    "Detections",
    "InstanceDetections",
    "InstanceStore",
    "Teacher",
    "TeacherInfo",
    "TeacherOutput",
    "TeacherStore",
]


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


class InstanceDetections(NamedTuple):
    """Boxes of one image with their masks: boxes, labels and scores as in :class:`Detections`; runs: for each
    box the run lengths of its mask; size: (H, W) of the un-augmented image. See :mod:`.runs`."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    runs: tuple[np.ndarray, ...]
    size: tuple[int, int]

    @classmethod
    def build(cls, boxes: Any, labels: Any, scores: Any, masks: np.ndarray) -> InstanceDetections:
        """From anything array-like and (N, H, W) bool masks, sorted by falling score (stable)."""
        scores = np.asarray(scores, np.float32).reshape(-1)
        masks = np.asarray(masks, bool)
        if masks.ndim != 3 or len(masks) != len(scores):
            raise ValueError(f"{len(scores)} boxes, masks {masks.shape}")
        order = np.argsort(-scores, kind="stable")
        runs = tuple(encode_runs(masks[i]) for i in order)
        found = Detections.build(boxes, labels, scores)
        return cls(found.boxes, found.labels, found.scores, runs, (masks.shape[1], masks.shape[2]))

    def select(self, chosen: np.ndarray) -> InstanceDetections:
        """The boxes of an integer index."""
        runs = tuple(self.runs[i] for i in chosen)
        return InstanceDetections(
            self.boxes[chosen], self.labels[chosen], self.scores[chosen], runs, self.size
        )

    def keep(self, min_score: float, max_boxes: int | None) -> InstanceDetections:
        """The boxes with a score of at least ``min_score``, at most ``max_boxes`` of them."""
        return self.select(np.flatnonzero(self.scores >= min_score)[:max_boxes])

    def masks(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """(N, H, W) bool masks, of all boxes or of an integer index."""
        runs = self.runs if chosen is None else [self.runs[i] for i in chosen]
        masks = np.zeros((len(runs), *self.size), bool)
        for mask, own in zip(masks, runs):
            mask[:] = decode_runs(own, self.size)
        return masks


@dataclass
class TeacherOutput:
    """What a teacher says about one un-augmented image; None for a task it does not have.

    Boxes, labels, scores and class probabilities are as in :class:`Detections`, in any order; masks (N, H, W)
    bool are those of the boxes, in the same order.
    """

    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    segmentation: SoftSegmentation | None = None
    class_probabilities: np.ndarray | None = None
    masks: np.ndarray | None = None

    @property
    def instances(self) -> InstanceDetections | None:
        """The boxes with their masks, sorted; None without a task of instance masks."""
        if self.boxes is None or self.masks is None:
            return None
        return InstanceDetections.build(self.boxes, self.labels, self.scores, self.masks)

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


@runtime_checkable
class InstanceStore(TeacherStore, Protocol):
    """A store for the task instance_segmentation."""

    def get_instances(self, image_id: str) -> InstanceDetections:
        """The boxes of an image with their masks. A UserError where the store has none, or it is damaged."""
        ...
