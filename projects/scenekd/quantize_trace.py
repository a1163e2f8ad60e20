"""A network as torch's quantisation wants it: a graph without decisions, for inputs of one height and width.

torch.fx follows a network with placeholders for its tensors, which have no size, so that code that asks for one, as
a decoder does that enlarges a map to its neighbour's size, is not followed. Here every placeholder knows the value
of an example, and answers with that value's size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import QuantizationTracer
from torch.fx import GraphModule, Node, Proxy
from torch.fx.node import map_arg

from .errors import UserError, first_line


class FloatPReLU(nn.Module):
    """PReLU by a name that torch's quantisation does not know, and so leaves in float.

    Its own has one scale for the slopes of all channels, beside the largest of which the small ones vanish, and it
    takes over any PReLU between two int8 layers, whether it was asked to or not.
    """

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        self.weight = prelu.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.prelu(x, self.weight)


class SizedProxy(Proxy):
    """Stands for a tensor, or a tuple of them, whose size is known."""

    @property
    def _value(self) -> Any:
        return self.tracer.values[self.node]  # type: ignore[attr-defined]  # SizedTracer

    @property
    def shape(self) -> torch.Size:
        size: torch.Size = self._value.shape
        return size

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, i) for i in range(len(self)))  # a Proxy has it by torch.fx


class SizedTracer(QuantizationTracer):
    """Follows a network as torch's quantisation does, and computes each node on ``example`` as it goes."""

    def __init__(self, example: Tensor) -> None:
        super().__init__([], [])
        self.example = example
        self.values: dict[Node, Any] = {}
        self._computing = False

    def proxy(self, node: Node) -> Proxy:
        return SizedProxy(node, self)

    # While a node is computed, its module's own calls and parameters are no part of the graph.
    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, *names: Any, **options: Any
    ) -> Node:
        node = super().create_node(kind, target, args, kwargs, *names, **options)
        if kind == "output":
            return node
        self._computing = True
        try:
            self.values[node] = self._compute(kind, target, *map_arg((args, kwargs), self.values.__getitem__))
        finally:
            self._computing = False
        return node

    def _compute(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == "placeholder":
            return self.example
        if kind == "get_attr":
            value: Any = self.root
            for part in target.split("."):
                value = getattr(value, part)
            return value
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return (self.root.get_submodule(target) if kind == "call_module" else target)(*args, **kwargs)


@torch.no_grad()
def trace(network: nn.Module, example: Tensor) -> GraphModule:
    """``network``, in evaluation mode, as a graph for inputs of the height and width of ``example``; its PReLUs are
    replaced in place by :class:`FloatPReLU`.

    Raises:
        UserError: the network decides by more than sizes, or is built otherwise than torch.fx can follow.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.PReLU):
                setattr(parent, name, FloatPReLU(child))
    try:
        return GraphModule(network, SizedTracer(example).trace(network))
    except Exception as error:  # a network's code fails on placeholders in any way
        raise UserError(
            f"MODEL: torch.fx cannot follow a {type(network).__name__}, so it is not quantised "
            f"({first_line(error)[:160]})"
        ) from error
