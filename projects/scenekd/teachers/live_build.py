"""The online teacher of a configuration: ``TEACHER.<TASK>`` as a network that is asked for the student's own batch.

N: images; H, W: their size; T: classes of the teacher; K: of the student; dense ones with background first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .build import teacher_class_map
from .label_map import BACKGROUND, UNREACHED, ClassMap, canonical
from .live import LiveSceneKD, LiveTeacher, LiveTorchvision, asked
from .options import FOLDERS, our_classes, teacher_node

ONLINE = ("torchvision", "scenekd", "mmseg")


class OnlineTeacher:
    """A frozen network whose logits come in the student's classes.

    Args:
        teacher: asked in evaluation mode, without gradients. class_map: from its classes to the student's.
        dense: whether both have background before their classes.

    Attributes:
        net: the network itself, whose layers feature losses name; no module of the student's.
    """

    def __init__(self, teacher: LiveTeacher, class_map: ClassMap, *, dense: bool = True) -> None:
        self._teacher, self.net = teacher, teacher.net
        # The student's plane for each of the teacher's; without background, what stands for it has none.
        place = [0, *(i + 1 for i in class_map.index)] if dense else list(class_map.index)
        self._place = None if class_map.is_identity else torch.tensor(place)
        self._planes = len(class_map.target) + dense

    def logits(self, images: Tensor) -> Tensor:
        """(N, K, h, w), on the teacher's own grid, or (N, C), of (N, 3, H, W) float RGB images in 0…255.

        Raises:
            UserError: they are not finite.
        """
        with asked(self._teacher, images.device):
            said = self._teacher.logits(images).float()
            if not torch.isfinite(said).all():
                raise UserError(
                    "TEACHER: its logits are not finite; check its weights and TEACHER.<TASK>.CONFIG"
                )
            return said if self._place is None else join_planes(said, self._place, self._planes)


def join_planes(logits: Tensor, place: Tensor, planes: int) -> Tensor:
    """(N, T, …) → (N, planes, …): each plane goes to its ``place`` (T,), or to none below 0.

    Teacher classes that stand for one class are joined by their log-sum-exp, so that the probability is the sum; a
    class that none stands for gets e^−30 of the whole.
    """
    level = torch.logsumexp(logits, dim=1) + UNREACHED
    place = place.to(logits.device)
    joined = [logits[:, place == k] for k in range(planes)]
    return torch.stack([level if not j.shape[1] else torch.logsumexp(j, dim=1) for j in joined], dim=1)


def build_online(cfg: Any, task: str = "segmentation") -> OnlineTeacher:
    """The teacher of ``cfg.TEACHER.<TASK>``.

    Raises:
        UserError: no teacher, one that cannot be asked online, weights that cannot be had, or classes without
            counterpart.
    """
    node, key = teacher_node(cfg, task), f"TEACHER.{task.upper()}"
    if node.TYPE in FOLDERS:
        raise UserError(f"DISTILL.TEACHER: {node.TYPE} holds saved outputs; set it to cached")
    if node.TYPE not in ONLINE:
        raise UserError(f"{key}.TYPE: {node.TYPE!r} is no online teacher; choose {', '.join(ONLINE)}")
    dense = task == "segmentation"
    # Class names that neither a checkpoint nor its configuration tells are taken to be the student's.
    names = tuple(node.CLASSES) or (() if dense else our_classes(cfg))
    try:
        teacher = _live(node, names, task)
    except UserError as error:
        raise UserError(str(error).replace("TEACHER.<TASK>", key)) from None
    if not dense:
        return OnlineTeacher(teacher, teacher_class_map(cfg, task, teacher.names), dense=False)
    if canonical(teacher.names[0]) != BACKGROUND:
        raise UserError(f"{key}: its first dense class is {teacher.names[0]!r}, not background")
    return OnlineTeacher(teacher, teacher_class_map(cfg, task, teacher.names[1:]))


def _live(node: Any, names: Sequence[str], task: str) -> LiveTeacher:
    """A teacher by its type; frameworks are imported only here."""
    if task == "classification" and node.TYPE != "scenekd":
        raise UserError(f"TEACHER.<TASK>.TYPE: {node.TYPE} has no classifiers here; take scenekd")
    if node.TYPE == "torchvision":
        return LiveTorchvision(node.NAME, node.WEIGHTS, names)
    if node.TYPE == "mmseg":
        from ..engines.mmengine_live import LiveMMSegmentation

        return LiveMMSegmentation(node.NAME, node.WEIGHTS, names)
    return LiveSceneKD(node.WEIGHTS, node.CONFIG, names, task=task)
