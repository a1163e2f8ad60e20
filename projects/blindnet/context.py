"""The masked-context classifier: any trunk of the library, told by a fourth channel where the hole is.

N: pictures; C: classes; F: channels of the trunk's last map, (h, w) its size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.nets.trunks import Trunk

from .hole_geometry import GEOMETRY, hole_geometry
from .network import HiddenObjectNetwork, Inputs

POOLS = ("global", "region", "both")


class HoleConv2d(nn.Conv2d):
    """A convolution of RGB that takes the hole as a fourth channel. Its weights for the hole stand apart and begin at
    0, so that a file of the trunk's weights fits as it is, and the trunk begins as what it was trained to be."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            bias=conv.bias is not None,
        )
        self.load_state_dict(conv.state_dict())
        self.hole_weight = nn.Parameter(torch.zeros_like(self.weight[:, :1]))

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, 4, H, W)."""
        return self._conv_forward(x, torch.cat([self.weight, self.hole_weight], dim=1), self.bias)


def add_hole_channel(trunk: nn.Module) -> None:
    """Replace the first convolution of a trunk by one that takes the hole, in place."""
    for name, module in trunk.named_modules():
        if isinstance(module, nn.Conv2d):
            parent, _, child = name.rpartition(".")
            trunk.get_submodule(parent).register_module(child, HoleConv2d(module))
            return
    raise ValueError("the trunk has no convolution")


class ContextClassifier(HiddenObjectNetwork):
    """Trunk → features of the picture and of the hole, and the hole's geometry → one layer of F units → classes.

    Args:
        trunk: see :func:`scenekd.nets.trunks.build_trunk`. zoo: torchvision's name of it.
        num_classes: C.
        pool: ``global``: the mean over the last map; ``region``: the mean over the hole in it, each cell by its share
            in the hole; ``both``, side by side.
        geometry: whether the hole's place, size and proportions stand beside them as numbers, which cells of a coarse
            map tell less exactly.
        dropout: before the classes.

    Raises:
        ValueError: no such pool.
    """

    def __init__(
        self,
        trunk: Trunk,
        zoo: str,
        num_classes: int,
        *,
        pool: str = "both",
        geometry: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"POOL must be one of {', '.join(POOLS)}, got {pool!r}")
        self.trunk_net, self.pool, self.geometry, self.trunk = trunk, pool, geometry, ("trunk_net", zoo)
        add_hole_channel(trunk)
        width = trunk.channels[-1]
        self.hidden = nn.Sequential(
            nn.Linear(width * (2 if pool == "both" else 1) + GEOMETRY * geometry, width),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.classes = nn.Linear(width, num_classes)

    shares_trunk = True

    def forward(self, inputs: Inputs) -> Tensor:
        return self.classify(self.features(inputs), inputs.hole)

    def features(self, inputs: Inputs) -> Tensor:
        """(N, F, h, w): the last map of the trunk, which sees what is hidden, but not which hole is asked for."""
        hidden = inputs.hole if inputs.hidden is None else inputs.hidden
        last: Tensor = self.trunk_net(torch.cat([inputs.images, hidden], dim=1))[-1]
        return last

    def classify(self, features: Tensor, hole: Tensor) -> Tensor:
        """(N, C) scores of features (N, F, h, w) and hole (N, 1, H, W)."""
        parts = []
        if self.pool != "region":
            parts.append(features.mean(dim=(2, 3)))
        if self.pool != "global":
            parts.append(region_mean(features, hole))
        if self.geometry:
            parts.append(hole_geometry(hole))
        scores: Tensor = self.classes(self.hidden(torch.cat(parts, dim=1)))
        return scores


def region_mean(features: Tensor, hole: Tensor) -> Tensor:
    """(N, F): the mean over the hole of features (N, F, h, w), each cell weighing its share in the hole."""
    share = F.adaptive_avg_pool2d(hole, (features.shape[-2], features.shape[-1]))
    return (features * share).sum(dim=(2, 3)) / share.sum(dim=(2, 3)).clamp(min=1e-6)
