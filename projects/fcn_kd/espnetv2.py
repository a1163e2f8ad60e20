"""ESPNetv2 for segmentation, of any scale, under the parameter names of its authors' weight files.

Encoder: Mehta et al., "ESPNetv2", CVPR 2019 (section 3.1 the EESP unit, 3.2 the strided one, table 1 the network).
Decoder: Mehta et al., "DiCENet", TPAMI 2020 (efficient pyramid pooling).

    image → level1 → level2_0 → level3_0, level3 → level4_0, level4     strides 2, 4, 8, 16
              ↓         ↓             ↓                ↓
            dec_l4 ← dec_l3    ←   dec_l2      ←    dec_l1              pyramid pooling, each enlarged and added

B: images; K: outputs; h, w: a map's size; n: channels of one branch.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BRANCHES = 4  # of an EESP unit
UNITS = (3, 7)  # after the strided ones of level 3 and level 4
# Dilations of the branches: receptive fields of 3, 5, 7, 9 pixels, but at the coarsest level none beyond 7.
DILATIONS, DILATIONS_COARSE = (1, 2, 3, 4), (1, 1, 2, 3)
DECODER_CHANNELS = (64, 48, 32)  # of the first three decoder levels
MAX_POOLED_CHANNELS = 16  # in a pyramid pooling; fewer where there are few outputs
PYRAMID = (2.0, 1.5, 1.0, 0.5, 0.1)  # sizes of the map in a pyramid pooling
MIN_PYRAMID_SIDE = 5
SCALES = (0.5, 1.0, 1.5, 2.0)


def widths(scale: float) -> tuple[int, int, int, int]:
    """Channels of the encoder's levels; the first does not grow beyond 32 (table 1)."""
    base = math.ceil(32 * scale / BRANCHES) * BRANCHES
    return (min(base, 32), 2 * base, 4 * base, 8 * base)


class Unit(nn.Module):
    """Convolution without bias, batch normalisation and PReLU, of which the last two may be absent."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.act = nn.PReLU(out_channels) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


def _norm_act(channels: int, first: str = "0", second: str = "1") -> nn.Sequential:
    return nn.Sequential(OrderedDict({first: nn.BatchNorm2d(channels), second: nn.PReLU(channels)}))


class EESP(nn.Module):
    """Reduce by grouped 1×1, one dilated depth-wise 3×3 for each branch, each added to the one before (hierarchical
    feature fusion), merged by grouped 1×1; with stride 1 beside the identity."""

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, dilations: tuple[int, ...] = DILATIONS
    ) -> None:
        super().__init__()
        n = channels // BRANCHES
        self.proj_1x1 = Unit(in_channels, n, 1, groups=BRANCHES)
        self.spp_dw = nn.ModuleList(
            Unit(n, n, 3, stride=stride, groups=n, dilation=d, norm=False, act=False) for d in dilations
        )
        self.br_after_cat = _norm_act(channels, "bn", "act")
        self.conv_1x1_exp = Unit(channels, channels, 1, groups=BRANCHES, act=False)
        # The strided unit's own activation follows in Downsampler; its weights lie in the files all the same.
        self.module_act = nn.PReLU(channels)
        self.strided = stride > 1
        if self.strided:
            self.module_act.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.proj_1x1(x)
        branches = [self.spp_dw[0](reduced)]
        for branch in self.spp_dw[1:]:
            branches.append(branch(reduced) + branches[-1])
        merged: Tensor = self.conv_1x1_exp(self.br_after_cat(torch.cat(branches, dim=1)))
        if self.strided:
            return merged
        out: Tensor = self.module_act(merged + x)
        return out


class Downsampler(nn.Module):
    """A strided EESP unit beside the average-pooled input, plus the image itself, pooled to the size (section 3.2)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.eesp = EESP(in_channels, channels - in_channels, stride=2)
        self.inp_reinf = nn.Sequential(Unit(3, 3, 3), Unit(3, channels, 1, act=False))
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        both = torch.cat((_halve(x), self.eesp(x)), dim=1)
        while image.shape[-2:] != both.shape[-2:]:
            image = _halve(image)
        out: Tensor = self.act(both + self.inp_reinf(image))
        return out


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=2, padding=1)


