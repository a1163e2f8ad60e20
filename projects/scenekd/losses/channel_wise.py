"""Channel-wise distillation (CWD): where a channel looks, not how strongly.

N: images; C: channels; H, W: size of the maps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .positions import as_pair
from .reduce import safe_count


def channel_wise_kd(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, valid: Tensor | None = None
) -> Tensor:
    """T² / C · Σ_channels KL(teacher‖student) of the softmax over space at T, mean over images; a scalar (Shu et al.,
    ICCV 2021), as in the authors' code, which runs it on logits with T = 4 and a weight of 3.

    Args:
        student, teacher: (N, C, H, W) logits or features; no gradient flows into the teacher's.
        temperature: T > 0.
        valid: (N, H, W) bool, the positions that count; None for all. An image without any is left out.

    Raises:
        ValueError: shapes do not fit, or a temperature that is not positive.
    """
    values, count = channel_wise_sums(student, teacher, temperature=temperature, valid=valid)
    return values.sum() / safe_count(count.sum())


def channel_wise_sums(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of every image, (N,), and (N,) bool, where something is valid; as in :func:`channel_wise_kd`."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    student, teacher = as_pair(student, teacher, valid)
    if student.ndim < 3:
        raise ValueError(f"channel-wise distillation needs maps (N, C, H, W), got {tuple(student.shape)}")
    rows, wanted = student.flatten(2), teacher.flatten(2)
    count = student.new_ones(len(student), dtype=torch.bool)
    void = None
    if valid is not None:
        void = ~valid.reshape(len(valid), 1, -1)
        count = ~void.all(dim=2)[:, 0]
        # Finite, so that the void of both cancels; an image that is void throughout becomes uniform in both.
        low = torch.finfo(rows.dtype).min / 4
        rows, wanted = rows.masked_fill(void, low), wanted.masked_fill(void, low)
    values: Tensor = _SpatialDivergence.apply(rows, wanted, temperature)
    return values * (temperature**2 / student.shape[1]), count


class _SpatialDivergence(torch.autograd.Function):
    """Σ_channels KL(teacher‖student) of softmax(· / T) over the last axis of (N, C, P) rows, (N,).

    Its gradient, (p_student − p_teacher) / T, is made in the forward pass, in place: nothing else is kept, and no
    more than three tensors of the rows' size live at once.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Arguments as above."""
        p_teacher = torch.log_softmax(teacher / temperature, dim=-1)
        p_student = torch.log_softmax(student / temperature, dim=-1)
        terms = p_teacher - p_student
        terms.mul_(p_teacher.exp_())
        divergence = terms.sum(dim=(1, 2))
        del terms
        ctx.save_for_backward(p_student.exp_().sub_(p_teacher).div_(temperature))
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """The kept gradient times what comes from above, per image."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None, None], None, None
