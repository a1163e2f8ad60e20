"""Distillation losses between the logits of a student and of a teacher.

N: images; C: classes, axis 1; …: any number of spatial axes, also none.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .reduce import at_least_float32, safe_count

DIRECTIONS = ("teacher_student", "student_teacher")


def hinton_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    alpha: float,
    labels: Tensor | None = None,
    ignore_index: int = 255,
    direction: str = "teacher_student",
    distill_ignored: bool = False,
) -> Tensor:
    """α · T² · KL + (1 − α) · CE; without labels α · T² · KL (Hinton et al. 2015, section 2).

    KL is that of the softmax at temperature T, summed over classes, mean over positions. CE is that of the
    student at T = 1 with the labels, mean over the positions that are not ignored.

    Args:
        student_logits, teacher_logits: (N, C, …); no gradient flows into the teacher's.
        temperature: T > 0.
        alpha: in 0…1.
        labels: (N, …) integer in 0…C−1 or ``ignore_index``.
        direction: ``teacher_student`` is KL(teacher‖student), Hinton's; ``student_teacher`` the reverse.
        distill_ignored: let the KL term see positions whose label is ``ignore_index``, too.

    Raises:
        ValueError: shapes do not fit, or an argument is outside its range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0…1, got {alpha}")
    divergence = divergence_map(student_logits, teacher_logits, temperature=temperature, direction=direction)
    student = at_least_float32(student_logits)
    factor = alpha * temperature**2
    if labels is None:
        return factor * divergence.mean()

    counted = _counted(labels, student, ignore_index)
    cross_entropy = F.cross_entropy(student, labels.long(), ignore_index=ignore_index, reduction="sum")
    cross_entropy = cross_entropy / safe_count(counted.sum())
    if distill_ignored:
        kl = divergence.mean()
    else:
        kl = divergence.masked_fill(~counted, 0).sum() / safe_count(counted.sum())
    return factor * kl + (1 - alpha) * cross_entropy


def divergence_map(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    direction: str = "teacher_student",
) -> Tensor:
    """KL of every position at temperature T, summed over classes, (N, …); arguments and errors as in
    :func:`hinton_kd`."""
    _check(student_logits, teacher_logits, temperature, direction)
    student = at_least_float32(student_logits)
    teacher = teacher_logits.detach().to(student.dtype)
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    if direction == "student_teacher":
        log_student, log_teacher = log_teacher, log_student
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)


def _counted(labels: Tensor, student: Tensor, ignore_index: int) -> Tensor:
    """Which positions carry a label, bool (N, …)."""
    if labels.shape != (*student.shape[:1], *student.shape[2:]) or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers (N, …) for logits {tuple(student.shape)}, "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    counted = labels != ignore_index
    if (counted & ((labels < 0) | (labels >= student.shape[1]))).any():
        raise ValueError(f"labels must be in 0…{student.shape[1] - 1} or {ignore_index}")
    return counted


def _check(student: Tensor, teacher: Tensor, temperature: float, direction: str) -> None:
    if student.ndim < 2 or student.shape != teacher.shape:
        raise ValueError(
            f"logits must both be (N, C, …), got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")
