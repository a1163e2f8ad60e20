"""The teacher of a stream: any classifier that ``TEACHER.CLASSIFICATION`` names, asked for logits, and for its feature
map where attention is compared.

N: images; C: classes of the student; D, h, w: the teacher's feature map.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.attention_maps import last_linear
from scenekd.models import choose_device
from scenekd.teachers.live_build import OnlineTeacher, build_online
from scenekd.teachers.overlap import shared_images

from .prior import Prior
from .tap import LayerTap

TASK = "classification"

logger = logging.getLogger(__name__)


class StreamTeacher:
    """An online teacher with its feature map.

    Args:
        teacher: whose logits come in the student's classes. layer: path of the module whose output is the feature map;
            "": the last that says more than one value a channel, found when it is first wanted.

    Attributes:
        net: the network itself. head: its last linear layer, None where it has none. classes: names of its answers.
        answered: numbers of the classes that it can give.
    """

    def __init__(self, teacher: OnlineTeacher, layer: str = "") -> None:
        self._teacher, self._layer, self._tap = (
            teacher,
            layer,
            None if not layer else self._listen(teacher, layer),
        )
        self.net, self.head = teacher.net, last_linear(teacher.net)
        self.classes, self.answered = tuple(teacher.classes), teacher.answered

    @staticmethod
    def _listen(teacher: OnlineTeacher, layer: str) -> LayerTap:
        try:
            return LayerTap(teacher.net, layer, root=True)
        except ValueError as error:
            known = [name for name, _ in teacher.net.named_children()]
            raise UserError(
                f"MODEL.ENVISE.TEACHER_LAYER: the teacher: {error}; it begins with {', '.join(known)}"
            ) from None

    def logits(self, images: Tensor) -> Tensor:
        """(N, C) without gradients, of (N, 3, H, W) float32 RGB in 0…255."""
        return self._teacher.logits(images)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map (N, D, h, w), a leaf that asks for gradients, and the logits (N, C) as they follow from it;
        the network's parameters get none."""
        if self._tap is None:
            self._layer = find_feature_layer(self._teacher, images[:1])
            self._tap = self._listen(self._teacher, self._layer)
        with self._tap.listening() as heard:
            logits = self._teacher.logits(images, gradients=True)
        return heard.output, logits


def find_feature_layer(teacher: OnlineTeacher, images: Tensor) -> str:
    """The path of the last module to end whose output is (N, D, h, w) with h·w > 1.

    Raises:
        UserError: there is none.
    """
    last = [""]
    handles = []
    for name, module in teacher.net.named_modules():

        def hook(module: nn.Module, args: object, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                last[0] = name

        handles.append(module.register_forward_hook(hook))
    try:
        teacher.logits(images)
    finally:
        for handle in handles:
            handle.remove()
    if not last[0]:
        raise UserError("MODEL.ENVISE.TEACHER_LAYER: the teacher has no feature map; name a layer of it")
    return last[0]


def build_stream_teacher(
    cfg: CfgNode, classes: tuple[str, ...] = ()
) -> tuple[StreamTeacher, tuple[str, ...]]:
    """The teacher, and the classes of its answers: ``classes``, or its own where the stream tells none.

    Raises:
        UserError: what :func:`scenekd.teachers.live_build.build_online` raises; it was trained on images of the stream.
    """
    named = cfg.clone()
    named.defrost()
    named.DATASETS.CLASSES = classes or tuple(cfg.DATASETS.CLASSES)
    if cfg.STREAM.SOURCE:  # no data set is looked at, nor need any be at hand
        named.DATASETS.TRAIN = named.DATASETS.TEST = ()
    named.freeze()
    online = build_online(named, TASK, own_classes=not named.DATASETS.CLASSES)
    online.net.to(choose_device(cfg))
    if not cfg.STREAM.SOURCE:
        check_stream_overlap(cfg, online.trained_on)
    return StreamTeacher(online, cfg.MODEL.ENVISE.TEACHER_LAYER), online.classes


def check_stream_overlap(cfg: CfgNode, trained_on: Iterable[str], task: str = TASK) -> None:
    """Refuse a teacher that was trained on images of the stream, as far as its training sets are known and at hand;
    unless ``DATASETS.ALLOW_OVERLAP``.

    Raises:
        UserError: it was.
    """
    known, key = tuple(trained_on), f"TEACHER.{task.upper()}"
    if not known:
        logger.warning("%s.TRAINED_ON: not known; whether it saw the stream is not checked", key)
    for name in known:
        shared = shared_images(cfg, name, "TRAIN")
        if shared and not cfg.DATASETS.ALLOW_OVERLAP:
            raise UserError(
                f"{key}: trained on {name}, which shares {shared} images with the stream "
                f"({', '.join(cfg.DATASETS.TRAIN)}); choose other data, or set DATASETS.ALLOW_OVERLAP True"
            )
        count = "an unknown number of" if shared is None else str(shared)
        logger.info("the teacher, trained on %s, shares %s images with the stream", name, count)


def check_teacher_knows(
    teacher_classes: Iterable[int], priors: Iterable[Prior], classes: tuple[str, ...]
) -> None:
    """Refuse a teacher that lacks a class which the pairs name.

    Args:
        teacher_classes: numbers of the classes that it can answer.

    Raises:
        UserError: it lacks one.
    """
    known = set(teacher_classes)
    for prior in priors:
        missing = [classes[c] for c in (*prior.pair.inliers, *prior.pair.outliers) if c not in known]
        if missing:
            more = ", …" if len(missing) > 3 else ""
            raise UserError(
                f"TEACHER.CLASSIFICATION: the teacher lacks {len(missing)} classes that pair {prior.pair.name} names "
                f"({', '.join(missing[:3])}{more}); choose another teacher or pair"
            )
