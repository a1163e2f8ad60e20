"""Decoupled knowledge distillation: the target class and the others are taught apart.

N: images; C: classes, axis 1; …: any number of spatial axes, also none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .positions import as_pair, labelled_positions, mean_over


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    ignore_index: int = 255,
) -> Tensor:
    """T² · (α · TCKD + β · NCKD), mean over labelled positions; a scalar (Zhao et al., CVPR 2022).

    TCKD is the KL between (p, 1 − p), p the probability of the labelled class; NCKD the KL between the distributions
    over the other classes. KL = TCKD + (1 − p_teacher) · NCKD is Hinton's: DKD frees the second from the teacher's
    certainty. On logits of pixels and on those of whole images.

    The defaults are those of the authors' code, which takes β = 2 for some pairs of networks, and lets the weight rise
    over the first 20 epochs.

    Args:
        student_logits, teacher_logits: (N, C, …), C ≥ 2; no gradient flows into the teacher's.
        labels: (N, …) integer in 0…C−1 or ``ignore_index``.
        temperature: T > 0. alpha, beta: ≥ 0.

    Raises:
        ValueError: shapes do not fit, or an argument is outside its range.
    """
    counted = labelled_positions(labels, student_logits, ignore_index=ignore_index)
    parts = decoupled_map(
        student_logits,
        teacher_logits,
        labels.masked_fill(~counted, 0),
        temperature=temperature,
        valid=counted,
    )
    _check_weights(alpha, beta)
    return temperature**2 * mean_over(alpha * parts[0] + beta * parts[1], counted)


def decoupled_map(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of every position, both (N, …), without T². Arguments as in :func:`decoupled_kd`; ``labels``
    are in 0…C−1 everywhere, and what is found where not ``valid`` means nothing.

    Raises:
        ValueError: shapes do not fit, C < 2, or a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    student, teacher = as_pair(student_logits, teacher_logits, valid)
    if student.shape[1] < 2:
        raise ValueError("decoupled distillation needs two classes or more")
    target = F.one_hot(labels.long(), student.shape[1]).bool().movedim(-1, 1)
    (hit_s, miss_s, others_s), (hit_t, miss_t, others_t) = (
        _split(logits / temperature, labels, target) for logits in (student, teacher)
    )
    of_target = hit_t.exp() * (hit_t - hit_s) + miss_t.exp() * (miss_t - miss_s)
    of_others = (others_t.exp().masked_fill(target, 0) * (others_t - others_s)).sum(dim=1)
    return of_target, of_others


def _split(logits: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p of the target, log of all others together, both (N, …), and (N, C, …) log p within the others (of the
    target itself a finite number without meaning)."""
    total = logits.logsumexp(dim=1)
    others = logits.masked_fill(target, -torch.inf).logsumexp(dim=1)
    hit = logits.gather(1, labels.long()[:, None])[:, 0]
    return hit - total, others - total, logits - others[:, None]


def _check_weights(alpha: float, beta: float) -> None:
    if not (alpha >= 0 and beta >= 0):
        raise ValueError(f"alpha and beta must not be negative, got {alpha} and {beta}")
