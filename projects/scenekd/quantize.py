"""Static int8 quantisation after training, by torch's own FX graph mode.

Weights have one scale for each output channel, activations one for each map; both are affine, value = scale ·
(integer − zero point) (Jacob et al., CVPR 2018, section 2.1). The scales of the activations come from histograms
over calibration images; batch normalisation is folded into the layer before it first.

B: images; S: side of the input.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import QConfigMapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx import GraphModule

from .errors import UserError, first_line
from .quantize_trace import trace

BACKENDS = ("onednn", "x86", "fbgemm", "qnnpack")
# Their sums of two products saturate at 16 bit on processors without VNNI; 7 bit of the activations avoid it.
_SEVEN_BIT = ("x86", "fbgemm")


@dataclass(frozen=True)
class Int8Options:
    """How a network is quantised.

    Attributes:
        backend: ``auto`` or one of :data:`BACKENDS`.
        keep_float: patterns (``classifier.*``) of module paths below the bare network that stay in float.
    """

    backend: str = "auto"
    keep_float: tuple[str, ...] = ()


@dataclass
class Quantized:
    """What :func:`quantize` has made.

    Attributes:
        net: the network, its layers in int8; to be run under :func:`using` its backend.
        backend: of :data:`BACKENDS`, for which the weights are packed.
        images: that the scales come from.
        int8: paths of the layers with int8 weights, below the bare network.
        floats: path → kind of those whose weights stayed float.
    """

    net: nn.Module
    backend: str
    images: int
    int8: tuple[str, ...]
    floats: dict[str, str]

    def describe(self) -> str:
        """The layers in one line."""
        kinds: dict[str, int] = {}
        for kind in self.floats.values():
            kinds[kind] = kinds.get(kind, 0) + 1
        left = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing"
        return (
            f"{len(self.int8)} layers in int8 ({self.backend}, {self.images} calibration images); "
            f"left float: {left}"
        )


def choose_backend(name: str = "auto") -> str:
    """The backend of a name; ``auto`` takes the first of :data:`BACKENDS` that this machine's torch has.

    Raises:
        UserError: no such backend, or torch has it not here.
    """
    present = [each for each in BACKENDS if each in torch.backends.quantized.supported_engines]
    if name == "auto" and present:
        return present[0]
    if name not in present:
        known = ", ".join(present) or "none, so it cannot quantise here"
        raise UserError(f"--backend: torch has no {name!r} on this machine; it has {known}")
    return name


@contextlib.contextmanager
def using(backend: str) -> Iterator[None]:
    """With ``backend`` as torch's engine for int8, which packs weights and runs them."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = backend
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@torch.no_grad()
def quantize(net: Any, batches: Sequence[Tensor], options: Int8Options | None = None) -> Quantized:
    """An int8 copy of ``net``, on the CPU and in evaluation mode; ``net`` stays as it is.

    In a network with PReLU, which stays float (:class:`.quantize_trace.FloatPReLU`), the convolutions and linear layers
    alone are int8 and the maps between them float: each would have to be rounded between the two anyway. In others
    all is int8 that torch has in int8.

    Args:
        net: with ``network``, from normalised images to logits, and ``pixel_mean`` and ``pixel_std``, as the students
            of fcn_kd.
        batches: (B, 3, S, S) RGB in 0…255, all of one size, which is then the only one that the copy takes.
        options: None: the defaults.

    Raises:
        UserError: another kind of network, or one that torch cannot quantise; no calibration image; no such backend
            on this machine; a pattern that matches nothing.
    """
    if not isinstance(getattr(net, "network", None), nn.Module):
        raise UserError(f"MODEL: a {type(net).__name__} cannot be quantised; take a network of SYSTEM fcn_kd")
    if not sum(len(batch) for batch in batches):
        raise UserError("--calibrate: no calibration images; give at least one")
    options = options or Int8Options()
    backend, copied = choose_backend(options.backend), copy.deepcopy(net).cpu().eval()
    inputs = [(batch.float() - copied.pixel_mean) / copied.pixel_std for batch in batches]
    mapping = _mapping(copied.network, backend, options)
    graph = trace(copied.network, inputs[0])
    with using(backend), _quietly():
        try:
            observed = prepare_fx(graph, mapping, (inputs[0],))
            for batch in inputs:
                observed(batch)
            copied.network = convert_fx(observed)
            copied.network(inputs[0][:1])
        except (
            RuntimeError,
            ValueError,
            NotImplementedError,
            AttributeError,
            TypeError,
            LookupError,
        ) as error:
            raise UserError(
                f"MODEL: torch cannot quantise this {type(net.network).__name__} ({first_line(error)[:160]})"
            ) from error
    int8, floats = _layers(copied.network)
    if not int8:
        raise UserError("--keep-float: nothing is left to quantise; name fewer layers")
    return Quantized(copied, backend, sum(len(batch) for batch in batches), int8, floats)


def _mapping(network: nn.Module, backend: str, options: Int8Options) -> QConfigMapping:
    # torch's usual choice for each: histograms, 8 or 7 bit, weights by channel; qnnpack's own has them by tensor
    mapping = get_default_qconfig_mapping("x86" if backend in _SEVEN_BIT else "onednn")
    if any(isinstance(module, nn.PReLU) for module in network.modules()):
        usual = mapping.global_qconfig
        mapping = QConfigMapping().set_object_type(nn.Conv2d, usual).set_object_type(nn.Linear, usual)
    paths = [path for path, _ in network.named_modules() if path]
    for pattern in options.keep_float:
        matched = [path for path in paths if fnmatchcase(path, pattern)]
        if not matched:
            children = ", ".join(name for name, _ in network.named_children())
            raise UserError(
                f"--keep-float: {pattern!r} matches no module of the network; its parts are {children}"
            )
        for path in matched:
            mapping.set_module_name(path, None)
    return mapping


def _layers(network: GraphModule) -> tuple[tuple[str, ...], dict[str, str]]:
    int8, floats = [], {}
    for path, module in network.named_modules():
        kind = type(module)
        if kind.__module__.startswith("torch.ao.nn"):
            if hasattr(module, "weight"):  # others only change the scale
                int8.append(path)
        elif kind is not nn.Module and path and any(True for _ in module.parameters(recurse=False)):
            floats[path] = kind.__name__
    # FloatPReLU was followed into: its slopes hang in the graph
    slopes = [n for n in network.graph.nodes if n.op == "call_function" and n.target is nn.functional.prelu]
    return tuple(int8), floats | {node.name: "PReLU" for node in slopes}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    # torch.ao announces on every call that it moves to another package, and how its observers behave.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
