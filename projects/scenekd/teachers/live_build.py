"""The online teacher of a configuration: ``TEACHER.<TASK>`` as a network that is asked for the student's own batch.

N: images; H, W: their size; T: classes of the teacher; K: of the student; dense ones with background first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..models import choose_device
from .build import teacher_amp, teacher_class_map
from .dense import dense_places
from .label_map import BACKGROUND, UNREACHED
from .live import LiveSceneKD, LiveTeacher, LiveTorchvision, asked
from .options import FOLDERS, our_classes, teacher_node
from .overlap import check_overlap

ONLINE = ("torchvision", "timm", "scenekd", "mmseg")


class OnlineTeacher:
    """A frozen network whose logits come in the student's classes.

    Args:
        teacher: asked in evaluation mode, without gradients.
        place: for each of its T planes that of the student's K, or one below 0 for none. planes: K.
        amp: mixed precision; False is float32, also where the student trains in less, None what the student has.

    Attributes:
        net: the network itself, whose layers feature losses name; no module of the student's.
        classes: names of the K planes, without background. answered: numbers of those that it can give.
        trained_on: data sets, where they are known.
    """

    classes: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()

    def __init__(
        self, teacher: LiveTeacher, place: Sequence[int], planes: int, *, amp: bool | None = False
    ) -> None:
        self._teacher, self.net, self._amp = teacher, teacher.net, amp
        self._place = None if list(place) == list(range(planes)) else place
        self._planes = planes

    @property
    def answered(self) -> tuple[int, ...]:
        """Numbers of the K planes that any of the teacher's stands for."""
        return tuple(range(self._planes)) if self._place is None else tuple(sorted({*self._place} - {-1}))

    def logits(self, images: Tensor, *, gradients: bool = False) -> Tensor:
        """(N, K, h, w), on the teacher's own grid, or (N, C), of (N, 3, H, W) float RGB images in 0…255.

        Args:
            gradients: keep the graph from whatever asks for gradients in the pass; its parameters do not.
        """
        kind = images.device.type
        precision = nullcontext() if self._amp is None else torch.autocast(kind, enabled=self._amp)
        with asked(self._teacher, images.device), precision, torch.set_grad_enabled(gradients):
            said = self._teacher.logits(images).float()
            return said if self._place is None else join_planes(said, self._place, self._planes)


def join_planes(logits: Tensor, place: Sequence[int], planes: int) -> Tensor:
    """(N, T, …) → (N, planes, …): each of the T planes goes to its ``place``, or to none below 0.

    Teacher classes that stand for one class are joined by their log-sum-exp, so that the probability is the sum; a
    class that none stands for gets e^−30 of the whole.
    """
    members = [[t for t, goes in enumerate(place) if goes == k] for k in range(planes)]
    if all(len(one) == 1 for one in members):
        return logits[:, [one[0] for one in members]]
    level = torch.logsumexp(logits, dim=1) + UNREACHED
    return torch.stack([torch.logsumexp(logits[:, one], dim=1) if one else level for one in members], dim=1)


def build_online(cfg: Any, task: str = "segmentation", *, own_classes: bool = False) -> OnlineTeacher:
    """The teacher of ``cfg.TEACHER.<TASK>``.

    Args:
        own_classes: a classifier's answers stay in its own classes, whatever ours are.

    Raises:
        UserError: no teacher, one that cannot be asked online, weights that cannot be had, classes without
            counterpart, or a teacher that was trained on test images.
    """
    node, key = teacher_node(cfg, task), f"TEACHER.{task.upper()}"
    if node.TYPE in FOLDERS:
        raise UserError(f"DISTILL.TEACHER: {node.TYPE} holds saved outputs; set it to cached")
    if node.TYPE not in ONLINE:
        raise UserError(f"{key}.TYPE: {node.TYPE!r} is no online teacher; choose {', '.join(ONLINE)}")
    dense = task == "segmentation"
    if dense and cfg.TEACHER.SEGMENTATION.SPARSE:
        raise UserError(f"{key}.SPARSE: what an online teacher says stays dense; set it to False")
    try:
        teacher = _live(cfg, node, task)
    except UserError as error:
        raise UserError(str(error).replace("TEACHER.<TASK>", key)) from None
    classes = (BACKGROUND, *our_classes(cfg)) if dense else teacher.names if own_classes else our_classes(cfg)
    if dense:
        options = {"allow_unmapped": node.ALLOW_UNMAPPED, "key": key}
        place = dense_places(teacher.names, classes, node.CLASS_MAP, **options)
    else:
        same = range(len(classes))
        place = list(same if own_classes else teacher_class_map(cfg, task, teacher.names).index)
    if not node.TRAINED_ON:  # those are checked where every teacher's are
        check_overlap(cfg, task, teacher.trained_on)
    online = OnlineTeacher(teacher, place, len(classes), amp=teacher_amp(cfg, choose_device(cfg)))
    online.classes, online.trained_on = classes[dense:], tuple(node.TRAINED_ON) or tuple(teacher.trained_on)
    return online


def _live(cfg: Any, node: Any, task: str) -> LiveTeacher:
    """A teacher by its type; frameworks are imported only here."""
    names = tuple(node.CLASSES)
    classification = task == "classification"
    if classification and node.TYPE == "mmseg" or not classification and node.TYPE == "timm":
        wanted, others = ("classifiers", "timm, ") if classification else ("dense networks", "mmseg, ")
        raise UserError(
            f"TEACHER.<TASK>.TYPE: {node.TYPE} has no {wanted} here; take {others}torchvision or scenekd"
        )
    if classification and node.TYPE in ("torchvision", "timm"):
        from .live_classifiers import timm_classifier, torchvision_classifier

        build = timm_classifier if node.TYPE == "timm" else torchvision_classifier
        return build(node.NAME, node.WEIGHTS, names, untold=tuple(cfg.DATASETS.CLASSES), seed=cfg.SEED)
    if node.TYPE == "torchvision":
        return LiveTorchvision(node.NAME, node.WEIGHTS, names)
    if node.TYPE == "mmseg":
        from ..engines.mmengine_live import zoo_segmentor

        return zoo_segmentor(node.NAME, node.WEIGHTS, names, seed=cfg.SEED)
    # Class names that neither a classifier's checkpoint nor its configuration tells are taken to be the student's.
    untold = our_classes(cfg) if classification else ()
    return LiveSceneKD(node.WEIGHTS, node.CONFIG, names, task=task, untold=untold)
