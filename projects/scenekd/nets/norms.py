"""Normalisation layers by name, and their exchange in a network that is there."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ..errors import UserError

NORMS = ("BN", "SyncBN", "FrozenBN", "GN")
GROUP_CHANNELS = 8


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, for accelerators; on the CPU (gloo) each process uses its own batch."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu":
            return nn.BatchNorm2d.forward(self, input)
        return super().forward(input)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu & He, ECCV 2018) over groups of eight channels: right for small batches, where the
    statistics of a one-cell map over a few images are noise."""
    return nn.GroupNorm(math.gcd(channels, max(1, channels // GROUP_CHANNELS)), channels)


def norm_layer(norm: str, channels: int) -> nn.Module:
    """``BN``, ``SyncBN`` or ``GN``, trainable. ``FrozenBN`` is for the trunk, here it is BN."""
    if norm == "GN":
        return group_norm(channels)
    return SyncBatchNorm(channels) if norm == "SyncBN" else nn.BatchNorm2d(channels)


def check_norm(norm: str, key: str) -> None:
    """Raises:
    UserError: no such norm; ``key`` is the configuration node whose ``NORM`` it is.
    """
    if norm not in NORMS:
        raise UserError(f"{key}.NORM: unknown norm {norm!r}; choose one of {', '.join(NORMS)}")


def convert_norm(module: nn.Module, norm: str, *, kind: type[nn.Module] = nn.BatchNorm2d) -> None:
    """Replace every layer of ``kind``, a batch normalisation, below ``module`` by ``norm``, with its values, in place.

    ``FrozenBN`` has buffers in place of parameters and of batch statistics. ``SyncBN`` falls back to each
    process's own batch on the CPU.
    """
    if norm == "BN":
        return
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, _converted(child, norm))
        else:
            convert_norm(child, norm, kind=kind)


def _converted(old: Any, norm: str) -> nn.Module:
    new: nn.Module
    if norm == "GN":
        new = group_norm(old.num_features)
        new.load_state_dict({"weight": old.weight, "bias": old.bias})
    elif norm == "SyncBN":
        new = SyncBatchNorm(old.num_features, eps=old.eps, momentum=old.momentum)
        new.load_state_dict(old.state_dict())
    else:
        new = FrozenBatchNorm2d(old.num_features, eps=old.eps)
        new.load_state_dict(old.state_dict(), strict=False)  # it keeps no count of batches
    return new
