"""Networks for small images: the CIFAR ResNets, ResNet-18 with a 3×3 stem, and the five-layer student.

B: images; C: classes; H, W: input. All turn normalised (B, 3, H, W) into logits (B, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

DEPTHS = (20, 32, 44, 56, 110)


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters (option A): every second pixel where the block is
    strided, and zeros for the new channels, half of them before and half after the old ones."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.new = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new or self.stride > 1:
            before = self.new // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """The ResNet of 6n + 2 layers for 32×32 images: He et al., Deep Residual Learning for Image Recognition, 2016,
    section 4.2. Three stages of n blocks with 16, 32 and 64 channels.

    Args:
        depth: 6n + 2: 20, 32, 44, 56, 110. num_classes: C. width: channels of the first stage.

    Raises:
        ValueError: another depth.
    """

    def __init__(self, depth: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, such as {', '.join(map(str, DEPTHS))}; got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1)
        self.layer2 = _stage(width, 2 * width, blocks, 2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(channels_in, channels, stride)
    return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))


def resnet18_cifar(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18, under its names, for small images: a 3×3 stem of stride 1 and no pooling after it."""
    net = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


class FiveLayerCNN(nn.Module):
    """The student of the CIFAR-10 experiment: convolutions of 32, 64 and 128 channels (3×3, BN, pool, ReLU), a layer of
    128 (BN, ReLU, dropout), the classes.

    Args:
        num_classes: C. image_size: side of the square input, at least 8. dropout: 0.5 in the paper.

    Raises:
        ValueError: images too small for three poolings.
    """

    def __init__(self, num_classes: int, image_size: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        if image_size < 8:
            raise ValueError(f"image_size must be at least 8, got {image_size}")
        widths = (3, 32, 64, 128)
        self.convs = nn.Sequential(*(_pooled(a, b) for a, b in zip(widths, widths[1:])))
        self.hidden = nn.Sequential(
            nn.Linear(128 * (image_size // 8) ** 2, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(dropout)
        )
        self.classes = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self.classes(self.hidden(torch.flatten(self.convs(x), 1)))
        return logits


def _pooled(channels_in: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.MaxPool2d(2), nn.ReLU())
