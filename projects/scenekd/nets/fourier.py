"""ResNet of fast Fourier convolutions (Chi, Jiang & Mu, NeurIPS 2020): every unit sees its neighbourhood and, through
the spectrum, the whole picture at once. LaMa (Suvorov et al., WACV 2022) fills holes with the same units.

N: pictures; L, G: local and global channels, side by side in one tensor, local first; H, W: size of a map.
Left out of the original are the second, quartered spectral unit (as LaMa leaves it out) and the split of a 1×1
shortcut into branches: here it is one convolution over all channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FourierUnit(nn.Module):
    """Real 2-D Fourier transform (orthonormal), 1×1 convolution over real and imaginary parts, normalisation, ReLU, and
    back: (N, G, H, W) to the same. A value of the result hangs on every pixel.

    The 2·G channels of the spectrum are the G real parts, then the G imaginary parts.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        # Half precision has no transform of arbitrary sizes.
        exact = x if x.dtype == torch.float64 else x.float()
        spectrum = torch.fft.rfft2(exact, norm="ortho")
        mixed = self.relu(self.norm(self.conv(torch.cat([spectrum.real, spectrum.imag], dim=1))))
        real, imaginary = mixed.to(exact.dtype).chunk(2, dim=1)
        changed: Tensor = torch.fft.irfft2(torch.complex(real, imaginary), s=size, norm="ortho")
        return changed.to(x.dtype)


class SpectralTransform(nn.Module):
    """1×1 convolution to half the channels, a :class:`FourierUnit` beside the identity, 1×1 convolution.

    Args:
        stride: 1, or 2: means of 2 × 2 pixels first, rounded up at the border.
    """

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        half = max(channels // 2, 1)
        self.stride = stride
        self.reduce = nn.Sequential(
            nn.Conv2d(channels_in, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()
        )
        self.fourier = FourierUnit(half)
        self.expand = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        x = self.reduce(x)
        changed: Tensor = self.expand(x + self.fourier(x))
        return changed


class FourierConv2d(nn.Module):
    """k×k convolutions local → local, local → global and global → local, and a :class:`SpectralTransform` global →
    global.

    Args:
        channels_in, channels: of both parts together. ratio: the global part of them, above 0 and below 1.
        stride, dilation: of the convolutions; the spectral part takes the same steps.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        ratio: float = 0.5,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.split_in, split = local_channels(channels_in, ratio), local_channels(channels, ratio)

        def conv(source: int, target: int) -> nn.Conv2d:
            padding = dilation * (kernel // 2)
            return nn.Conv2d(source, target, kernel, stride, padding, dilation, bias=False)

        self.local_local = conv(self.split_in, split)
        self.local_global = conv(self.split_in, channels - split)
        self.global_local = conv(channels_in - self.split_in, split)
        self.global_global = SpectralTransform(channels_in - self.split_in, channels - split, stride)

    def forward(self, x: Tensor) -> Tensor:
        near, whole = x[:, : self.split_in], x[:, self.split_in :]
        local = self.local_local(near) + self.global_local(whole)
        return torch.cat([local, self.local_global(near) + self.global_global(whole)], dim=1)


def local_channels(channels: int, ratio: float) -> int:
    """How many of ``channels`` are local: at least one of either kind.

    Raises:
        ValueError: a ratio that is not between 0 and 1, or a single channel.
    """
    if not 0 < ratio < 1 or channels < 2:
        raise ValueError(
            f"the global share must be above 0 and below 1 of 2 or more channels, got {ratio} of {channels}"
        )
    return channels - min(max(round(channels * ratio), 1), channels - 1)


class FourierBlock(nn.Module):
    """ResNet's basic unit of two :class:`FourierConv2d`."""

    def __init__(
        self, channels_in: int, channels: int, *, ratio: float, stride: int, dilations: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv1 = FourierConv2d(channels_in, channels, ratio=ratio, stride=stride, dilation=dilations[0])
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = FourierConv2d(channels, channels, ratio=ratio, dilation=dilations[1])
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class FourierTrunk(nn.Module):
    """ResNet-18's or -34's plan with every 3×3 convolution a :class:`FourierConv2d`; the first is a plain 7×7.

    Args:
        depths: units of the four stages. width: channels of the first stage; each of the next has twice as many.
        ratio: global share of the channels. output_stride: 32, 16 or 8, as of
            :class:`.trunks.ResNetTrunk`; the spectral parts need no dilation.
    """

    def __init__(
        self, depths: Sequence[int], *, width: int = 64, ratio: float = 0.5, output_stride: int = 32
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.channels = [width << stage for stage in range(4)]
        self.stages = nn.ModuleList()
        source, dilation = width, 1
        for stage, (depth, channels) in enumerate(zip(depths, self.channels)):
            stride = 2 if stage and output_stride >= 4 << stage else 1
            before, dilation = dilation, dilation * (2 // stride if stage else 1)
            units = []
            for place in range(depth):
                first = place == 0
                units.append(
                    FourierBlock(
                        source if first else channels,
                        channels,
                        ratio=ratio,
                        stride=stride if first else 1,
                        dilations=(before if first else dilation, dilation),
                    )
                )
            self.stages.append(nn.Sequential(*units))
            source = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8, 16, 32 (none above the output stride) with ``self.channels`` channels."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
