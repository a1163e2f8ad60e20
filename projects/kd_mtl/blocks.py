"""The layers after the trunk: bottleneck units of the downscale stream, ResSkip of the upscale stream.

Every convolution here has no bias and is followed by batch normalisation, as in ResNet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.nets.norms import norm_layer

TRUNK_BLOCKS = 4  # block1 … block4 are the trunk's


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, *, norm: str, stride: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution, batch normalisation and, unless ``relu`` is False, ReLU."""
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        norm_layer(norm, out_channels),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class BottleneckUnit(nn.Module):
    """1×1 → 3×3 (with the stride) → 1×1 beside a shortcut, which is a 1×1 convolution where stride or
    channels differ and the identity elsewhere (He et al., CVPR 2016)."""

    def __init__(
        self, in_channels: int, inner_channels: int, out_channels: int, *, stride: int, norm: str
    ) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv_norm(in_channels, out_channels, 1, stride=stride, norm=norm, relu=False)
        self.residual = nn.Sequential(
            conv_norm(in_channels, inner_channels, 1, norm=norm),
            conv_norm(inner_channels, inner_channels, 3, stride=stride, norm=norm),
            conv_norm(inner_channels, out_channels, 1, norm=norm, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.residual(x))


def extra_block(in_channels: int, inner_channels: int, out_channels: int, *, norm: str) -> nn.Sequential:
    """A block of the downscale stream: two bottleneck units, the first with stride 2."""
    return nn.Sequential(
        BottleneckUnit(in_channels, inner_channels, out_channels, stride=2, norm=norm),
        BottleneckUnit(out_channels, inner_channels, out_channels, stride=1, norm=norm),
    )


class ResSkip(nn.Module):
    """A block of the upscale stream: the deeper map, resized, plus a residual that sees it beside the skip.

    Args:
        in_channels, skip_channels: of the deeper map and of the downscale stream's map at the new size.
        channels: of the output (512 in the paper). neck_channels: of the residual's middle (128).
        resize: ``bilinear`` or ``nearest``, both with half-pixel centres.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        *,
        channels: int,
        neck_channels: int,
        norm: str,
        resize: str = "bilinear",
    ) -> None:
        super().__init__()
        if resize not in ("bilinear", "nearest"):
            raise ValueError(f"resize must be bilinear or nearest, got {resize!r}")
        self.resize = resize if resize == "bilinear" else "nearest-exact"
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != channels:
            self.shortcut = conv_norm(in_channels, channels, 1, norm=norm, relu=False)
        self.residual = nn.Sequential(
            conv_norm(in_channels + skip_channels, neck_channels, 1, norm=norm),
            conv_norm(neck_channels, neck_channels, 3, norm=norm),
            conv_norm(neck_channels, channels, 1, norm=norm, relu=False),
        )

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Both (N, channels, h, w) at the skip's size: the output, and the shortcut it was made from."""
        resized = F.interpolate(x, size=skip.shape[-2:], mode=self.resize)
        shortcut = self.shortcut(resized)
        output = F.relu(shortcut + self.residual(torch.cat((resized, skip), dim=1)))
        return output, shortcut


class Streams(nn.Module):
    """The downscale stream after the trunk, and the upscale stream from its deepest block.

    Args:
        trunk_channels: of block1 … block4.
        num_blocks: blocks of the downscale stream, the trunk's four included.
        num_skips: blocks of the upscale stream; the last one stands beside block (num_blocks − num_skips).
        block_channels: (inner, outer) of the extra blocks. The others: see :class:`ResSkip`.
    """

    def __init__(
        self,
        trunk_channels: Sequence[int],
        *,
        num_blocks: int,
        num_skips: int,
        block_channels: Sequence[int],
        channels: int,
        neck_channels: int,
        norm: str,
        resize: str,
    ) -> None:
        super().__init__()
        inner, outer = block_channels
        widths = [*trunk_channels, *[outer] * (num_blocks - TRUNK_BLOCKS)]
        self.blocks = nn.ModuleList(
            extra_block(widths[i - 1], inner, outer, norm=norm) for i in range(TRUNK_BLOCKS, num_blocks)
        )
        self.skips = nn.ModuleList()  # deepest first
        for i in range(num_skips):
            self.skips.append(
                ResSkip(
                    widths[-1] if i == 0 else channels,
                    widths[-2 - i],
                    channels=channels,
                    neck_channels=neck_channels,
                    norm=norm,
                    resize=resize,
                )
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, trunk_maps: list[Tensor]) -> list[Tensor]:
        """The prediction maps, each (N, channels, h, w), finest first; the last is pool6, the 1×1 mean of the
        first upscale block's shortcut."""
        downscale = list(trunk_maps)
        for block in self.blocks:
            downscale.append(block(downscale[-1]))
        x = downscale.pop()
        maps: list[Tensor] = []
        for skip in self.skips:
            x, shortcut = skip(x, downscale.pop())
            if not maps:
                maps.append(shortcut.mean(dim=(2, 3), keepdim=True))
            maps.append(x)
        return [*maps[:0:-1], maps[0]]
