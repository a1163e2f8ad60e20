"""What a network costs: parameters, floating-point operations, size, latency, memory.

What counts as a floating-point operation: :mod:`scenekd.flops`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..benchmark.measure import peak_bytes, synchronise
from ..flops import count_flops
from .sources import Source

ROUNDS = 15
WARM_UP = 3  # untimed calls, in which torch chooses kernels and buys memory
_LONGEST = 60.0  # seconds of timing, after which no further round begins
_FEWEST = 3


@dataclass(frozen=True)
class Cost:
    """Of one image, alone in its batch.

    Attributes:
        name: of the network. size: (height, width) of its input.
        parameters: number. bytes: of all its weights, batch statistics too.
        flops: see :mod:`scenekd.flops`. uncounted: operation → output values that it computed and that ``flops`` lacks.
        seconds: a forward pass's median, smallest and largest. rounds: that were timed.
        memory: bytes of the weights and of the most that was live beside them in a forward pass.
        whole: preparation of the image is in the numbers, since the network cannot be called alone.
        device: where it ran.
    """

    name: str
    size: tuple[int, int]
    parameters: int
    bytes: int
    flops: int
    uncounted: Mapping[str, int] = field(default_factory=dict)
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rounds: int = 0
    memory: int = 0
    whole: bool = False
    device: str = "cpu"


def measure_costs(
    sources: Sequence[Source], image: np.ndarray, *, rounds: int = ROUNDS, warm_up: int = WARM_UP
) -> list[Cost]:
    """The costs of the sources that have a network; timed in turn (A B A B …), so that a change of the machine's load
    meets all.

    Args:
        image: (H, W, 3) uint8 RGB that they look at. rounds: timed calls of each, fewer where they take minutes.
    """
    calls = [_Call.of(source, image) for source in sources if source.net is not None]
    with torch.inference_mode():
        for call in calls:
            for _ in range(warm_up):
                call.work()
        times: list[list[float]] = [[] for _ in calls]
        begun = time.perf_counter()
        for done in range(rounds):
            if done >= _FEWEST and time.perf_counter() - begun > _LONGEST:
                break
            for call, own in zip(calls, times):
                own.append(_seconds(call.work))
        return [_cost(call, own) for call, own in zip(calls, times)]


@dataclass(frozen=True)
class _Call:
    """A forward pass that can be repeated: of the network alone, else of all that asks it."""

    source: Source
    net: nn.Module
    size: tuple[int, int]
    work: Callable[[], object]
    whole: bool

    @classmethod
    def of(cls, source: Source, image: np.ndarray) -> _Call:
        """The call that the source makes of its network when it looks at an image."""
        net, ask = source.net, source.ask
        assert net is not None and ask is not None
        with _watched(net) as seen:
            ask(image)
        if not seen:
            return cls(source, net, (image.shape[0], image.shape[1]), lambda: ask(image), True)
        # Copies made here are no tensors of inference mode, out of which FLOPs are counted.
        args, options = tree_map_only(Tensor, Tensor.clone, seen[0])
        inputs = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        shape = inputs[0].shape if inputs else image.shape[:2]
        return cls(source, net, (shape[-2], shape[-1]), lambda: net(*args, **options), False)


@contextmanager
def _watched(net: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """Collects the arguments with which a network is called."""
    seen: list[tuple[Any, Any]] = []
    handle = net.register_forward_pre_hook(
        lambda module, args, options: seen.append((args, options)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def _seconds(work: Callable[[], object]) -> float:
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def _cost(call: _Call, times: Sequence[float]) -> Cost:
    flops, uncounted = count_flops(call.work)
    size = sum(value.nbytes for value in call.net.state_dict().values() if isinstance(value, Tensor))
    return Cost(
        call.source.name,
        call.size,
        sum(parameter.numel() for parameter in call.net.parameters()),
        size,
        flops,
        uncounted,
        (statistics.median(times), min(times), max(times)) if times else (0.0, 0.0, 0.0),
        len(times),
        size + peak_bytes(call.work, call.source.device.type),
        call.whole,
        call.source.device.type,
    )
