"""The critic of holistic distillation: how much a segmentation looks like the teacher's of that image.

N: images; C: classes; h, w: size of the maps; H, W: size of the images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reduce import at_least_float32

SLOPE = 0.1  # of the leaky ReLUs


class SelfAttention(nn.Module):
    """x + γ · attention of every position to all, γ learned from 0 (Zhang et al., ICML 2019).

    Args:
        channels: of input and output. It is written out: torch's fused attention has no second derivative, which the
            gradient penalty takes.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, channels, h, w) to the same."""
        query, key, value = (part(maps).flatten(2) for part in (self.query, self.key, self.value))
        attention = (query.mT @ key).softmax(dim=-1)
        return maps + self.gamma * (value @ attention.mT).view_as(maps)


class Critic(nn.Module):
    """D(Q | I): five convolutions with two self-attentions between the last three, on a map of class probabilities
    and the image that it segments (Liu et al., CVPR 2019). Any size; the score is a mean over positions.

    The authors' code has these layers, widths and slopes. It shows its discriminator logits behind a batch norm, and no
    image, and has spectral normalisation and 4 × 4 kernels without a bound on the last; here the softmax bounds the
    map, the gradient penalty the slope, and 3 × 3 kernels take maps of any size.

    Args:
        num_classes: C. width: channels after the first convolution; they double with every stride of 2.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        channels = [num_classes + 3, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(channels, channels[1:])):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
            if i >= 2:
                layers.append(SelfAttention(after))
        layers.append(nn.Conv2d(channels[-1], 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        """(N,) scores, higher for what looks like the teacher's.

        Args:
            maps: (N, C, h, w) probabilities. images: (N, 3, h, w), see :func:`critic_images`.
        """
        score: Tensor = self.layers(torch.cat([maps, images], dim=1)).mean(dim=(1, 2, 3))
        return score


def critic_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 3, H, W) RGB images in 0…255 as a critic takes them: in −1…1, resized to ``size`` (bilinear, smoothed)."""
    images = at_least_float32(images.detach()) / 127.5 - 1
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def distance(critic: nn.Module, student: Tensor, teacher: Tensor, images: Tensor) -> Tensor:
    """E[D(teacher)] − E[D(student)], the Wasserstein distance as the critic sees it: what the student minimises and
    the critic maximises (Liu et al., CVPR 2019, the holistic term). A scalar; 0 at equality.

    Args:
        student, teacher: (N, C, h, w) probabilities. images: (N, 3, h, w), see :func:`critic_images`.
    """
    difference: Tensor = critic(teacher.detach(), images) - critic(student, images)
    return difference.mean()


def gradient_penalty(
    critic: nn.Module, student: Tensor, teacher: Tensor, images: Tensor, epsilon: Tensor
) -> Tensor:
    """Mean of (‖∇D‖₂ − 1)² at ε · teacher + (1 − ε) · student, the gradient being that for the map (Gulrajani et al.,
    NeurIPS 2017). A scalar.

    Args:
        student, teacher, images: as in :func:`distance`. epsilon: (N,) in 0…1, one for each image.
    """
    between = torch.lerp(student.detach(), teacher.detach(), epsilon.view(-1, 1, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between, images).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
