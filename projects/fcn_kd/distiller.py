"""What a student learns by: the labels, and the losses of ``DISTILL.LOSSES`` against a teacher that is asked online or
was cached.

B: images; K: dense classes, background first; C: classes; H, W: network input; h, w: a network's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.distillation import DistillationLosses
from scenekd.sample import Target
from scenekd.teachers.live_build import OnlineTeacher, build_online


class Distiller(nn.Module):
    """The teacher's part of a training step.

    Args:
        losses: see :class:`scenekd.losses.distillation.DistillationLosses`; their adaptors and critics are this module's
            only parameters.
        teacher: asked for each batch; None where its output was cached and comes with the targets.
    """

    def __init__(self, losses: DistillationLosses, teacher: OnlineTeacher | None) -> None:
        super().__init__()
        self.losses = losses
        self._teacher = (teacher,)  # in a tuple: no module of the student's, so in none of its state dicts
        self.iteration = 0

    @property
    def teacher(self) -> OnlineTeacher | None:
        """Asked for each batch, or None."""
        return self._teacher[0]

    def begin_step(self, iteration: int) -> None:
        """Tell the step (0-based), which the schedules of the weights follow."""
        self.iteration = iteration

    def end_step(self, iteration: int) -> None:
        """After the student's step: the critic's turn, where there is one."""
        self.losses.after_step(iteration)

    def ask(self, images: Tensor, targets: Sequence[Target]) -> Tensor:
        """The teacher's logits for a batch, (B, K, h, w) or (B, C).

        Raises:
            UserError: a cached output is missing.
        """
        if self.teacher is not None:
            return self.teacher.logits(images)
        said = [target.soft_seg for target in targets]
        for target, one in zip(targets, said):
            if one is None:
                raise UserError(
                    f"image {target.image_id}: the teacher's cache has nothing for it; run tools/cache_teacher.py again"
                )
        return torch.stack([one for one in said if one is not None])


def build_distiller(cfg: CfgNode, student: nn.Module, task: str, outputs: int) -> Distiller | None:
    """From ``DISTILL.TEACHER``, ``DISTILL.LOSSES`` and ``TEACHER``; None where nothing is learned from a teacher.

    Args:
        student: the bare network. outputs: of its logits.

    Raises:
        UserError: losses without a teacher or the reverse, a loss that needs a network where outputs are cached, or
            anything wrong with either.
    """
    source, specs = cfg.DISTILL.TEACHER, [dict(one) for one in cfg.DISTILL.LOSSES]
    if not specs or source == "none":
        if specs:
            raise UserError("DISTILL.LOSSES: they need a teacher; set DISTILL.TEACHER to online or cached")
        return None
    teacher = build_online(cfg, task) if source == "online" else None
    options: dict[str, Any] = {"num_classes": outputs, "max_iter": cfg.SOLVER.MAX_ITER, "seed": cfg.SEED}
    net = None if teacher is None else teacher.net
    losses = DistillationLosses(specs, student=student, teacher=net, **options)
    return Distiller(losses, teacher)
