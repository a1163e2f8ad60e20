"""Pair-wise and channel-wise distillation against each as its paper writes it, at 512 × 512, 8 images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.channel_wise import channel_wise_kd
from ..losses.pair_wise import pair_wise_kd
from .losses_compare import compare_losses
from .measure import Row
from .options import Options

CLASSES = 21
TEMPERATURE = 4.0
# Not slower, and less memory.
SPEED, MEMORY = (">=", 1.0), ("<=", 1.0)


def distill_rows(suite: str, options: Options, generator: torch.Generator) -> Iterator[Row]:
    """Logits of 21 classes: pair-wise at stride 8, pooled by two and as they are; channel-wise at full size. On every
    device there is."""
    batch, side = options.pick((8, 512), (4, 512), (2, 64))
    for device in options.devices:
        mark = "" if device == "cpu" else f" on {device}"
        for scale in (0.5, 1.0):
            maps = _pair(batch, side // 8, device, generator)
            nodes = round((side // 8 * scale) ** 2)
            yield from compare_losses(
                suite,
                options,
                f"pair-wise, {nodes} nodes{mark}",
                f"{tuple(maps[0].shape)}, scale {scale}",
                maps[:1],
                lambda student, t=maps[1], s=scale: pair_wise_kd(student, t, scale=s),
                lambda student, t=maps[1], s=scale: direct_pair_wise(student, t, s),
                speed=SPEED,
                memory=MEMORY,
            )
        maps = _pair(batch, side, device, generator)
        yield from compare_losses(
            suite,
            options,
            f"channel-wise{mark}",
            f"{tuple(maps[0].shape)}",
            maps[:1],
            lambda student, t=maps[1]: channel_wise_kd(student, t, temperature=TEMPERATURE),
            lambda student, t=maps[1]: direct_channel_wise(student, t),
            speed=SPEED,
            memory=MEMORY,
        )


def direct_pair_wise(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """The similarities of all pairs of nodes, written out for both networks, and their squared difference."""
    window = round(1 / scale)
    similarities = []
    for maps in (student, teacher):
        nodes = F.max_pool2d(maps, window, ceil_mode=True).flatten(2)
        nodes = nodes / nodes.norm(dim=1, keepdim=True)
        similarities.append(nodes.transpose(1, 2) @ nodes)
    return (similarities[0] - similarities[1]).square().mean()


def direct_channel_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """The two distributions over space, and the divergence by its formula."""
    rows = [maps.flatten(2) / TEMPERATURE for maps in (student, teacher)]
    p, q = torch.softmax(rows[1], -1), torch.softmax(rows[0], -1)
    divergence = (p * (torch.log(p) - torch.log(q))).sum(-1)
    return TEMPERATURE**2 * divergence.mean(1).mean()


def _pair(batch: int, side: int, device: str, generator: torch.Generator) -> list[Tensor]:
    shape = (batch, CLASSES, side, side)
    return [torch.randn(shape, generator=generator).to(device) for _ in range(2)]
