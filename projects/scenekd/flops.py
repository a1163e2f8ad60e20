"""Floating-point and binary operations of what really runs.

FLOPs are counted by ``torch.utils.flop_counter`` from the operations that torch carries out: convolutions, matrix
products and attention, a multiplication and an addition as two (so twice the number of multiply-accumulates, MACs).
Everything else counts nothing there, and is listed: norms, activations, pooling, resizing, and what torch cannot look
into (quantised layers, compiled kernels of other libraries).

Binary operations (BOPs) are those of products of signs, one XNOR and one count for each MAC, so two as well. A CPU does
64 of them in one instruction, hence OPs = FLOPs + BOPs / 64 (XNOR-Net, Rastegari et al., ECCV 2016, section 4.1;
Bi-Real Net, Liu et al., ECCV 2018, section 4). Both papers count MACs, half of what stands here; no ratio changes by
that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

BITS_AT_ONCE = 64
# Operations that make or move values and compute none.
_NO_ARITHMETIC = {
    *("empty", "empty_strided", "zeros", "ones", "full", "new_zeros", "new_full", "arange", "scalar_tensor"),
    *("clone", "copy", "copy_", "_to_copy", "contiguous", "lift_fresh", "cat", "stack", "index", "gather"),
    *("detach", "dropout", "_unsafe_view", "constant_pad_nd", "zeros_like", "empty_like"),
}


@dataclass(frozen=True)
class Operations:
    """What one call of a network costs.

    Attributes:
        flops: real-valued operations. bops: binary ones.
        uncounted: operation → output values that it computed and that ``flops`` lacks; see the module.
    """

    flops: int
    bops: int = 0
    uncounted: Mapping[str, int] = field(default_factory=dict)

    @property
    def ops(self) -> float:
        """FLOPs + BOPs / 64."""
        return self.flops + self.bops / BITS_AT_ONCE


def is_binary(module: nn.Module) -> bool:
    """Whether a convolution or linear layer multiplies signs by signs: its ``is_binary`` says so. Such a layer has
    ``in_channels``, ``groups`` and ``kernel_size`` of a convolution, or ``in_features`` of a linear layer."""
    return bool(getattr(module, "is_binary", False))


def count_operations(net: nn.Module, work: Callable[[], object]) -> Operations:
    """Operations of ``work``, which calls ``net``, those of its binary layers apart.

    A binary layer's BOPs follow from its shape and that of its output, however it computes it; what the counter sees
    inside (the convolution that simulates it) is not counted again.
    """
    with _BinaryLayers.of(net) as binary:
        with _counting() as (counter, rest):
            binary.counter = counter
            work()
        total = int(counter.get_total_flops())
    return Operations(total - binary.simulated, binary.bops, dict(rest.values.most_common()))


def count_flops(work: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """FLOPs of what ``work`` runs in torch, and the operations that are not in them: name → output values, most
    first."""
    with _counting() as (counter, rest):
        work()
    return int(counter.get_total_flops()), dict(rest.values.most_common())


@contextmanager
def _counting() -> Iterator[tuple[FlopCounterMode, _Uncounted]]:
    # Outside inference mode, in which torch hands larger operations on in parts.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        _Uncounted() as rest,
        FlopCounterMode(display=False) as counter,
    ):
        yield counter, rest


class _BinaryLayers:
    """Watches the binary layers of a network while it runs."""

    def __init__(self) -> None:
        self.bops = self.simulated = self._before = 0
        self.counter: FlopCounterMode | None = None

    @classmethod
    @contextmanager
    def of(cls, net: nn.Module) -> Iterator[_BinaryLayers]:
        found = cls()
        with ExitStack() as stack:
            for module in net.modules():
                if is_binary(module):
                    stack.callback(module.register_forward_pre_hook(found._enter).remove)
                    stack.callback(module.register_forward_hook(found._leave).remove)
            yield found

    def _seen(self) -> int:
        return int(self.counter.get_total_flops()) if self.counter is not None else 0

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._before = self._seen()

    def _leave(self, module: Any, args: Any, output: Tensor) -> None:
        self.simulated += self._seen() - self._before
        if hasattr(module, "in_features"):
            products = module.in_features
        else:
            kernel = module.kernel_size
            area = math.prod(kernel) if isinstance(kernel, (tuple, list)) else kernel**2
            products = module.in_channels // module.groups * area
        self.bops += 2 * products * output.numel()


class _Uncounted(TorchDispatchMode):
    """Notes the operations for which the counter has no formula."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.overloadpacket not in flop_registry and not func.is_view and name not in _NO_ARITHMETIC:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if made and (made[0].is_floating_point() or made[0].is_quantized):
                self.values[name] += made[0].numel()
        return result
