"""What a student learns by: the labels, and the losses of ``DISTILL.LOSSES`` against a teacher that is asked online or
was cached.

B: images; K: dense classes, background first; C: classes; H, W: network input; h, w: a network's own grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.distillation import DistillationLosses
from scenekd.losses.positions import resized_labels
from scenekd.sample import Target
from scenekd.teachers.live_build import OnlineTeacher, build_online


class Distiller(nn.Module):
    """The teacher's part of a training step.

    Args:
        losses: see :class:`scenekd.losses.distillation.DistillationLosses`; adaptors and critics are this module's
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

    def forward(
        self,
        student: Callable[[Tensor], Tensor],
        images: Tensor,
        targets: Sequence[Target],
        labels_for: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step's logits of the student, and its losses against the teacher, ``loss_<type>``.

        Args:
            student: images → logits, (B, K, h, w) or (B, C). images: (B, 3, H, W) float32 RGB in 0…255.
            labels_for: the student's logits → labels (B, …), at the size at which pixels are compared.

        Raises:
            UserError: the teacher has no output for an image, or one that is not finite.
        """
        with self.losses.watch():
            logits = student(images)
            said = self._ask(images, targets)
        labels = labels_for(logits)
        found = self.losses(
            logits,
            said,
            labels,
            iteration=self.iteration,
            images=images,
            shown=None if self.teacher is not None else _shown(targets, labels),
            labelled=torch.tensor([_has_label(t, labels) for t in targets], device=labels.device),
        )
        return logits, found

    def _ask(self, images: Tensor, targets: Sequence[Target]) -> Tensor:
        if self.teacher is not None:
            return self.teacher.logits(images)
        said = [target.soft_seg for target in targets]
        for target, one in zip(targets, said):
            if one is None:
                raise UserError(
                    f"image {target.image_id}: the teacher's cache has nothing for it; run tools/cache_teacher.py again"
                )
        return torch.stack([one for one in said if one is not None])


def _has_label(target: Target, labels: Tensor) -> bool:
    return target.has_class_label if labels.ndim == 1 else target.sem_seg is not None


def _shown(targets: Sequence[Target], labels: Tensor) -> Tensor | None:
    """(B, h, w) bool, the pixels that show an image; a cached teacher said nothing of the others."""
    shown = [target.soft_valid for target in targets]
    if any(one is None for one in shown):
        return None
    return resized_labels(torch.stack([one for one in shown if one is not None]), tuple(labels.shape[1:]))


def build_distiller(
    cfg: CfgNode, student: nn.Module, task: str, *, outputs: int, ignore_index: int
) -> Distiller | None:
    """From ``DISTILL.TEACHER``, ``DISTILL.LOSSES`` and ``TEACHER``; None where nothing is learned from a teacher.

    Args:
        student: the bare network. outputs: of its logits. ignore_index: label of what is void.

    Raises:
        UserError: losses without a teacher or the reverse, a loss that needs a network where outputs are cached, or
            anything wrong with either.
    """
    source, specs = cfg.DISTILL.TEACHER, [dict(one) for one in cfg.DISTILL.LOSSES]
    if not specs or source == "none":
        if specs:
            raise UserError("DISTILL.LOSSES: they need a teacher; set DISTILL.TEACHER to online or cached")
        return None
    if source == "cached" and task != "segmentation":
        raise UserError(f"DISTILL.TEACHER: teachers of {task} are not cached; set it to online")
    if source == "cached" and not policy_asks(cfg):
        raise UserError(
            "DISTILL.SEGMENTATION.POLICY: with DISTILL.TEACHER cached every image needs the teacher; set it to "
            "combined, both weights to 1"
        )
    teacher = build_online(cfg, task) if source == "online" else None
    losses = DistillationLosses(
        specs,
        student=student,
        teacher=None if teacher is None else teacher.net,
        num_classes=outputs,
        max_iter=max(1, cfg.SOLVER.MAX_ITER),
        seed=cfg.SEED,
        ignore_index=ignore_index,
    )
    return Distiller(losses, teacher)


def policy_asks(cfg: CfgNode) -> bool:
    """Whether the policy takes the teacher's word on every image beside the labels."""
    node = cfg.DISTILL.SEGMENTATION
    return bool(node.POLICY == "teacher" or (node.POLICY == "combined" and node.TEACHER_WEIGHT > 0))
