"""Binary units by XNOR and popcount against PyTorch's float32 convolutions of the real-valued twin, on one thread.

Both sides see the same shapes, with the channels innermost, which is PyTorch's faster layout for batches. The packed
side of a layer is the whole unit: signs of floating-point maps, sums, normalisation, shortcut; the peer is the twin's
convolution alone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scenekd.benchmark.measure import Row, interleave
from scenekd.benchmark.options import Options, worker_threads
from scenekd.nets.binary import ConvUnit, RealConv2d
from scenekd.nets.packed import pack_network
from scenekd.nets.packed_native import library
from scenekd.registry import register

from .networks import REAL, build_network

NAME = "binary"
CLASSES = 100
_TARGET = (">=", 4.0)
# Channels and side of the 3 × 3 convolutions of ResNet-20 and ResNet-18 on 32 px, and of ResNet-18 on 224 px
_LAYERS = (
    *((16, 32), (32, 16), (64, 8)),
    *((64, 32), (128, 16), (256, 8), (512, 4)),
    *((64, 56), (128, 28), (256, 14), (512, 7)),
)
_CASES = (  # network, side, batch
    ("bireal_resnet20", 32, 1),
    ("bireal_resnet20", 32, 64),
    ("reactnet_resnet20", 32, 1),
    ("reactnet_resnet20", 32, 64),
    ("vgg_small", 32, 1),
    ("vgg_small", 32, 64),
    ("bireal_resnet18", 32, 1),
    ("bireal_resnet18", 32, 64),
    ("reactnet_resnet18", 32, 1),
    ("bireal_resnet18", 224, 1),
    ("bireal_resnet18", 224, 8),
    ("reactnet_resnet18", 224, 1),
)


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """Layers and networks; one row says where the kernels cannot be built."""
    if library() is None:
        yield Row(NAME, "packed against float32", detail="the kernels need a C++ compiler and ninja")
        return
    with worker_threads(), torch.inference_mode():
        for channels, side in options.pick(_LAYERS, _LAYERS, _LAYERS[2:3]):
            yield _layer(options, channels, side)
        for name, side, batch in options.pick(_CASES, _CASES[:3], _CASES[:1]):
            yield from _network(options, name, side, batch)


def _layer(options: Options, channels: int, side: int) -> Row:
    unit = ConvUnit(channels, channels).eval()
    packed = pack_network(unit)
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = unit.conv.weight
    times = interleave(
        lambda: packed(x),
        lambda: torch.nn.functional.conv2d(x, weight, None, 1, 1),
        repeats=options.repeats(),
        min_seconds=options.pick(0.1, 0.02, 0),
    )
    detail = f"the unit with packing against the convolution alone: {times.describe('float32')}"
    name = f"3 × 3, {channels} channels, {side} × {side}: packed, speed-up"
    return Row(NAME, name, *times.speedup, detail=detail)


def _network(options: Options, name: str, side: int, batch: int) -> Iterator[Row]:
    torch.manual_seed(0)
    net = build_network(name, CLASSES, image_size=side)
    images = torch.randint(0, 256, (batch, 3, side, side)).float()
    _settle(net, images)
    packed, twin = pack_network(net), build_network(name + REAL, CLASSES, image_size=side).eval()
    case = f"{name}, {side} px, batch {batch}"
    for peer, against, target in (
        (twin, "twin", _TARGET),
        (fold_normalisation(twin), "twin with BN folded in", None),
    ):
        times = interleave(
            functools.partial(packed, images),
            functools.partial(peer, images),
            repeats=options.repeats(),
            min_seconds=options.pick(0.2, 0.05, 0),
        )
        text = f"one thread, whole network: {times.describe('float32')}"
        yield Row(NAME, f"{case}: packed / {against}, speed-up", *times.speedup, target=target, detail=text)
    expected, actual = net(images), packed(images)
    different = int((expected.argmax(1) != actual.argmax(1)).sum())
    largest = float((expected - actual).abs().max())
    detail = f"against the simulation in float32; largest difference of a logit {largest:.1e}"
    yield Row(NAME, f"{case}: other argmax", different, unit="images", target=("<=", 0), detail=detail)


def _settle(net: nn.Module, images: Tensor) -> None:
    """Statistics of a batch, so that signs fall both ways as in a trained network."""
    with torch.no_grad():
        net.train()(images if len(images) > 1 else torch.cat((images, 255 - images)))
    net.eval()


def fold_normalisation(twin: nn.Module) -> nn.Module:
    """A copy of a real-valued twin whose convolutions hold their normalisation: the fastest that PyTorch offers it."""
    folded = copy.deepcopy(twin).eval()
    for module in folded.modules():
        if isinstance(module, ConvUnit) and isinstance(module.conv, RealConv2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            setattr(module, "norm", nn.Identity())  # noqa: B010 - of another type
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                conv, norm = module[i], module[i + 1]
                if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
                    module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return folded
