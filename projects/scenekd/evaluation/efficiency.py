"""What a cheap student in front of a dear teacher saves, and at which cost.

F_B, F_T: OPs of one sample by student and teacher, see :mod:`scenekd.flops`; N, N_TN: samples in all, and handed on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..flops import BITS_AT_ONCE, Operations
from .arrays import to_numpy


def gain_in_efficiency(student_flops: float, teacher_flops: float, n_total: int, n_teacher: int) -> float:
    """Relative saving against asking the teacher about every sample, after the student has converged.

    The student looks at all ``n_total`` samples and hands ``n_teacher`` of them on to the teacher:
    GiE = 1 − (F_student · N + F_teacher · N_teacher) / (F_teacher · N). The student's training is not in it.
    At most 1; negative where the pair costs more than the teacher alone.

    Args:
        student_flops, teacher_flops: cost of one sample, in the same unit; finite, student ≥ 0, teacher > 0.
        n_total: samples seen, > 0.
        n_teacher: samples handed on, 0…n_total.

    Raises:
        ValueError: an argument outside its range.
    """
    if not (math.isfinite(student_flops) and student_flops >= 0):
        raise ValueError(f"student_flops must be finite and not negative, got {student_flops}")
    if not (math.isfinite(teacher_flops) and teacher_flops > 0):
        raise ValueError(f"teacher_flops must be finite and positive, got {teacher_flops}")
    if not (math.isfinite(n_total) and n_total > 0):
        raise ValueError(f"n_total must be positive, got {n_total}")
    if not 0 <= n_teacher <= n_total:
        raise ValueError(f"n_teacher must lie in 0…n_total = {n_total}, got {n_teacher}")
    cost = student_flops * n_total + teacher_flops * n_teacher
    return 1 - cost / (teacher_flops * n_total)


@dataclass(frozen=True)
class TrainingCost:
    """Operations that the student's online training took, apart from GiE.

    Attributes:
        asked: samples about which the teacher was asked.
        passes: samples that went through the student forward and back, replayed ones each time.
        predictions: samples on which it was asked beside (predict-then-train, audits).
    """

    asked: int
    passes: int
    predictions: int = 0

    def operations(self, student: Operations, teacher: Operations) -> float:
        """FLOPs. The student trains as a float simulation, where a binary product costs a real one; forward and
        backward are taken as three forward passes, the backward pass being twice the forward one. Predictions are the
        student's OPs."""
        simulated = student.flops + student.bops
        return self.asked * teacher.ops + 3 * self.passes * simulated + self.predictions * student.ops


@dataclass(frozen=True)
class Gain:
    """What a cascade costs on a stream.

    Attributes:
        gie: see :func:`gain_in_efficiency`, in OPs. share_teacher: N_TN / N. cost_ratio: F_B / F_T. The three add up
            to 1.
        saved: OPs saved on the stream. training: FLOPs of the training.
        break_even: samples after which the savings have paid for the training; infinite where nothing is saved.
    """

    gie: float
    share_teacher: float
    cost_ratio: float
    saved: float
    training: float
    break_even: float


def cascade_gain(
    student: Operations,
    teacher: Operations,
    n_total: int,
    n_teacher: int,
    training: TrainingCost | None = None,
) -> Gain:
    """The gain of a converged student, and what its training took.

    Args:
        student, teacher: of one sample. n_total, n_teacher: N and N_TN.

    Raises:
        ValueError: as of :func:`gain_in_efficiency`.
    """
    gie = gain_in_efficiency(student.ops, teacher.ops, n_total, n_teacher)
    spent = training.operations(student, teacher) if training is not None else 0.0
    per_sample = gie * teacher.ops
    return Gain(
        gie,
        n_teacher / n_total,
        student.ops / teacher.ops,
        per_sample * n_total,
        spent,
        spent / per_sample if per_sample > 0 else math.inf,
    )


def bits_rule() -> str:
    """How binary operations enter a table, in words."""
    return (
        f"OPs = FLOPs + BOPs / {BITS_AT_ONCE} (XNOR-Net, Bi-Real Net); a multiply-accumulate is two operations of "
        "either kind; GiE = 1 − N_TN / N − F_B / F_T, F in OPs"
    )


def cascade_accuracy(student: Any, teacher: Any, sent: Any, labels: Any, outlier: Any) -> dict[str, float]:
    """Who is right on a stream, in percent; NaN where a group is empty.

    Keys: ``accuracy`` of the whole system (the teacher's answer where it was asked, the student's elsewhere), that of
    ``teacher_accuracy`` and ``student_accuracy`` alone, ``share_teacher``; ``agreement_inliers``, how often the student
    answers as the teacher on inliers; and of the gate ``outliers_sent`` and ``inliers_sent``.

    Args:
        student, teacher, labels: (N,) whole numbers, answers and truth. sent: (N,) bool, handed on to the teacher.
        outlier: (N,) bool, truth.

    Raises:
        ValueError: no samples, or lengths that differ.
    """
    columns = [to_numpy(values) for values in (student, teacher, sent, labels, outlier)]
    if not columns[0].size or any(c.ndim != 1 or c.shape != columns[0].shape for c in columns):
        raise ValueError(f"a cascade needs equally long lists of samples, got {[c.shape for c in columns]}")
    own, other, asked, truth, strange = columns
    asked, strange = asked.astype(bool), strange.astype(bool)
    answer = np.where(asked, other, own)
    return {
        "accuracy": _percent(answer == truth),
        "teacher_accuracy": _percent(other == truth),
        "student_accuracy": _percent(own == truth),
        "share_teacher": _percent(asked),
        "agreement_inliers": _percent((own == other)[~strange]),
        "outliers_sent": _percent(asked[strange]),
        "inliers_sent": _percent(asked[~strange]),
    }


def _percent(right: np.ndarray) -> float:
    return 100 * float(right.mean()) if right.size else math.nan
