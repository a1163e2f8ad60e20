"""U-Net on four channels, and the classifier that is its encoder (the paper's sections 3.1 and 3.2).

N: pictures; C: classes; H, W: network input, multiples of 16. Ronneberger et al., U-Net, 2015, with padded
convolutions and batch normalisation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.sample import Target

from .network import HiddenObjectNetwork, Inputs

UPSAMPLINGS = ("bilinear", "transposed")
LEVELS = 4
_PRIOR = (
    0.01  # probability of a class in a pixel before training: most are nowhere, and a sum over pixels says so
)


def _double(channels_in: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in ((channels_in, channels), (channels, channels)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _down(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.MaxPool2d(2), _double(channels_in, channels))


class Encoder(nn.Module):
    """Maps at strides 1, 2, 4, 8, 16.

    Args:
        width: channels of the first; each of the next has twice as many. deepest: channels of the last.
    """

    def __init__(self, width: int, deepest: int) -> None:
        super().__init__()
        self.channels = [width << level for level in range(LEVELS)] + [deepest]
        self.first = _double(4, width)
        self.downs = nn.ModuleList(_down(a, b) for a, b in zip(self.channels, self.channels[1:]))

    def forward(self, inputs: Inputs) -> list[Tensor]:
        maps = [self.first(torch.cat([inputs.images, inputs.hole], dim=1))]
        for down in self.downs:
            maps.append(down(maps[-1]))
        return maps


class _Up(nn.Module):
    """Twice the size, joined with the encoder's map of that size."""

    def __init__(self, channels_in: int, skip: int, channels: int, upsampling: str) -> None:
        super().__init__()
        if upsampling == "transposed":
            self.resize: nn.Module = nn.ConvTranspose2d(channels_in, channels_in // 2, 2, stride=2)
            channels_in //= 2
        else:
            self.resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.convs = _double(channels_in + skip, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.convs(torch.cat([skip, self.resize(x)], dim=1))
        return joined


class UNet(HiddenObjectNetwork):
    """A map for each class: where it is, visible or hidden. The score of a class is the logarithm of the sum of its
    sigmoids over the hole, so that their softmax is each class's part of the sum.

    Args:
        num_classes: C. width: channels of the first level (64 in the paper). upsampling: of :data:`UPSAMPLINGS`.
        mask_weight: of a pixel in the hole in the loss, 1 elsewhere.

    Raises:
        ValueError: no such upsampling, or a weight that is not positive.
    """

    def __init__(
        self, num_classes: int, *, width: int = 64, upsampling: str = "bilinear", mask_weight: float = 5.0
    ) -> None:
        super().__init__()
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"UPSAMPLING must be one of {', '.join(UPSAMPLINGS)}, got {upsampling!r}")
        if not mask_weight > 0:
            raise ValueError(f"MASK_WEIGHT must be positive, got {mask_weight}")
        self.mask_weight = mask_weight
        # Without weights of its own the upsampling cannot halve the channels, so the deepest level has fewer.
        self.encoder = Encoder(width, (width << LEVELS) // (1 if upsampling == "transposed" else 2))
        channels = self.encoder.channels
        ups, current = [], channels[-1]
        for level in reversed(range(LEVELS)):
            out = channels[level] // (1 if upsampling == "transposed" or not level else 2)
            ups.append(_Up(current, channels[level], out, upsampling))
            current = out
        self.ups = nn.ModuleList(ups)
        self.classes = nn.Conv2d(current, num_classes, 1)
        assert self.classes.bias is not None
        nn.init.constant_(self.classes.bias, math.log(_PRIOR / (1 - _PRIOR)))

    def maps(self, inputs: Inputs) -> Tensor:
        """(N, C, H, W) logits."""
        *skips, x = self.encoder(inputs)
        for up, skip in zip(self.ups, reversed(skips)):
            x = up(x, skip)
        logits: Tensor = self.classes(x)
        return logits

    def forward(self, inputs: Inputs) -> Tensor:
        return region_scores(self.maps(inputs), inputs.hole)

    def losses(self, inputs: Inputs, targets: list[Target], weights: Tensor) -> dict[str, Tensor]:
        logits = self.maps(inputs)
        truth = filled_boxes(targets, logits.shape)
        return {"loss_pixels": masked_loss(logits, truth, inputs.hole, self.mask_weight, weights)}


def region_scores(logits: Tensor, hole: Tensor) -> Tensor:
    """(N, C): log Σ_pixels-of-the-hole sigmoid(logit), of logits (N, C, H, W) and hole (N, 1, H, W)."""
    return region_sums(logits.float().sigmoid(), hole)


def region_sums(probabilities: Tensor, hole: Tensor) -> Tensor:
    """(N, C): log Σ_pixels probability · hole, of probabilities (N, C, h, w) and shares in the hole (N, 1, h, w)."""
    return (probabilities * hole).sum(dim=(2, 3)).clamp(min=1e-12).log()


def filled_boxes(targets: list[Target], shape: torch.Size) -> Tensor:
    """(N, C, H, W) float32: 1 where a box of the class is, visible or hidden; several classes where boxes overlap."""
    truth = torch.zeros(shape, device=targets[0].boxes.device)
    for plane, target in zip(truth, targets):
        for (x1, y1, x2, y2), label in zip(target.boxes.round().int().tolist(), target.labels.tolist()):
            plane[label, max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = 1
    return truth


def masked_loss(logits: Tensor, truth: Tensor, hole: Tensor, mask_weight: float, weights: Tensor) -> Tensor:
    """Binary cross-entropy of every class and pixel, its weighted mean: a pixel weighs ``mask_weight`` in the hole and
    1 elsewhere, times its class's weight. The size of hole and picture do not change its scale.

    Args:
        logits, truth: (N, C, H, W). hole: (N, 1, H, W). weights: (C,).
    """
    weight = (1 + (mask_weight - 1) * hole) * weights.view(1, -1, 1, 1)
    loss = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return (weight * loss).sum() / weight.sum()


class EncoderClassifier(HiddenObjectNetwork):
    """The U-Net's encoder, two more levels, a dense layer of 1024 and the classes.

    Args:
        num_classes: C. width: channels of the first level. image_size: side of the input, 64 or more: its dense layer
            has (image_size / 64)² cells (6 × 6 at 384).
        dropout: before the classes.

    Raises:
        ValueError: images too small.
    """

    def __init__(
        self, num_classes: int, *, width: int = 64, image_size: int = 384, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if image_size < 64:
            raise ValueError(f"INPUT.SIZE must be at least 64, got {image_size}")
        deepest = (width << LEVELS) // 2
        self.encoder = Encoder(width, deepest)
        self.more = nn.Sequential(_down(deepest, deepest), _down(deepest, deepest))
        cells = image_size // 64
        self.grid = nn.AdaptiveAvgPool2d(cells)  # nothing at this size; other sizes do as well
        self.hidden = nn.Sequential(nn.Linear(deepest * cells**2, 1024), nn.ReLU(), nn.Dropout(dropout))
        self.classes = nn.Linear(1024, num_classes)

    def forward(self, inputs: Inputs) -> Tensor:
        x = self.grid(self.more(self.encoder(inputs)[-1]))
        scores: Tensor = self.classes(self.hidden(x.flatten(1)))
        return scores
