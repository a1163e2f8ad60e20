"""Convolutions of ±1 with ±1, and the unit that networks of them are made of.

N: images; C: channels in; O: filters; H, W: input; H', W': output.

sign(x) is +1 for x ≥ 0 and −1 elsewhere, NaN included: zero is +1. A padded cell has the value 0, not a sign, as in
Bi-Real Net and ReActNet: it adds nothing to the sum. Products are summed as whole numbers and scaled afterwards, so
that a sum is exact in any order, and the bits of :mod:`.packed` reach the same values.

Sources: Bi-Real Net (Liu et al., ECCV 2018, section 3: the gradient of the sign, the shortcut a convolution); ReActNet
(Liu et al., ECCV 2020, section 4: RSign, RPReLU); XNOR-Net (Rastegari et al., ECCV 2016, section 3: the scales).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRADIENTS = ("quadratic", "clipped")
SCALINGS = ("weight", "xnor", "none")


def plus_minus(x: Tensor) -> Tensor:
    """+1 where x ≥ 0, −1 elsewhere, in the type of ``x``; without a gradient."""
    with torch.no_grad():  # written as numbers at once: `where` takes fifteen times as long on a CPU
        return torch.ge(x, 0, out=torch.empty_like(x)).mul_(2).sub_(1)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.quadratic = gradient == "quadratic"
        return plus_minus(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if not ctx.quadratic:
            return grads[0] * (x.abs() <= 1), None
        # 2 + 2x on [−1, 0) and 2 − 2x on [0, 1) are one hat
        return x.abs().mul_(-2).add_(2).clamp_(min=0).mul_(grads[0]), None


def binary_sign(x: Tensor, gradient: str = "quadratic") -> Tensor:
    """The sign of activations, any shape, with a gradient to train by.

    Args:
        gradient: ``quadratic``: of the piecewise quadratic approximation, 2 + 2x on [−1, 0), 2 − 2x on [0, 1), else 0
            (Bi-Real Net, equation 8); ``clipped``: straight through on [−1, 1], else 0.

    Raises:
        ValueError: another gradient.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}; got {gradient!r}")
    signs: Tensor = _Sign.apply(x, gradient)
    return signs


