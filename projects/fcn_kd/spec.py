"""What the system must know of a network beside its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fvcore.common.config import CfgNode
from torch import nn

from scenekd.nets.trunks import PIXEL_MEAN, PIXEL_STD

KEY = "MODEL.FCN_KD"


@dataclass(frozen=True)
class NetworkSpec:
    """How a network is built and fed.

    Attributes:
        task: ``segmentation`` or ``classification``.
        build: ``build(cfg, outputs)`` → the network with so many outputs, from ``cfg.MODEL.FCN_KD``.
        mean, std: of RGB in 0…1.
        trunk: name of the child that may be loaded alone, from weights of a classifier; "" where there is none.
        zoo: torchvision's name of that trunk; "" where torchvision has no weights of it.
    """

    task: str
    build: Callable[[CfgNode, int], nn.Module]
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD
    trunk: str = ""
    zoo: str = ""
