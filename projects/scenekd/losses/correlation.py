"""Distillation of correlations (DIST): a student need only order classes, and pixels, as its teacher does.

N: images; C: classes, axis 1; …: any number of spatial axes, also none; G: groups; P: positions of a group.
"""

from __future__ import annotations

from torch import Tensor

from .positions import as_pair, half_squared_distance
from .reduce import safe_count

OVER = ("batch", "image")


def correlation_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    valid: Tensor | None = None,
    over: str = "batch",
) -> Tensor:
    """T² · (β · inter + γ · intra); a scalar (Huang et al., NeurIPS 2022).

    Both are 1 − Pearson's r between the probabilities, softmax at T, of student and teacher: inter along the classes
    of a position, mean over positions; intra along the positions for a class, mean over classes. 1 − r is computed as
    half the squared distance of the standardised vectors, which is 0 to the bit at equality. Where one of the two does
    not vary at all it is ½, where neither does 0; in the authors' code both are 1. There, intra correlates the
    positions of the batch together, void among them.

    Args:
        student_logits, teacher_logits: (N, C, …); no gradient flows into the teacher's.
        temperature: T > 0. beta, gamma: ≥ 0.
        valid: (N, …) bool, the positions that count; None for all. None at all: 0, with a gradient of zeros.
        over: which positions intra correlates: those of the ``batch`` together, as the paper does, or those of each
            ``image`` alone, mean over images.

    Raises:
        ValueError: shapes do not fit, or an argument is outside its range.
    """
    values, count = correlation_sums(
        student_logits,
        teacher_logits,
        temperature=temperature,
        beta=beta,
        gamma=gamma,
        valid=valid,
        over=over,
    )
    return values.sum() / safe_count(count.sum())


def correlation_sums(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    valid: Tensor | None = None,
    over: str = "image",
) -> tuple[Tensor, Tensor]:
    """The loss of every group, (G,), 0 where nothing is valid, and (G,) bool, where something is; arguments and errors
    as in :func:`correlation_kd`. ``batch`` is one group, ``image`` N."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not (beta >= 0 and gamma >= 0):
        raise ValueError(f"beta and gamma must not be negative, got {beta} and {gamma}")
    if over not in OVER:
        raise ValueError(f"over must be one of {OVER}, got {over!r}")
    student, teacher = as_pair(student_logits, teacher_logits, valid)
    counted = student.new_ones(student[:, 0].shape).bool() if valid is None else valid.bool()
    counted = counted.reshape(1 if over == "batch" else len(counted), -1)
    p, q = (_grouped((logits / temperature).softmax(dim=1), over) for logits in (student, teacher))

    inter = half_squared_distance(_centred(p), _centred(q))
    inter = inter.masked_fill(~counted, 0).sum(dim=1) / safe_count(counted.sum(dim=1))
    p, q = (_centred(values.transpose(1, 2), counted[:, None]) for values in (p, q))
    intra = half_squared_distance(p, q).mean(dim=1)
    return temperature**2 * (beta * inter + gamma * intra), counted.any(dim=1)


def _grouped(values: Tensor, over: str) -> Tensor:
    """(G, P, C) of (N, C, …)."""
    rows = values.flatten(2) if values.ndim > 2 else values[..., None]
    rows = rows.transpose(1, 2)
    return rows.reshape(1, -1, rows.shape[-1]) if over == "batch" else rows


def _centred(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Values minus their mean along the last axis; 0 where they do not count."""
    if counted is None:
        return values - values.mean(dim=-1, keepdim=True)
    kept = values.masked_fill(~counted, 0)
    mean = kept.sum(dim=-1, keepdim=True) / safe_count(counted.sum(dim=-1, keepdim=True))
    return (kept - mean).masked_fill(~counted, 0)
