"""What the losses share: normalisers over the processes of a distributed run, empty batches, precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, the means are this process's own: for a look at a loss that the other processes do not take."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of ``value`` over all processes; ``value`` itself in a single process. Without gradient.

    A loss that each process divides by the mean of a count is, once DDP has averaged the gradients, the loss
    over the whole batch divided by the whole count. Every process must call it, in the same order.
    """
    if _alone.get() or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def safe_count(value: Tensor) -> Tensor:
    """``value``, or 1 where it is 0: what to divide by where nothing may have been counted."""
    return value + (value == 0).to(value)


def zero_loss(output: Tensor) -> Tensor:
    """0 with a gradient of zeros for ``output``: an absent task still takes part in the backward pass, which
    DDP relies on. Finite even where ``output`` is not."""
    return output.flatten()[:0].sum()


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` in float32 where they are in half precision, too coarse for sums over pixels and anchors."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
