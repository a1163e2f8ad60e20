"""What passes between stream, student, teacher and losses in one batch.

N: samples of a batch; M: of an optimizer's step, N and the replayed; S: side of an image; C: classes; D, h, w: a
feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor


class Network(Protocol):
    """What a student and a teacher are asked for; images are (N, 3, S, S) float32 RGB in 0…255."""

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D, h, w) and (N, C), the logits as they follow from the features by differentiable steps."""
        ...


class AskedTeacher(Network, Protocol):
    """A teacher: frozen, its logits in the student's classes."""

    def logits(self, images: Tensor) -> Tensor:
        """(N, C) without gradients."""
        ...


@dataclass(frozen=True)
class StepView:
    """What an extra loss sees of one optimizer step. The first N of its M samples are new, the others replayed.

    Attributes:
        images: (M, 3, S, S) float32 RGB in 0…255.
        student_features: (M, D, h, w), student_logits: (M, C): the graph runs from the features to the logits.
        teacher_features: (N, D', h', w'), a leaf that asks for gradients, teacher_logits: (N, C) as they follow from
            it; of the new samples alone, for nobody keeps feature maps. Its graph must be kept where it is run through
            (``retain_graph``): further updates of the batch see the same.
        labels: (M,) int64, the teacher's top class of every sample.
    """

    images: Tensor
    student_features: Tensor
    student_logits: Tensor
    teacher_features: Tensor
    teacher_logits: Tensor
    labels: Tensor

    @property
    def new(self) -> int:
        """N."""
        return len(self.teacher_logits)


# From a step to named scalars with their weights in them; they are added to the loss, and reported by name.
ExtraLoss = Callable[[StepView], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Answers:
    """What became of a batch.

    Attributes:
        phase: in which it was processed. positions: (N,). answers: (N,) int64, the system's.
        by_teacher: (N,) bool, whose answer it is; asked: (N,) bool, whether the teacher was asked, an audit included.
        student, teacher: (N,) int64 answers, −1 where the teacher was not asked.
        scores: (N,) float64, of the student as it was when it answered; NaN in LEARN.
        losses: of the last update; empty where nothing was learnt.
    """

    phase: str
    positions: np.ndarray
    answers: np.ndarray
    by_teacher: np.ndarray
    asked: np.ndarray
    student: np.ndarray
    teacher: np.ndarray
    scores: np.ndarray
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def agreed(self) -> np.ndarray:
        """(asked,) bool: whether student and teacher agree, of the samples of which both answered."""
        return np.asarray((self.student == self.teacher)[self.asked])
