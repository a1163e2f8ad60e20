"""Which positions of two maps a distillation loss compares, and how it averages over them.

N: images; C: classes or channels, axis 1; …: any number of spatial axes, also none; H, W: height and width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .reduce import at_least_float32, safe_count

IGNORE_INDEX = 255


def valid_positions(labels: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Where ``labels`` (N, …) tell a class, bool (N, …): all but void pixels."""
    return labels != ignore_index


def labelled_positions(labels: Tensor, logits: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """:func:`valid_positions` of labels that are held against ``logits`` (N, C, …).

    Raises:
        ValueError: the labels are no integers, have another shape, or name a class that is not there.
    """
    if labels.shape != (*logits.shape[:1], *logits.shape[2:]) or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers (N, …) for logits {tuple(logits.shape)}, "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    counted = valid_positions(labels, ignore_index=ignore_index)
    if (counted & ((labels < 0) | (labels >= logits.shape[1]))).any():
        raise ValueError(f"labels must be in 0…{logits.shape[1] - 1} or {ignore_index}")
    return counted


def as_pair(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, *, same_channels: bool = True
) -> tuple[Tensor, Tensor]:
    """Student and teacher in one precision, float32 at least, the teacher without gradient.

    Args:
        student, teacher: (N, C, …).
        valid: (N, …) bool, the positions that count; None for all. What stands elsewhere may be anything, NaN, too.
        same_channels: whether both must have the same C.

    Raises:
        ValueError: shapes do not fit.
    """
    shapes = [(s if same_channels else (s[0], *s[2:])) for s in (student.shape, teacher.shape)]
    if student.ndim < 2 or teacher.ndim != student.ndim or tuple(shapes[0]) != tuple(shapes[1]):
        raise ValueError(
            f"student and teacher must both be (N, C, …), got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student = at_least_float32(student)
    teacher = teacher.detach().to(student.dtype)
    if valid is None:
        return student, teacher
    if valid.shape != (student.shape[0], *student.shape[2:]) or valid.is_floating_point():
        raise ValueError(f"valid must be bool (N, …) for {tuple(student.shape)}, got {tuple(valid.shape)}")
    void = ~valid.bool()[:, None]
    return student.masked_fill(void, 0), teacher.masked_fill(void, 0)


def mean_over(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of ``values`` (N, …) over the positions that count; none: 0, with a gradient of zeros."""
    if valid is None:
        return values.mean()
    return values.masked_fill(~valid, 0).sum() / safe_count(valid.sum())


def half_squared_distance(a: Tensor, b: Tensor, *, eps: float = 1e-8) -> Tensor:
    """½ ‖a/‖a‖ − b/‖b‖‖² over the last axis: 1 − cos(a, b), and exactly 0, without gradient, where a = b.

    A vector shorter than ``eps`` is divided by ``eps``: a pair of zeros has distance 0, a zero and a unit vector ½.
    """
    return (F.normalize(a, dim=-1, eps=eps) - F.normalize(b, dim=-1, eps=eps)).square().sum(dim=-1) / 2


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N, C, H, W) maps at another (height, width), bilinear, pixel centres aligned; themselves where it is theirs."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(at_least_float32(maps), tuple(size), mode="bilinear", align_corners=False)


def resized_labels(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N, H, W) labels, or a bool mask, at another (height, width), by the nearest pixel's centre."""
    if tuple(labels.shape[1:]) == tuple(size):
        return labels
    found = F.interpolate(labels[:, None].float(), tuple(size), mode="nearest-exact")[:, 0]
    return found.to(labels.dtype)
