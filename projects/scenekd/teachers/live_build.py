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
from .options import FOLDERS, teacher_node

ONLINE = ("torchvision", "scenekd", "mmseg")


class OnlineTeacher:
    """A frozen network whose logits come in the student's classes.

    Args:
        teacher: asked in evaluation mode, without gradients. class_map: from its classes to the student's.

    Attributes:
        net: the network itself, whose layers feature losses name; no module of the student's.
    """

    def __init__(self, teacher: LiveTeacher, class_map: ClassMap) -> None:
        self._teacher, self.net = teacher, teacher.net
        place = [0, *(i + 1 for i in class_map.index)]  # the student's plane for each of the teacher's
        self._place = None if class_map.is_identity else torch.tensor(place)
        self._planes = len(class_map.target) + 1

    def logits(self, images: Tensor) -> Tensor:
        """(N, K, h, w) of (N, 3, H, W) float RGB images in 0…255, on the teacher's own grid.

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
    """(N, T, …) → (N, planes, …): teacher classes that stand for one class are joined by their log-sum-exp, so
    that the probability is the sum; a class that none stands for gets e^−30 of the whole."""
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
    names: Sequence[str] = tuple(node.CLASSES)
    try:
        teacher = _live(node, names)
    except UserError as error:
        raise UserError(str(error).replace("TEACHER.<TASK>", key)) from None
    if canonical(teacher.names[0]) != BACKGROUND:
        raise UserError(f"{key}: its first dense class is {teacher.names[0]!r}, not background")
    return OnlineTeacher(teacher, teacher_class_map(cfg, task, teacher.names[1:]))


def _live(node: Any, names: Sequence[str]) -> LiveTeacher:
    """A teacher by its type; frameworks are imported only here."""
    if node.TYPE == "torchvision":
        return LiveTorchvision(node.NAME, node.WEIGHTS, names)
    if node.TYPE == "mmseg":
        from ..engines.mmengine_live import LiveMMSegmentation

        return LiveMMSegmentation(node.NAME, node.WEIGHTS, names)
    return LiveSceneKD(node.WEIGHTS, node.CONFIG, names)
