"""The student under a name in the frameworks' registries, with plain keyword arguments."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from scenekd.config import get_cfg
from scenekd.data.voc import VOC_CLASSES
from scenekd.registry import register

from .networks import find_network
from .student import SceneKDStudent, build_model


@register("model", "SceneKDStudent")
class RegisteredStudent(SceneKDStudent):
    """A network of fcn_kd with its normalisation; it learns from the labels by cross-entropy.

    Args:
        network: a name of :data:`.networks.NETWORKS`, or ``mmseg://FILE``.
        num_classes: without background.
        image_size: side of the square input; it decides the layers of cifar_cnn5 alone.
        output_stride, trunk_width, norm, head_channels, dropout, head_lr_factor, loss_size: the keys of these names
            below ``MODEL.FCN_KD``.

    Raises:
        UserError: no such network, or a value out of range.
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
    ) -> None:
        cfg = get_cfg("fcn_kd")
        cfg.INPUT.SIZE = image_size
        node = cfg.MODEL.FCN_KD
        node.NETWORK, node.OUTPUT_STRIDE, node.TRUNK_WIDTH, node.NORM = (
            network,
            output_stride,
            trunk_width,
            norm,
        )
        node.HEAD_CHANNELS, node.DROPOUT, node.HEAD_LR_FACTOR = head_channels, dropout, head_lr_factor
        spec = find_network(network)
        outputs = num_classes + (spec.task == "segmentation")
        super().__init__(spec.build(cfg, outputs), spec, loss_size=loss_size)
        self.image_size = image_size

    @classmethod
    def from_config(cls, cfg: CfgNode, *, pretrained: bool = True) -> SceneKDStudent:
        """The student of ``cfg.MODEL.FCN_KD``."""
        return build_model(cfg, pretrained=pretrained)
