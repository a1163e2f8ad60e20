"""The bare networks by name: normalised images in, logits out.

B: images; K: dense classes, background first; C: classes. A network for segmentation turns (B, 3, H, W) into
(B, K, h, w), one for classification into (B, C). Its parameters bear the names of the files that others
publish, so that those load as they are.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import nn

from scenekd.errors import UserError

from .cifar import DEPTHS, CifarResNet, FiveLayerCNN, resnet18_cifar
from .segmentation import SEGMENTATION, mmseg_spec
from .spec import KEY, NetworkSpec

__all__ = ["MMSEG", "NETWORKS", "NetworkSpec", "find_network"]

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # mean, deviation of CIFAR-10's training images

MMSEG = "mmseg://"  # before the file or the name of one of MMSegmentation's configs


def _cifar_resnet(depth: int) -> NetworkSpec:
    # ImageNet's statistics, as the published weights of these networks want them
    return NetworkSpec("classification", lambda cfg, outputs: CifarResNet(depth, outputs))


def _cnn5(cfg: CfgNode, outputs: int) -> nn.Module:
    if cfg.INPUT.SIZE < 8:
        raise UserError(f"INPUT.SIZE: {cfg.INPUT.SIZE} is too small for cifar_cnn5; set it to 8 or more")
    return FiveLayerCNN(outputs, cfg.INPUT.SIZE, cfg.MODEL.FCN_KD.DROPOUT)


NETWORKS: dict[str, NetworkSpec] = {
    **SEGMENTATION,
    **{f"cifar_resnet{depth}": _cifar_resnet(depth) for depth in DEPTHS},
    "cifar_resnet18": NetworkSpec("classification", lambda cfg, outputs: resnet18_cifar(outputs), *CIFAR),
    "cifar_cnn5": NetworkSpec("classification", _cnn5, *CIFAR),
}


def find_network(name: str) -> NetworkSpec:
    """The network of a name, or of an MMSegmentation config.

    Raises:
        UserError: no such network or config.
    """
    if name.startswith(MMSEG):
        return mmseg_spec(name.removeprefix(MMSEG))
    if name not in NETWORKS:
        known = ", ".join(sorted(NETWORKS))
        raise UserError(f"{KEY}.NETWORK: {name!r}; choose one of {known}, or {MMSEG}FILE.py")
    return NETWORKS[name]
