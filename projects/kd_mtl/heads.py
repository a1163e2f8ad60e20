"""The heads of BlitzNet. B: images, C: object classes, K = C + 1 dense classes, A: anchors, P: prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .anchors import ANCHORS_PER_CELL


class DetectionHead(nn.Module):
    """Two plain 3×3 convolutions on every prediction map: offsets and class logits of a cell's six anchors.

    Args:
        num_maps: prediction maps. shared: one pair of convolutions serves all of them.
    """

    def __init__(self, channels: int, num_classes: int, num_maps: int, *, shared: bool = False) -> None:
        super().__init__()
        copies = range(1 if shared else num_maps)
        outputs = ANCHORS_PER_CELL * (num_classes + 1)
        self.offsets = nn.ModuleList(_predictor(channels, ANCHORS_PER_CELL * 4) for _ in copies)
        self.classes = nn.ModuleList(_predictor(channels, outputs) for _ in copies)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (B, A, C + 1), background last, and offsets (B, A, 4), in the anchors' order."""
        return per_anchor(self.classes, maps), per_anchor(self.offsets, maps)


class PrototypeHead(nn.Module):
    """Prototype masks from the finest map, and for each anchor how much it takes of each (YOLACT, Bolya et al.,
    ICCV 2019, section 3): mask = σ(Σ_p coefficient_p · prototype_p), cropped to the box.

    Prototypes are not negative, coefficients lie in −1…1, so that a mask is a sum and difference of maps.

    Args:
        num_maps: prediction maps. shared: one convolution makes the coefficients of all of them.
        prototypes: P. mask_channels: of the three convolutions before the prototypes.
    """

    def __init__(
        self,
        channels: int,
        num_maps: int,
        *,
        shared: bool = False,
        prototypes: int = 32,
        mask_channels: int = 64,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (channels, mask_channels, mask_channels):
            layers += [nn.Conv2d(width, mask_channels, 3, padding=1), nn.ReLU(inplace=True)]
        self.prototypes = nn.Sequential(*layers, nn.Conv2d(mask_channels, prototypes, 1), nn.ReLU())
        for module in self.prototypes:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.coefficients = nn.ModuleList(
            _predictor(channels, ANCHORS_PER_CELL * prototypes) for _ in range(1 if shared else num_maps)
        )

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Prototypes (B, P, h, w) at the size of the finest map; coefficients (B, A, P) in the anchors' order."""
        return self.prototypes(maps[0]), per_anchor(self.coefficients, maps).tanh()


class SegmentationHead(nn.Module):
    """Every prediction map, pool6 too → 1×1, ReLU → nearest-resize to the finest → concat → 3×3 → logits."""

    def __init__(self, channels: int, num_classes: int, num_maps: int, *, seg_channels: int = 64) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(channels, seg_channels, 1) for _ in range(num_maps))
        for parameter in self.reduce.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)
        self.classify = _predictor(num_maps * seg_channels, num_classes + 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, K, h, w), background first, at the size of the finest map."""
        size = maps[0].shape[-2:]
        reduced = [F.relu(conv(x)) for conv, x in zip(self.reduce, maps)]
        resized = [F.interpolate(x, size=size, mode="nearest-exact") for x in reduced]
        return self.classify(torch.cat(resized, dim=1))


def per_anchor(convolutions: nn.ModuleList, maps: list[Tensor]) -> Tensor:
    """(B, A, ·): what the convolutions say of each anchor, map by map; one of them serves all maps, or one each."""
    flat = []
    for i, x in enumerate(maps):
        out = convolutions[i % len(convolutions)](x).permute(0, 2, 3, 1)
        cells = out.shape[1] * out.shape[2]
        flat.append(out.reshape(out.shape[0], cells * ANCHORS_PER_CELL, -1))
    return torch.cat(flat, dim=1)


def _predictor(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3×3 convolution that no activation follows: Glorot's initialisation, zero bias."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