class _WeightSign(torch.autograd.Function):
    """sign(W), for a sum that is scaled by each filter's mean|W| afterwards. The gradient of the scaled weights, the
    scale held fixed, passes where |W| ≤ 1: what arrives here holds the scale as a factor, so it is divided out."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return plus_minus(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        weight, scale = ctx.saved_tensors
        # A filter of zeros has the scale 0 and no gradient to divide
        inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
        return grads[0] * inverse[:, None, None, None] * (weight.abs() <= 1), None


class BinaryConv2d(nn.Conv2d):
    """sign(x) convolved with mean|W|·sign(W): (N, C, H, W) → (N, O, H', W'), without bias or groups.

    Gradients: of the activations see :func:`binary_sign`; of the weights clipped straight through: that of the binary
    weights where |W| ≤ 1, else 0, the scale held fixed.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as of :class:`torch.nn.Conv2d`. A padded cell is 0.
        scaling: ``weight``: each filter times its mean|W|; ``xnor``: also each output cell times the mean of |x| over
            what the filter sees there, padding as 0 (XNOR-Net's K); ``none``: weights are ±1.
        gradient: of the activations' sign, see :func:`binary_sign`.

    Attributes:
        is_binary: its multiplications are of single bits; true of the class, for who counts operations.

    Raises:
        ValueError: an unknown scaling or gradient.
    """

    is_binary = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        scaling: str = "weight",
        gradient: str = "quadratic",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        if scaling not in SCALINGS:
            raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}; got {scaling!r}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}; got {gradient!r}")
        self.scaling, self.gradient = scaling, gradient

    def scale(self) -> Tensor:
        """Of each filter, (O,), without a gradient: mean|W|, or ones."""
        if self.scaling == "none":
            return self.weight.new_ones(self.out_channels).detach()
        return self.weight.detach().abs().mean((1, 2, 3))

    def binary_weight(self) -> Tensor:
        """(O, C, R, S): each filter has the two values ± its scale; with the gradient."""
        scale = self.scale()
        signs: Tensor = _WeightSign.apply(self.weight, scale)
        return signs * scale[:, None, None, None]

    def input_scale(self, x: Tensor) -> Tensor | None:
        """XNOR-Net's K (N, 1, H', W') of the input, or None without it."""
        if self.scaling != "xnor":
            return None
        size: Any = self.kernel_size
        pad: Any = self.padding
        return F.avg_pool2d(x.abs().mean(1, keepdim=True), size, self.stride[0], pad)

    def forward(self, input: Tensor) -> Tensor:
        """The scaled sums of an input of any values."""
        scale = self.scale()
        signs: Tensor = _WeightSign.apply(self.weight, scale)
        y = F.conv2d(binary_sign(input, self.gradient), signs, None, self.stride, self.padding)
        y = y * scale[:, None, None]
        cells = self.input_scale(input)
        return y if cells is None else y * cells

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{super().extra_repr()}, scaling={self.scaling}, gradient={self.gradient}"


class RealConv2d(nn.Conv2d):
    """The real-valued twin of :class:`BinaryConv2d`: the same weight; ReLU takes the place of the sign."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, O, H', W')."""
        return super().forward(F.relu(input))


class LearnableShift(nn.Module):
    """x + b per channel; before a sign it is ReActNet's RSign, whose threshold is −b."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        return x + self.bias[:, None, None]


class RPReLU(nn.Module):
    """PReLU(x + before) + after, per channel (ReActNet, equation 5; its γ is −before). Slopes begin at 0.25."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.after = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        return F.prelu(x + self.before[:, None, None], self.slope) + self.after[:, None, None]


class AffineBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose evaluation is two rounded steps, y · scale + bias, which any other code can repeat."""

    def folded(self) -> tuple[Tensor, Tensor]:
        """The scale and the bias (C,) of evaluation."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W)."""
        if self.training:
            return super().forward(input)
        scale, bias = self.folded()
        return input * scale[:, None, None] + bias[:, None, None]


class ConvUnit(nn.Module):
    """[shift] → convolution → BN → [+ shortcut] → [RPReLU] → [pool]: what is between two shortcuts of a network.

    Args:
        channels_in, channels: C, O. kernel_size, stride: of the convolution; padding keeps the size at stride 1.
        binary: :class:`BinaryConv2d`; else its twin, :class:`RealConv2d`. The parameters are the same.
        shortcut: add the input; where the stride or the channels differ, after a mean over 2 × 2 cells (stride 2), a
            real 1 × 1 convolution and BN.
        shifts: a learnable shift before the sign and RPReLU at the end, as in ReActNet; else neither, as in Bi-Real
            Net.
        pool: largest of 2 × 2 cells at the end.
        scaling, gradient: of :class:`BinaryConv2d`.

    Raises:
        ValueError: a shortcut across a stride other than 1 or 2; unknown options.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        binary: bool = True,
        shortcut: bool = True,
        shifts: bool = False,
        pool: bool = False,
        scaling: str = "weight",
        gradient: str = "quadratic",
    ) -> None:
        super().__init__()
        if shortcut and stride not in (1, 2):
            raise ValueError(f"a unit with a shortcut has stride 1 or 2, got {stride}")
        size = (channels_in, channels, kernel_size, stride, kernel_size // 2)
        self.shift = LearnableShift(channels_in) if shifts else None
        self.conv: nn.Conv2d = BinaryConv2d(*size, scaling, gradient) if binary else RealConv2d(*size)
        self.norm = AffineBatchNorm2d(channels)
        self.adds_input = shortcut
        self.shortcut = (
            _downsample(channels_in, channels, stride)
            if shortcut and (stride > 1 or channels != channels_in)
            else None
        )
        self.act = RPReLU(channels) if shifts else None
        self.pool = pool

    def side(self, x: Tensor) -> Tensor | None:
        """What is added to the normalised sums, (N, O, H', W'), or None."""
        if not self.adds_input:
            return None
        return x if self.shortcut is None else self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, O, H', W')."""
        y: Tensor = self.norm(self.conv(x if self.shift is None else self.shift(x)))
        side = self.side(x)
        if side is not None:
            y = y + side
        if self.act is not None:
            y = self.act(y)
        return F.max_pool2d(y, 2) if self.pool else y


def _downsample(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    mean = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
    conv = nn.Conv2d(channels_in, channels, 1, bias=False)
    return nn.Sequential(*mean, conv, nn.BatchNorm2d(channels))
