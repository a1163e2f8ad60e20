"""A loss, forward and backward, against a direct formulation of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .measure import Row, interleave, peak_bytes
from .options import Options


def compare_losses(
    suite: str,
    options: Options,
    name: str,
    what: str,
    inputs: list[Tensor],
    ours: Callable[..., Tensor],
    peer: Callable[..., Tensor],
    *,
    speed: tuple[str, float] | None = None,
    memory: tuple[str, float] | None = None,
) -> Iterator[Row]:
    """Difference of the gradients, time and memory.

    Args:
        what: the shapes, in words. inputs: what both sides take, and are differentiated for; on one device.
        speed, memory: targets, see :class:`.measure.Row`.
    """
    leaves = [value.requires_grad_() for value in inputs]

    def step(loss: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(*leaves), leaves)

    pairs = list(zip(step(ours), step(peer)))
    worst = max(float((a - b).norm() / b.norm().clamp(min=1e-20)) for a, b in pairs)
    del pairs
    detail = f"{what}; |ours − dense| / |dense|, gradients"
    yield Row(suite, f"{name}: relative difference from dense", worst, unit="", detail=detail)
    times = interleave(lambda: step(ours), lambda: step(peer), repeats=options.repeats())
    detail = f"{what}, forward and backward: {times.describe('dense')}"
    yield Row(suite, f"{name}: speed against dense", *times.speedup, target=speed, detail=detail)
    device = leaves[0].device.type
    own, theirs = peak_bytes(lambda: step(ours), device), peak_bytes(lambda: step(peer), device)
    detail = f"ours {own / 2**20:.1f} MiB, dense {theirs / 2**20:.1f} MiB"
    yield Row(suite, f"{name}: peak memory against dense", own / theirs, target=memory, detail=detail)