class Encoder(nn.Module):
    """The classification network's levels; maps at strides 2, 4, 8, 16."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.level1 = Unit(3, channels[0], 3, stride=2)
        self.level2_0 = Downsampler(channels[0], channels[1])
        self.level3_0 = Downsampler(channels[1], channels[2])
        self.level3 = nn.Sequential(*(EESP(channels[2], channels[2]) for _ in range(UNITS[0])))
        self.level4_0 = Downsampler(channels[2], channels[3])
        self.level4 = nn.Sequential(
            *(EESP(channels[3], channels[3], dilations=DILATIONS_COARSE) for _ in range(UNITS[1]))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [self.level1(image)]
        maps.append(self.level2_0(maps[-1], image))
        maps.append(self.level3(self.level3_0(maps[-1], image)))
        maps.append(self.level4(self.level4_0(maps[-1], image)))
        return maps


def _conv_norm_act(in_channels: int, channels: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    layers = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.PReLU(channels))
    return nn.Sequential(OrderedDict(cbr=layers))


class PyramidPool(nn.Module):
    """Efficient pyramid pooling: the reduced map at several sizes, a depth-wise 3×3 at each, merged again.

    Args:
        last: the decoder's last, whose output are logits: with a bias, without normalisation.
    """

    def __init__(self, in_channels: int, pooled: int, channels: int, *, last: bool = False) -> None:
        super().__init__()
        self.projection_layer = _conv_norm_act(in_channels, pooled, 1)
        self.stages = nn.ModuleList(
            nn.Conv2d(pooled, pooled, 3, padding=1, groups=pooled, bias=False) for _ in PYRAMID
        )
        everything = pooled * len(PYRAMID)
        self.merge_layer = nn.Sequential(
            nn.Sequential(OrderedDict(br=_norm_act(everything))),
            nn.ChannelShuffle(len(PYRAMID)),
            _conv_norm_act(everything, pooled, 3, groups=pooled),
            nn.Conv2d(pooled, channels, 1, bias=last),
        )
        self.br: nn.Module = nn.Identity() if last else nn.Sequential(OrderedDict(br=_norm_act(channels)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection_layer(x)
        seen = [_at_scale(x, stage, scale) for stage, scale in zip(self.stages, PYRAMID)]
        out: Tensor = self.br(self.merge_layer(torch.cat(seen, dim=1)))
        return out


def _at_scale(x: Tensor, stage: nn.Module, scale: float) -> Tensor:
    """``stage`` on the map at ``scale`` times its size, brought back to its size: enlarged bilinearly (corners on
    corners), shrunk by averages."""
    size = (x.shape[-2], x.shape[-1])
    height, width = (max(math.ceil(side * scale), MIN_PYRAMID_SIDE) for side in size)
    if scale < 1:
        return _enlarge(stage(F.adaptive_avg_pool2d(x, (height, width))), size)
    if scale > 1:
        return F.adaptive_avg_pool2d(stage(_enlarge(x, (height, width))), size)
    out: Tensor = stage(x)
    return out


def _enlarge(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class Merge(nn.Module):
    """An encoder's map on its way to the decoder: grouped 3×3, its channels weighted by the map's mean."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.wt_layer = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, channels, 1, bias=False), nn.Sigmoid()
        )
        self.expansion_layer = _conv_norm_act(in_channels, channels, 3, math.gcd(in_channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.expansion_layer(x) * self.wt_layer(x)
        return out


class ESPNetv2(nn.Module):
    """Logits (B, K, h, w) of normalised images (B, 3, H, W), at half their size.

    Args:
        outputs: K. scale: of the encoder's channels, 2.0 for the largest published.

    Raises:
        ValueError: fewer than two outputs, or a scale that is not above 0.
    """

    def __init__(self, outputs: int, *, scale: float = 2.0) -> None:
        super().__init__()
        if outputs < 2 or scale <= 0:
            raise ValueError(
                f"ESPNetv2 takes two outputs or more and a scale above 0, got {outputs}, {scale}"
            )
        channels, decoded = widths(scale), DECODER_CHANNELS
        pooled = min(outputs // 2, MAX_POOLED_CHANNELS)
        self.base_net = Encoder(channels)
        self.bu_dec_l1 = PyramidPool(channels[3], pooled, decoded[0])
        self.bu_dec_l2 = PyramidPool(decoded[0], pooled, decoded[1])
        self.bu_dec_l3 = PyramidPool(decoded[1], pooled, decoded[2])
        self.bu_dec_l4 = PyramidPool(decoded[2], pooled, outputs, last=True)
        self.merge_enc_dec_l2 = Merge(channels[2], decoded[0])
        self.merge_enc_dec_l3 = Merge(channels[1], decoded[1])
        self.merge_enc_dec_l4 = Merge(channels[0], decoded[2])
        self.bu_br_l2, self.bu_br_l3, self.bu_br_l4 = (_norm_act(each) for each in decoded)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        *skips, x = self.base_net(images)
        x = self.bu_dec_l1(x)
        for level, skip in zip((2, 3, 4), reversed(skips)):
            merged = self.get_submodule(f"merge_enc_dec_l{level}")(skip)
            x = self.get_submodule(f"bu_br_l{level}")(merged + _enlarge(x, merged.shape[-2:]))
            x = self.get_submodule(f"bu_dec_l{level}")(x)
        return x
