"""The bare networks by name: normalised images in, logits out.

B: images; K: dense classes, background first; C: classes. A network for segmentation turns (B, 3, H, W) into
(B, K, h, w), one for classification into (B, C). Its parameters bear the names of the files that others
publish, so that those load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fvcore.common.config import CfgNode
from torch import nn

from scenekd.errors import UserError

from .cifar import DEPTHS, CifarResNet, FiveLayerCNN, resnet18_cifar

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, deviation of RGB in 0…1

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # the same of CIFAR-10's training images


@dataclass(frozen=True)
class NetworkSpec:
    """How a network is built and fed.

    Attributes:
        task: ``segmentation`` or ``classification``.
        build: ``build(cfg, outputs)`` → the network with so many outputs, from ``cfg.MODEL.FCN_KD``.
        mean, std: of RGB in 0…1.
        load_zoo: loads torchvision's weights into its trunk; None where there are none.
    """

    task: str
    build: Callable[[CfgNode, int], nn.Module]
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    load_zoo: Callable[[nn.Module], None] | None = None


def _cifar_resnet(depth: int) -> NetworkSpec:
    # ImageNet's statistics, as the published weights of these networks want them
    return NetworkSpec("classification", lambda cfg, outputs: CifarResNet(depth, outputs))


def _cnn5(cfg: CfgNode, outputs: int) -> nn.Module:
    if cfg.INPUT.SIZE < 8:
        raise UserError(f"INPUT.SIZE: {cfg.INPUT.SIZE} is too small for cifar_cnn5; set it to 8 or more")
    return FiveLayerCNN(outputs, cfg.INPUT.SIZE, cfg.MODEL.FCN_KD.DROPOUT)


NETWORKS: dict[str, NetworkSpec] = {
    **{f"cifar_resnet{depth}": _cifar_resnet(depth) for depth in DEPTHS},
    "cifar_resnet18": NetworkSpec("classification", lambda cfg, outputs: resnet18_cifar(outputs), *CIFAR),
    "cifar_cnn5": NetworkSpec("classification", _cnn5, *CIFAR),
}


def find_network(name: str) -> NetworkSpec:
    """The network of a name.

    Raises:
        UserError: no such network.
    """
    if name not in NETWORKS:
        raise UserError(f"MODEL.FCN_KD.NETWORK: {name!r}; choose one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]
