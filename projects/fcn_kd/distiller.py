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
        self.teacher = teacher  # no module, so in none of the student's state dicts
        self.iteration = 0

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
        """One step's logits of the student, and its losses against the teacher by name, ``loss_<type>``.

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
            shown=_shown(targets, labels),
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
    return (target.class_label if labels.ndim == 1 else target.sem_seg) is not None


def _shown(targets: Sequence[Target], labels: Tensor) -> Tensor | None:
    """(B, h, w) bool, the pixels that show an image; of the others a teacher has nothing to say. None: all."""
    shown = [target.soft_valid for target in targets]
    if labels.ndim == 1 or any(one is None for one in shown):
        return None
    return resized_labels(torch.stack([one for one in shown if one is not None]), tuple(labels.shape[1:]))


def build_distiller(
    cfg: CfgNode, student: nn.Module, task: str, *, outputs: int, ignore_index: int, ask: bool = True
) -> Distiller | None:
    """From ``DISTILL.TEACHER``, ``DISTILL.LOSSES`` and ``TEACHER``; None where nothing is learned from a teacher.

    Args:
        student: the bare network. outputs: of its logits. ignore_index: label of what is void.
        ask: load the online teacher; without it the caller does, before the first step, and no loss may name a layer.

    Raises:
        UserError: losses without a teacher or the reverse, a loss that needs a network where outputs are cached,
            settings of the policy that the losses do not follow, or anything wrong with teacher or losses.
    """
    source, specs = cfg.DISTILL.TEACHER, cfg.DISTILL.LOSSES
    if not specs:
        _check_unused(cfg)
        return None
    if source == "none":
        raise UserError("DISTILL.LOSSES: they need a teacher; set DISTILL.TEACHER to online or cached")
    if source == "cached":
        _check_cached(cfg, task)
    teacher = build_online(cfg, task) if source == "online" and ask else None
    try:
        losses = DistillationLosses(
            specs,
            student=student,
            teacher=None if teacher is None else teacher.net,
            num_classes=outputs,
            max_iter=max(1, cfg.SOLVER.MAX_ITER),
            seed=cfg.SEED,
            ignore_index=ignore_index,
        )
    except UserError as error:
        raise UserError(f"DISTILL.LOSSES: {error}") from None
    return Distiller(losses, teacher)


def _check_unused(cfg: CfgNode) -> None:
    """A teacher is named, and nothing is learned from it."""
    source = cfg.DISTILL.TEACHER
    if source == "online" or (source == "cached" and cfg.DISTILL.SEGMENTATION.POLICY != "ground_truth"):
        raise UserError(
            f"DISTILL.LOSSES: empty, so nothing is learned from the {source} teacher; name a loss, or set "
            "DISTILL.TEACHER none"
        )


# What DISTILL.SEGMENTATION must say of a cached teacher: how it counts is for each loss of the list to say.
_CACHED = {
    "TARGET": "logits",
    "TEMPERATURE": 1.0,
    "TEMPER_STUDENT": False,
    "CONFIDENCE": "none",
    "TOP_K": 0,
    "VOID": "padding",
}


def _check_cached(cfg: CfgNode, task: str) -> None:
    """The cache gives logits of every image beside its labels."""
    if task != "segmentation":
        raise UserError(f"DISTILL.TEACHER: teachers of {task} are not cached; set it to online")
    node, key = cfg.DISTILL.SEGMENTATION, "DISTILL.SEGMENTATION"
    if node.POLICY not in ("combined", "teacher"):
        raise UserError(
            f"{key}.POLICY: {node.POLICY}; the losses of DISTILL.LOSSES need a cached teacher on every image: set it "
            "to combined, or to teacher to leave the labels out"
        )
    if node.POLICY == "combined" and (node.GT_WEIGHT, node.TEACHER_WEIGHT) != (1.0, 1.0):
        raise UserError(
            f"{key}: GT_WEIGHT and TEACHER_WEIGHT must be 1 beside DISTILL.LOSSES, whose WEIGHT and ALPHA count"
        )
    for name, value in _CACHED.items():
        if node[name] != value:
            raise UserError(
                f"{key}.{name}: {node[name]}; beside DISTILL.LOSSES, whose own keys count, set it to {value}"
            )
