"""Distillation losses between the logits of a student and of a teacher, position by position.

N: images; C: classes, axis 1; …: any number of spatial axes, also none.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .positions import as_pair, labelled_positions, mean_over
from .reduce import at_least_float32, safe_count
from .soft_label import soft_label_cross_entropy

DIRECTIONS = ("teacher_student", "student_teacher")
REDUCTIONS = ("positions", "elements")


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
    reduction: str = "positions",
) -> Tensor:
    """α · T² · KL + (1 − α) · CE; without labels α · T² · KL (Hinton et al. 2015, section 2).

    KL is that of the softmax at temperature T, summed over classes, mean over positions. CE is that of the
    student at T = 1 with the labels, mean over the positions that are not ignored. With labels, α = 0 is CE alone,
    to the bit, and the teacher is not looked at.

    Args:
        student_logits, teacher_logits: (N, C, …); no gradient flows into the teacher's.
        temperature: T > 0.
        alpha: in 0…1.
        labels: (N, …) integer in 0…C−1 or ``ignore_index``.
        direction: ``teacher_student`` is KL(teacher‖student), Hinton's; ``student_teacher`` the reverse.
        distill_ignored: let the KL term see positions whose label is ``ignore_index``, too.
        reduction: of KL. ``elements`` divides it by C, too: torch's ``reduction="mean"``, a mean over all elements,
            which some implementations take; 21 classes then teach with a 21st of the weight.

    Raises:
        ValueError: shapes do not fit, or an argument is outside its range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0…1, got {alpha}")
    check_options(temperature, direction, reduction)
    valid = None
    if labels is not None:
        valid = labelled_positions(labels, student_logits, ignore_index=ignore_index)
        cross_entropy = label_cross_entropy(student_logits, labels, ignore_index=ignore_index)
        if alpha == 0:
            as_pair(student_logits, teacher_logits)
            return cross_entropy
    kl = tempered_kl(
        student_logits,
        teacher_logits,
        temperature=temperature,
        direction=direction,
        reduction=reduction,
        valid=None if distill_ignored else valid,
    )
    return alpha * kl if labels is None else alpha * kl + (1 - alpha) * cross_entropy


def tempered_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    direction: str = "teacher_student",
    reduction: str = "positions",
    valid: Tensor | None = None,
) -> Tensor:
    """T² · KL, mean over the positions that count; a scalar. Arguments and errors as in :func:`hinton_kd`.

    Args:
        valid: (N, …) bool, the positions that count; None for all. None at all: 0, with a gradient of zeros.
    """
    check_options(temperature, direction, reduction)
    student, teacher = as_pair(student_logits, teacher_logits, valid)
    divergence = divergence_map(student, teacher, temperature=temperature, direction=direction)
    if reduction == "elements":
        divergence = divergence / student.shape[1]
    return temperature**2 * mean_over(divergence, valid)


def label_cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Cross-entropy with integer labels (N, …), mean over those that are not ignored: torch's to the bit, but 0, with
    a gradient of zeros, where all are."""
    logits = at_least_float32(logits)
    total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total / safe_count((labels != ignore_index).sum())


def divergence_map(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    direction: str = "teacher_student",
) -> Tensor:
    """KL of every position at temperature T, summed over classes, (N, …); arguments and errors as in
    :func:`hinton_kd`."""
    check_options(temperature, direction)
    student, teacher = as_pair(student_logits, teacher_logits)
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    if direction == "student_teacher":
        log_student, log_teacher = log_teacher, log_student
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)


def pixel_wise_kd(student_logits: Tensor, teacher_logits: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Cross-entropy with the teacher's softmax at T = 1, mean over positions; a scalar (Liu et al., CVPR 2019,
    the pixel-wise term, there a KL, which differs by the teacher's entropy alone).

    The authors' code divides the sum by the positions of one image: its weight of 10, with 8 images, is here 80.

    Args:
        student_logits, teacher_logits: (N, C, …); no gradient flows into the teacher's.
        valid: (N, …) bool, the positions that count; None for all. None at all: 0, with a gradient of zeros.

    Raises:
        ValueError: shapes do not fit.
    """
    as_pair(student_logits, teacher_logits)
    flat = [logits.reshape(*logits.shape[:2], -1, 1) for logits in (student_logits, teacher_logits)]
    mask = None if valid is None else valid.reshape(len(valid), -1, 1)
    return soft_label_cross_entropy(*flat, target_is="logits", valid=mask)


def check_options(temperature: float, direction: str, reduction: str = REDUCTIONS[0]) -> None:
    """Refuse options of :func:`hinton_kd` outside their ranges.

    Raises:
        ValueError: one is.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
