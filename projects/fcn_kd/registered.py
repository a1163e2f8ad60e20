"""The student under a name in the frameworks' registries, trained by their own trainers.

Who drives a network of SceneKD's tells it the steps of a run; a framework's own trainer does not, so the adapters do:
``begin_training`` once, then ``begin_step`` and ``end_step`` of every step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.config import build_config
from scenekd.data.voc import VOC_CLASSES
from scenekd.errors import UserError
from scenekd.registry import register
from scenekd.sample import Prediction, Target
from scenekd.teachers.live_build import build_online

from .distiller import build_distiller
from .networks import find_network
from .spec import NetworkSpec
from .student import SceneKDStudent, build_model, count_outputs


class NativeStudent(SceneKDStudent):
    """A student that loads its teacher when training begins, so that a trained one needs none.

    Args:
        cfg: its ``DISTILL`` and ``TEACHER`` say what it learns by. Adaptors and critics are there from the start, for
            the framework's optimizer and checkpoints; where a loss names a layer they follow the teacher's, which is
            loaded at once, and what is wrong with it is told when training begins.
        network, spec, loss_size: see :class:`.student.SceneKDStudent`.

    Raises:
        UserError: an entry of ``DISTILL.LOSSES`` is wrong; losses without a teacher, or a teacher without losses.
    """

    def __init__(
        self, network: nn.Module, spec: NetworkSpec, *, cfg: CfgNode, loss_size: str = "image"
    ) -> None:
        super().__init__(network, spec, loss_size=loss_size)
        self._cfg, self._fault = cfg, ""
        if cfg.DISTILL.LOSSES and cfg.DISTILL.TEACHER == "cached":
            raise UserError(
                "DISTILL.TEACHER: cached; SceneKDStudent in a framework's own configuration asks its teacher; set it "
                "to online"
            )
        on_layers = any(isinstance(spec, Mapping) and spec.get("TEACHER") for spec in cfg.DISTILL.LOSSES)
        try:
            self.distiller = build_distiller(
                cfg,
                self.network,
                self.tasks[0],
                outputs=count_outputs(cfg, self.tasks[0]),
                ignore_index=self.ignore_index,
                ask=on_layers,
            )
        except UserError as error:
            if not on_layers:
                raise
            self._fault = str(error)

    def begin_training(self) -> None:
        """Load the online teacher, where there is one and it is not there yet.

        Raises:
            UserError: it cannot be had, or a loss names a layer that does not exist.
        """
        if self._fault:
            raise UserError(self._fault)
        if self.distiller is not None and self.distiller.teacher is None:
            self.distiller.teacher = build_online(self._cfg, self.tasks[0])

    def begin_step(self, iteration: int, iterations: int) -> None:
        """Tell the step (0-based) of so many; what the last one left open is ended."""
        self.end_step()
        if self.distiller is not None:
            self.distiller.losses.max_iter = max(1, iterations)
            self.distiller.begin_step(iteration)

    def end_step(self) -> None:
        """After the optimizer's step; a second call does nothing."""
        if self.distiller is not None:
            self.distiller.end_step(self.distiller.iteration)

    def forward(
        self, images: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """As in :class:`.student.SceneKDStudent`."""
        if self.training:
            self.begin_training()
        return super().forward(images, targets)


@register("model", "SceneKDStudent")
class RegisteredStudent(NativeStudent):
    """A network of fcn_kd with its normalisation; it learns from the labels by cross-entropy, and from a teacher.

    Args:
        network: a name of :data:`.networks.NETWORKS`, or ``mmseg://FILE``.
        num_classes: without background.
        image_size: side of the square input; it decides the layers of cifar_cnn5 alone.
        output_stride, trunk_width, norm, head_channels, dropout, head_lr_factor, loss_size: the keys of these names
            below ``MODEL.FCN_KD``.
        teacher: what ``TEACHER.SEGMENTATION`` (of a classifier, ``TEACHER.CLASSIFICATION``) says, a URI or a mapping of
            its keys. distill: what ``DISTILL.LOSSES`` says, a list of mappings with a TYPE. distill_seed: of what the
            losses draw.
        classes: the student's classes, without background, held against the teacher's by name; VOC's where empty.

    Raises:
        UserError: no such network, or a value out of range; classes are of another number; what
            :class:`NativeStudent` raises.
        ValueError: an unknown ``loss_size``.
    """

    def __init__(
        self,
        *,
        network: str = "fcn_resnet50",
        num_classes: int = len(VOC_CLASSES),
        image_size: int = 300,
        output_stride: int = 32,
        trunk_width: int = 64,
        norm: str = "BN",
        head_channels: int = 512,
        dropout: float = 0.1,
        head_lr_factor: float = 10.0,
        loss_size: str = "image",
        teacher: str | Mapping[str, Any] = "",
        distill: Sequence[Mapping[str, Any]] | Mapping[str, Any] = (),
        distill_seed: int = 0,
        classes: Sequence[str] = (),
    ) -> None:
        spec = find_network(network)
        if bool(teacher) != bool(distill):
            raise UserError("SceneKDStudent: teacher and distill belong together; give both or neither")
        if teacher and len(classes or VOC_CLASSES) != num_classes:
            raise UserError(
                f"SceneKDStudent: classes has {len(classes or VOC_CLASSES)} names for num_classes {num_classes}; name "
                "the data set's classes, without background"
            )
        node = {
            "NETWORK": network,
            "OUTPUT_STRIDE": output_stride,
            "TRUNK_WIDTH": trunk_width,
            "NORM": norm,
            "HEAD_CHANNELS": head_channels,
            "DROPOUT": dropout,
            "HEAD_LR_FACTOR": head_lr_factor,
        }
        losses = [distill] if isinstance(distill, Mapping) else list(distill)
        tree: dict[str, Any] = {
            "SYSTEM": "fcn_kd",
            "SEED": distill_seed,
            "INPUT": {"SIZE": image_size},
            "MODEL": {"FCN_KD": node},
            "DATASETS": {"CLASSES": tuple(classes)},
            "TEACHER": {spec.task.upper(): teacher if isinstance(teacher, str) else dict(teacher)},
            "DISTILL": {
                "TEACHER": "online" if teacher else "none",
                "LOSSES": tuple(dict(each) if isinstance(each, Mapping) else each for each in losses),
            },
        }
        cfg = build_config(tree, source="SceneKDStudent")
        outputs = num_classes + (spec.task == "segmentation")
        super().__init__(spec.build(cfg, outputs), spec, cfg=cfg, loss_size=loss_size)
        self.image_size = image_size

    @classmethod
    def from_config(cls, cfg: CfgNode, *, pretrained: bool = True) -> SceneKDStudent:
        """The student of ``cfg.MODEL.FCN_KD``, taught as its ``DISTILL`` and ``TEACHER`` say."""
        return build_model(cfg, pretrained=pretrained, kind=functools.partial(NativeStudent, cfg=cfg))
