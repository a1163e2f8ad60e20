"""The binary students and their real-valued twins, by name: (N, 3, H, W) float32 RGB 0…255 in, logits (N, C) out.

N: images; C: classes; D, h, w: the last feature map. The first convolution, the 1 × 1 convolutions of shortcuts and the
classes are real, as in Bi-Real Net and ReActNet. A twin, ``NAME_real``, has the same modules and parameters with
real convolutions, and ReLU where the other has a sign: a state of the one loads into the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.nets.binary import ConvUnit
from scenekd.nets.trunks import PIXEL_MEAN, PIXEL_STD

REAL = "_real"  # ends the name of a twin


class BinaryClassifier(nn.Module):
    """Stem → units → mean over the map → classes.

    Args:
        stem: a real network, 3 → some channels. units: of :class:`scenekd.nets.binary.ConvUnit`. features: D.
        num_classes: C.
        mean, std: of images in 0…1, by which the network normalises; None: its images are normalised already.

    Attributes:
        stem, body, classes: the parts; the output of ``body`` is the feature map.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        stem: nn.Module,
        units: Sequence[ConvUnit],
        features: int,
        num_classes: int,
        mean: Sequence[float] | None = PIXEL_MEAN,
        std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__()
        self.normalises = mean is not None
        self.stem, self.body = stem, nn.Sequential(*units)
        self.classes = nn.Linear(features, num_classes)
        for name, values in (("pixel_mean", mean or (0, 0, 0)), ("pixel_std", std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map (N, D, h, w) and its mean over the cells (N, D); gradients flow through both."""
        if self.normalises:
            images = (images - self.pixel_mean) / self.pixel_std
        # With the channels innermost, as the packed units have them: real layers then round alike in both
        features = self.body(self.stem(images.contiguous(memory_format=torch.channels_last)))
        return features, features.mean((2, 3))

    def head(self, pooled: Tensor) -> Tensor:
        """Logits (N, C) of (N, D)."""
        logits: Tensor = self.classes(pooled)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.head(self.forward_features(images)[1])


@dataclass(frozen=True)
class NetworkSpec:
    """What a name stands for.

    Attributes:
        widths: channels of the stages. units: convolutions of each stage. kind: ``resnet`` or ``vgg``.
        shifts: learnable shifts and RPReLU.
    """

    widths: tuple[int, ...]
    units: tuple[int, ...]
    kind: str = "resnet"
    shifts: bool = False


_RESNET18 = ((64, 128, 256, 512), (4, 4, 4, 4))
_RESNET20 = ((16, 32, 64), (6, 6, 6))

NETWORKS = {
    "bireal_resnet18": NetworkSpec(*_RESNET18),
    "bireal_resnet20": NetworkSpec(*_RESNET20),
    "reactnet_resnet18": NetworkSpec(*_RESNET18, shifts=True),
    "reactnet_resnet20": NetworkSpec(*_RESNET20, shifts=True),
    # 128-128-P-256-256-P-512-512-P, the first of them the stem
    "vgg_small": NetworkSpec((128, 256, 512), (1, 2, 2), "vgg"),
}


def network_names() -> list[str]:
    """Every name that :func:`build_network` takes."""
    return sorted([*NETWORKS, *(name + REAL for name in NETWORKS)])


def build_network(
    name: str,
    num_classes: int,
    *,
    image_size: int = 32,
    scaling: str = "weight",
    gradient: str = "quadratic",
    normalise: bool = True,
) -> BinaryClassifier:
    """A freshly initialised network.

    Args:
        name: of :data:`NETWORKS`, with ``_real`` at its end for the twin. num_classes: C.
        image_size: decides the stem: a 3 × 3 convolution below 128 (of stride 2 from 64 on), else ImageNet's, 7 × 7 of
            stride 2 and pooling. Any size runs. vgg_small has the first at every size.
        scaling, gradient: of :class:`scenekd.nets.binary.BinaryConv2d`; nothing to a twin.
        normalise: images are RGB 0…255 and are normalised by ImageNet's statistics; else they are normalised already.

    Raises:
        UserError: no such name. ValueError: an unknown scaling or gradient.
    """
    binary = not name.endswith(REAL)
    spec = NETWORKS.get(name.removesuffix(REAL))
    if spec is None:
        raise UserError(f"no binary network {name!r}; choose one of {', '.join(network_names())}")
    if num_classes < 1:
        raise UserError(f"num_classes: {num_classes}; a classifier has at least one")
    width, vgg = spec.widths[0], spec.kind == "vgg"
    units: list[ConvUnit] = []
    channels = width
    for stage, (out, count) in enumerate(zip(spec.widths, spec.units)):
        for i in range(count):
            units.append(
                ConvUnit(
                    channels,
                    out,
                    stride=2 if stage and not i and not vgg else 1,
                    binary=binary,
                    shortcut=not vgg,
                    shifts=spec.shifts,
                    pool=vgg and i == count - 1,
                    scaling=scaling,
                    gradient=gradient,
                )
            )
            channels = out
    stem = _stem(width, 0 if vgg else image_size)
    return BinaryClassifier(stem, units, channels, num_classes, PIXEL_MEAN if normalise else None)


def _stem(width: int, image_size: int) -> nn.Sequential:
    if image_size >= 128:
        conv = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.MaxPool2d(3, 2, padding=1))
    conv = nn.Conv2d(3, width, 3, 2 if image_size >= 64 else 1, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))
