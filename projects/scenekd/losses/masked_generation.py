"""Masked generative distillation (MGD): the teacher's features, made from what is left of the student's.

N: images; C: channels; H, W: size of the features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sampling import iteration_generator
from .positions import as_pair
from .reduce import at_least_float32


def kept_positions(
    size: tuple[int, int, int], ratio: float, *, seed: int, iteration: int, rank: int, use: str = ""
) -> Tensor:
    """(N, 1, H, W) float32, 0 where a position is masked, which happens with probability ``ratio``, else 1. It follows
    from seed, iteration, rank and ``use`` alone, and is the same on every device."""
    generator = iteration_generator(seed, iteration, rank, use)
    count, height, width = size
    return (torch.rand(count, 1, height, width, generator=generator) >= ratio).float()


def generation_loss(generated: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features, (N, C, H, W) both; a scalar. The authors sum over the features of an
    image (Yang et al., ECCV 2022), which grows with it: their weight of 2e-5 is here 2e-5 · C · H · W.

    Raises:
        ValueError: shapes do not fit.
    """
    generated, teacher = as_pair(generated, teacher)
    return F.mse_loss(generated, teacher)


class MaskedGeneration(nn.Module):
    """Aligns the student's features to the teacher's channels, masks positions, and generates the teacher's features
    from the rest by two 3 × 3 convolutions with a ReLU between (Yang et al., ECCV 2022; for classifiers their code
    masks channels instead, which is not here).

    Args:
        student_channels, teacher_channels: of the features; a 1 × 1 convolution aligns them where they differ.
        mask_ratio: probability that a position is masked, in [0, 1); 0.75 is the authors' for segmentation.
        seed: of the masks. use: tells the masks of several such modules apart.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        mask_ratio: float = 0.75,
        seed: int = 0,
        use: str = "mgd",
    ) -> None:
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
        self.mask_ratio, self.seed, self.use = mask_ratio, seed, use
        self.align = adaptor(student_channels, teacher_channels)
        self.generate = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, student: Tensor, teacher: Tensor, *, iteration: int, rank: int = 0) -> Tensor:
        """:func:`generation_loss` of one iteration of one process.

        Args:
            student, teacher: (N, C, H, W) features of one size; no gradient flows into the teacher's.
        """
        aligned = self.align(at_least_float32(student))
        count, _, height, width = aligned.shape
        kept = kept_positions(
            (count, height, width),
            self.mask_ratio,
            seed=self.seed,
            iteration=iteration,
            rank=rank,
            use=self.use,
        )
        return generation_loss(self.generate(aligned * kept.to(aligned)), teacher)


def adaptor(student_channels: int, teacher_channels: int) -> nn.Module:
    """A learned 1 × 1 convolution between numbers of channels; nothing where they are equal."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, 1)
