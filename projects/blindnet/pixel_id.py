"""The class of every pixel, visible or hidden, from a ResNet (the paper's section 3.3).

N: pictures; C: object classes; K = C + 1: background first; H, W: network input; h, w: the grid of the loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.nets.trunks import Trunk
from scenekd.sample import IGNORE_INDEX, Target

from .context import add_hole_channel
from .network import HiddenObjectNetwork, Inputs
from .unet import region_sums

PIXEL_TARGETS = ("masks", "boxes")
FEATURES = 128  # channels of the map before the dense layers


class PixelIdNetwork(HiddenObjectNetwork):
    """Trunk → 128 channels, upsampled → dense layers of each pixel → K classes by a softmax. The score of a class is
    the logarithm of the sum of its probabilities over the hole.

    Args:
        trunk: see :func:`scenekd.nets.trunks.build_trunk`. zoo: torchvision's name of it.
        num_classes: C.
        stride: the dense layers, and the loss, work on every ``stride``-th pixel; 1 in the paper, whose pictures have
            64 pixels.
        target: class-id maps from the data set's ``masks``, or from its ``boxes``, the smaller on top.
        mask_weight: of a pixel in the hole in the loss, 1 elsewhere. background: weight of a pixel without an object,
            beside those of the classes.
        dropout: before the classes.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        trunk: Trunk,
        zoo: str,
        num_classes: int,
        *,
        stride: int = 1,
        target: str = "masks",
        mask_weight: float = 5.0,
        background: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if target not in PIXEL_TARGETS:
            raise ValueError(f"PIXEL_TARGET must be one of {', '.join(PIXEL_TARGETS)}, got {target!r}")
        for key, value in (("MASK_WEIGHT", mask_weight), ("BACKGROUND_WEIGHT", background)):
            if not value > 0:
                raise ValueError(f"{key} must be positive, got {value}")
        if stride < 1:
            raise ValueError(f"PIXEL_STRIDE must be at least 1, got {stride}")
        self.trunk_net, self.trunk = trunk, ("trunk_net", zoo)
        self.stride, self.target, self.mask_weight, self.background = stride, target, mask_weight, background
        add_hole_channel(trunk)
        self.features = nn.Sequential(
            nn.Conv2d(trunk.channels[-1], FEATURES, 1, bias=False), nn.BatchNorm2d(FEATURES), nn.ReLU()
        )
        self.dense = nn.Sequential(nn.Conv2d(FEATURES, FEATURES, 1), nn.ReLU(), nn.Dropout2d(dropout))
        self.classes = nn.Conv2d(FEATURES, num_classes + 1, 1)

    def maps(self, inputs: Inputs) -> Tensor:
        """(N, K, h, w) logits."""
        last = self.trunk_net(torch.cat([inputs.images, inputs.hole], dim=1))[-1]
        size = [-(-side // self.stride) for side in inputs.hole.shape[-2:]]
        grown = F.interpolate(self.features(last), size=size, mode="bilinear", align_corners=False)
        logits: Tensor = self.classes(self.dense(grown))
        return logits

    def forward(self, inputs: Inputs) -> Tensor:
        logits = self.maps(inputs)
        share = F.adaptive_avg_pool2d(inputs.hole, (logits.shape[-2], logits.shape[-1]))
        return region_sums(logits.float().softmax(dim=1)[:, 1:], share)

    def losses(self, inputs: Inputs, targets: list[Target], weights: Tensor) -> dict[str, Tensor]:
        logits = self.maps(inputs)
        size = (inputs.hole.shape[-2], inputs.hole.shape[-1])
        truth = class_ids(targets, size, from_boxes=self.target == "boxes")
        truth, hole = (_nearest(one, logits.shape[-2:]) for one in (truth[:, None].float(), inputs.hole))
        every = torch.cat([weights.new_tensor([self.background]), weights])
        return {"loss_pixels": pixel_loss(logits, truth[:, 0].long(), hole[:, 0], self.mask_weight, every)}


def _nearest(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size=(size[0], size[1]), mode="nearest-exact")


def class_ids(targets: list[Target], size: tuple[int, int], *, from_boxes: bool) -> Tensor:
    """(N, H, W) int64: 0 background, 1…C, 255 unknown; all unknown where a picture has no mask.

    Args:
        from_boxes: fill the boxes, from the largest to the smallest; else take the pictures' masks.
    """
    device = targets[0].boxes.device
    rows = []
    for target in targets:
        if not from_boxes:
            unknown = torch.full(size, IGNORE_INDEX, dtype=torch.int64, device=device)
            rows.append(unknown if target.sem_seg is None else target.sem_seg)
            continue
        plane = torch.zeros(size, dtype=torch.int64, device=device)
        corners = target.boxes.round().int()
        order = (corners[:, 2:] - corners[:, :2]).prod(dim=1).argsort(descending=True, stable=True)
        for (x1, y1, x2, y2), label in zip(corners[order].tolist(), target.labels[order].tolist()):
            plane[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = label + 1
        rows.append(plane)
    return torch.stack(rows)


def pixel_loss(logits: Tensor, truth: Tensor, hole: Tensor, mask_weight: float, weights: Tensor) -> Tensor:
    """Cross-entropy of every known pixel, its weighted mean: a pixel weighs ``mask_weight`` in the hole and 1
    elsewhere, times the weight of its class. Nothing known: 0, with a gradient of 0.

    Args:
        logits: (N, K, h, w). truth: (N, h, w) int64, 255 unknown. hole: (N, h, w). weights: (K,), positive.
    """
    known = truth != IGNORE_INDEX
    label = truth.masked_fill(~known, 0)
    weight = (1 + (mask_weight - 1) * hole) * weights[label] * known
    loss = F.cross_entropy(logits.float(), label, reduction="none")
    return (weight * loss).sum() / weight.sum().clamp(min=1e-6)
