"""Holistic distillation: the student's segmentation is to deceive a critic that knows the teacher's.

N: images; C: classes; H, W: size of the logits; h, w: of what the critic sees; P: numbers in the critic's parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sampling import iteration_generator
from .critic import Critic, critic_images, distance, gradient_penalty
from .positions import as_pair
from .reduce import mean_over_processes, zero_loss

# Adam's second momentum without a first, and its rate, are those of Gulrajani et al., NeurIPS 2017. One step a batch is
# as in the code of Liu et al., which takes SGD.
_BETA, _EPS = 0.9, 1e-8


class HolisticLoss(nn.Module):
    """WGAN-GP between student and teacher, given the image (Liu et al., CVPR 2019).

    The protocol, once an iteration: ``forward`` gives the student's loss, and keeps the batch without its graph;
    after the student's optimizer has stepped, ``step`` trains the critic on it. Outside ``step`` the critic's
    parameters take no gradient, so no optimizer of the student's changes them and DDP does not wait for them; ``step``
    averages their gradients over the processes itself. Its optimizer's state is in buffers, so in the state dict.

    Args:
        num_classes: C. penalty: factor of the gradient penalty, ≥ 0. lr: of the critic, > 0.
        width: see :class:`.critic.Critic`. size: larger maps are brought down to this longer side for the critic.
        seed: of the penalty's interpolation.

    Raises:
        ValueError: an argument is outside its range.
    """

    second: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        penalty: float = 10.0,
        lr: float = 1e-4,
        width: int = 64,
        size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (penalty >= 0 and lr > 0 and width >= 1 and size >= 1):
            raise ValueError(
                "holistic distillation: lr, width and size must be positive, penalty not negative; "
                f"got {lr}, {width}, {size}, {penalty}"
            )
        self.penalty, self.lr, self.size, self.seed = penalty, lr, size, seed
        self.critic = Critic(num_classes, width).requires_grad_(False)
        numbers = sum(parameter.numel() for parameter in self.critic.parameters())
        self.register_buffer("second", torch.zeros(numbers))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.waiting = False  # whether a forward pass waits for its step
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, images: Tensor, *, valid: Tensor | None = None
    ) -> Tensor:
        """:func:`.critic.distance` of the softmax of both; a scalar whose gradient goes to the student alone.

        Args:
            student_logits, teacher_logits: (N, C, H, W). images: (N, 3, any, any) RGB in 0…255.
            valid: (N, H, W) bool; elsewhere both maps are 0. No position at all: 0, and the critic learns nothing.

        Raises:
            ValueError: shapes do not fit.
        """
        logits = as_pair(student_logits, teacher_logits, valid)
        if logits[0].ndim != 4 or images.ndim != 4 or images.shape[:2] != (len(logits[0]), 3):
            raise ValueError(
                f"holistic distillation needs logits (N, C, H, W) and images (N, 3, H, W), got "
                f"{tuple(student_logits.shape)} and {tuple(images.shape)}"
            )
        self.waiting, self._batch = self.training, None
        if valid is not None and not valid.any():
            return zero_loss(student_logits)
        student, teacher = (self._shown(each.softmax(dim=1), valid) for each in logits)
        seen = critic_images(images, (student.shape[2], student.shape[3])).to(student)
        if self.training:
            self._batch = student.detach(), teacher, seen
        return distance(self.critic, student, teacher, seen)

    def step(self, iteration: int, rank: int = 0) -> Tensor | None:
        """Train the critic on the batch of the last forward pass in training mode, which is let go; its loss, None
        where that was void throughout. Without such a pass nothing happens. Every process calls it."""
        if not self.waiting:
            return None
        batch, self.waiting, self._batch = self._batch, False, None
        parameters = list(self.critic.parameters())
        with torch.enable_grad(), torch.autocast(self.second.device.type, enabled=False):
            self.critic.requires_grad_(True)
            try:
                loss, gradients = self._gradients(parameters, batch, iteration, rank)
            finally:
                self.critic.requires_grad_(False)
        self._update(parameters, mean_over_processes(gradients))
        return loss

    def _gradients(
        self,
        parameters: list[nn.Parameter],
        batch: tuple[Tensor, Tensor, Tensor] | None,
        iteration: int,
        rank: int,
    ) -> tuple[Tensor | None, Tensor]:
        """The critic's loss, and its gradient, (P,)."""
        if batch is None:
            return None, torch.zeros_like(self.second)
        student, teacher, images = batch
        epsilon = torch.rand(
            len(student), generator=iteration_generator(self.seed, iteration, rank, "holistic")
        )
        loss = self.penalty * gradient_penalty(
            self.critic, student, teacher, images, epsilon.to(student)
        ) - distance(self.critic, student, teacher, images)
        found = torch.autograd.grad(loss, parameters)
        return loss.detach(), torch.cat([each.flatten() for each in found])

    @torch.no_grad()
    def _update(self, parameters: list[nn.Parameter], gradient: Tensor) -> None:
        self.steps += 1
        self.second.lerp_(gradient.square(), 1 - _BETA)
        scale = (self.second / (1 - _BETA ** int(self.steps))).sqrt_().add_(_EPS)
        change = (gradient / scale).mul_(self.lr).split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, change):
            parameter.sub_(part.view_as(parameter))

    def _shown(self, maps: Tensor, valid: Tensor | None) -> Tensor:
        """Void blanked, at the critic's size."""
        if valid is not None:
            maps = maps.masked_fill(~valid[:, None], 0)
        height, width = maps.shape[2:]
        longer = max(height, width)
        if longer <= self.size:
            return maps
        small = [max(1, round(side * self.size / longer)) for side in (height, width)]
        return F.interpolate(maps, small, mode="bilinear", antialias=True, align_corners=False)
