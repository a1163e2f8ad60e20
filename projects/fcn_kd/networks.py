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

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, deviation of RGB in 0…1


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


NETWORKS: dict[str, NetworkSpec] = {}


def find_network(name: str) -> NetworkSpec:
    """The network of a name.

    Raises:
        UserError: no such network.
    """
    if name not in NETWORKS:
        raise UserError(f"MODEL.FCN_KD.NETWORK: {name!r}; choose one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]
