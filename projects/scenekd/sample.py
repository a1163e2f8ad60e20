"""The data that flows: Sample (one image, numpy) → Target (one image, torch) → Prediction.

Shape shorthand: H, W: image height and width; N: boxes; C: object classes; K = C + 1: dense classes,
background first; h, w: a teacher's own grid.

Boxes are absolute (x1, y1, x2, y2) pixels, 0-based: a box that covers the whole image is (0, 0, W, H).
Labels of boxes and of the whole image are 0…C−1. Dense labels are 0 for background, 1…C for the classes, 255 for
void. A box's mask is 1 on its object, 0 elsewhere, 255 where that is not known; a box without a mask has 255
everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .hidden import HiddenRegion, HiddenScores
from .masks import masks_from_logits
from .source_weights import TASKS, SourceWeights

__all__ = [
    "IGNORE_INDEX",
    "SOFT_FORMS",
    "TASKS",
    "Prediction",
    "Sample",
    "SoftSegmentation",
    "SourceWeights",
    "Target",
]

IGNORE_INDEX = 255
SOFT_FORMS = ("logits", "probabilities", "scores")


@dataclass
class SoftSegmentation:
    """A teacher's dense output on the un-augmented image, on the teacher's own grid.

    Cell (i, j) covers rows i/h…(i+1)/h of the image's height and columns j/w…(j+1)/w of its width, so it is
    sampled with half-pixel centres (``align_corners=False``).

    Attributes:
        values: (K, h, w) float32, background first.
        form: ``logits``; ``probabilities`` (sum 1 over K); ``scores`` (the thesis's raw box confidences in
            0…1, sparse, 0 where there is no box).
    """

    values: np.ndarray
    form: str

    def __post_init__(self) -> None:
        if self.form not in SOFT_FORMS:
            raise ValueError(f"form must be one of {SOFT_FORMS}, got {self.form!r}")


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


@dataclass
class Sample:
    """One image with whatever labels exist. Which labels exist is data, never guessed from content.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        image_id: unique in its data set.
        boxes: (N, 4) float32; ground truth and teacher boxes together, so that they are augmented together.
        labels: (N,) int64, 0…C−1.
        confidences: (N,) float32, 1.0 for ground truth.
        from_teacher: (N,) bool, the source of each box.
        difficult: (N,) bool.
        class_probabilities: (N, C + 1) float32, background last, what each box teaches of its class; one-hot for
            ground truth. None: the label alone.
        box_weights: (N,) float32, how much each box counts in the box loss; None: its confidence.
        doubtful_boxes, doubtful_scores: (D, 4), (D,) float32, all that a teacher suspects here, however little
            it believes it; they teach nothing, steer no crop, and say only where background is doubtful. Or None.
        masks: (N, H0, W0) uint8 of the boxes, on the un-augmented image; or None where no box has one.
        sem_seg: (H, W) uint8, or None where missing.
        soft_seg: the teacher's dense output, or None.
        class_label: of the whole image, 0…C−1, or None where missing.
        coordinates: (H, W, 2) float32, for every pixel the (x, y) it shows of the un-augmented image, as
            fractions of its width and height; outside [0, 1] nothing of the image is shown. None: identity.
        has_boxes, has_sem_seg, has_instance_masks, has_class_label: whether ground truth of the task exists for this
            image.
        has_teacher_boxes, has_teacher_masks: whether a teacher of detection, of instance masks looked at it.
        weights: what the policy chose for this image.
        height, width: size of the un-augmented image.
        file_name: where the image came from.
        hidden: what was hidden from the image, after everything else was done to it; or None.
        presence: (C,) int8, which classes the whole image shows (:mod:`.data.presence`), whatever a crop has left; or
            None.
    """

    image: np.ndarray
    image_id: str
    boxes: np.ndarray = field(default_factory=_no_boxes)
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    confidences: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    from_teacher: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    class_probabilities: np.ndarray | None = None
    box_weights: np.ndarray | None = None
    doubtful_boxes: np.ndarray | None = None
    doubtful_scores: np.ndarray | None = None
    masks: np.ndarray | None = None
    sem_seg: np.ndarray | None = None
    soft_seg: SoftSegmentation | None = None
    class_label: int | None = None
    coordinates: np.ndarray | None = None
    has_boxes: bool = False
    has_sem_seg: bool = False
    has_instance_masks: bool = False
    has_class_label: bool = False
    has_teacher_boxes: bool = False
    has_teacher_masks: bool = False
    weights: SourceWeights = field(default_factory=SourceWeights)
    height: int = 0
    width: int = 0
    file_name: str = ""
    hidden: HiddenRegion | None = None
    presence: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.height:
            self.height, self.width = self.image.shape[:2]

    def select(self, keep: np.ndarray) -> Sample:
        """A copy that holds only the boxes in ``keep`` (bool or integer index)."""
        return dataclasses.replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            confidences=self.confidences[keep],
            from_teacher=self.from_teacher[keep],
            difficult=self.difficult[keep],
            class_probabilities=None if self.class_probabilities is None else self.class_probabilities[keep],
            box_weights=None if self.box_weights is None else self.box_weights[keep],
            masks=None if self.masks is None else self.masks[keep],
        )


@dataclass
class Target:
    """What the network is told about one image. Tensors; boxes in network-input pixels.

    Attributes:
        boxes (N, 4) float32, labels (N,) int64, confidences (N,) float32, from_teacher (N,) bool,
        difficult (N,) bool, class_probabilities (N, C + 1) float32 or None, box_weights (N,) float32 or None,
        doubtful_boxes (D, 4), doubtful_scores (D,) float32 or None: as in :class:`Sample`.
        masks: (N, h', w') uint8 of the boxes, sampled at the end of augmentation, or None.
        sem_seg: (H, W) int64 of the network input, or None.
        soft_seg: (K, h', w') float32, the teacher's output sampled at the end of augmentation, or None;
            (h', w'), as of ``masks``, is the network input or a whole fraction of it.
        soft_valid: (h', w') bool, True where ``soft_seg``, or what an online teacher sees, shows a part of the image.
        class_label: of the whole image, or None.
        height, width: size of the un-augmented image, to which predictions are resized.
        hidden: the box that was hidden from the image, or None. visible (N,) bool, hidden_classes (C,) float32: as in
            :class:`.hidden.HiddenRegion`; the hole itself is the image's fourth channel.
        presence: (C,) int8, as in :class:`Sample`, or None.
    """

    image_id: str
    boxes: Tensor
    labels: Tensor
    confidences: Tensor
    from_teacher: Tensor
    difficult: Tensor
    masks: Tensor | None = None
    sem_seg: Tensor | None = None
    soft_seg: Tensor | None = None
    soft_valid: Tensor | None = None
    class_label: int | None = None
    has_boxes: bool = False
    has_sem_seg: bool = False
    has_instance_masks: bool = False
    has_class_label: bool = False
    has_teacher_boxes: bool = False
    has_teacher_masks: bool = False
    weights: SourceWeights = field(default_factory=SourceWeights)
    height: int = 0
    width: int = 0
    file_name: str = ""
    class_probabilities: Tensor | None = None
    box_weights: Tensor | None = None
    doubtful_boxes: Tensor | None = None
    doubtful_scores: Tensor | None = None
    hidden: int | None = None
    visible: Tensor | None = None
    hidden_classes: Tensor | None = None
    presence: Tensor | None = None

    def labelled_tasks(self) -> set[str]:
        """The tasks that this image has a label for, of ground truth or a teacher, with a weight above 0."""
        return {task for task in TASKS if max(self.existing_weights(task)) > 0}

    def existing_weights(self, task: str) -> tuple[float, float]:
        """The weights of ground truth and teacher in a task's loss, 0 where this image has no such label."""
        masks = self.masks is not None
        exists = {
            "detection": (self.has_boxes, self.has_teacher_boxes),
            "segmentation": (self.sem_seg is not None, self.soft_seg is not None),
            "instance_segmentation": (self.has_instance_masks and masks, self.has_teacher_masks and masks),
            "classification": (self.class_label is not None, False),
        }[task]
        ground_truth, teacher = self.weights[task]
        return ground_truth * exists[0], teacher * exists[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """A copy with every tensor on ``device``."""
        return self._each_tensor(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Target:
        """Page-locked copy, for torch's DataLoader."""
        return self._each_tensor(Tensor.pin_memory)

    def _each_tensor(self, change: Callable[[Tensor], Tensor]) -> Target:
        changed: dict[str, Any] = {
            f.name: change(value)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **changed)


@dataclass
class Prediction:
    """One image's output, in pixels of ``size`` (height, width): the network input until resized.

    Attributes:
        boxes (N, 4) float32, labels (N,) int64, scores (N,) float32 in 0…1, sorted by falling score; or None
            where the network has no detection task.
        class_probabilities: (N, C + 1) float32, background last, that the scores are taken from; or None where
            the network does not tell.
        sem_seg: (K, h, w) logits, or None where the network has no segmentation task.
        mask_logits: (N, h, w) of the boxes, over the whole image, or None where there is no such task.
        masks: (N, height, width) bool, inside the boxes, once resized.
        class_scores: (C,) logits of the whole image, or None where the network has no such task.
        hidden: of a network that hides the objects of the image itself, else None.
        size: (height, width) that ``boxes`` and ``masks`` refer to.
    """

    size: tuple[int, int]
    boxes: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    sem_seg: Tensor | None = None
    class_probabilities: Tensor | None = None
    mask_logits: Tensor | None = None
    masks: Tensor | None = None
    class_scores: Tensor | None = None
    hidden: HiddenScores | None = None

    def resize(self, height: int, width: int) -> Prediction:
        """The prediction at another image size: boxes scaled and clipped, logits bilinearly resized; masks are
        made of their logits, above 0, inside the box."""
        boxes, sem_seg, masks = self.boxes, self.sem_seg, self.masks
        if boxes is not None:
            scale = boxes.new_tensor([width / self.size[1], height / self.size[0]]).repeat(2)
            limit = boxes.new_tensor([width, height]).repeat(2)
            boxes = torch.minimum((boxes * scale).clamp(min=0), limit)
        if sem_seg is not None and tuple(sem_seg.shape[-2:]) != (height, width):
            # A pixel's classes side by side in memory: on a CPU, resizing and the argmax after it take a fourth.
            planes = sem_seg[None].float().contiguous(memory_format=torch.channels_last)
            sem_seg = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)[0]
        if self.mask_logits is not None and boxes is not None:
            masks = masks_from_logits(self.mask_logits, boxes, height, width)
        return dataclasses.replace(self, size=(height, width), boxes=boxes, sem_seg=sem_seg, masks=masks)
