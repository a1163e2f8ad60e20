"""Binary networks by XNOR and popcount on the CPU.

:func:`pack_network` puts chains of bits in the place of a network's binary units; all else stays as it is. In a chain
normalisation, shortcut and activation follow the sums at once, and the next unit's signs are written as bits: a unit
that nothing else reads leaves no floating-point map.

N: images; C: channels in; O: channels out; H, W, H', W': sizes before and after.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .binary import BinaryConv2d, ConvUnit
from .packed_bits import PackedConv
from .packed_native import NativeConv, bit_buffer, library, pool_bits

BACKENDS = ("auto", "native", "numpy")
_CACHE_BYTES = 1 << 19  # of the maps that are worked on at a time: half of a usual second cache


def pack_network(net: nn.Module, backend: str = "auto") -> nn.Module:
    """A copy of a trained network that evaluates its binary units by bits, on the CPU, to the same outputs.

    Each :class:`.binary.ConvUnit` with a binary convolution becomes a :class:`PackedChain`, and so does each Sequential
    of nothing else. The copy is in evaluation mode, gives no gradients to what is before a chain, and does not follow
    the original's later training.

    Args:
        net: with its weights and statistics. backend: ``native``: the C++ kernels; ``numpy``: without a compiler, slow;
            ``auto``: ``native`` where it can be built.

    Raises:
        ValueError: no binary unit in ``net``, a binary convolution outside a unit, or an unknown backend.
        RuntimeError: ``native`` cannot be built here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    kernels = None if backend == "numpy" else library()
    if backend == "native" and kernels is None:
        raise RuntimeError("the packed kernels cannot be built here; use backend auto or numpy")
    holder = nn.Sequential(copy.deepcopy(net).cpu().eval())
    _replace(holder, native=kernels is not None)
    if not any(isinstance(module, PackedChain) for module in holder.modules()):
        raise ValueError("nothing to pack: the network has no binary unit")
    return holder[0]


def _replace(parent: nn.Module, native: bool) -> None:
    for name, child in parent.named_children():
        units = list(child) if isinstance(child, nn.Sequential) else [child]
        if units and all(_is_binary(unit) for unit in units):
            setattr(parent, name, PackedChain(units, native=native).eval())
        elif isinstance(child, BinaryConv2d):
            raise ValueError(f"a binary convolution outside a ConvUnit cannot be packed: {name}")
        else:
            _replace(child, native)


def _is_binary(module: nn.Module) -> bool:
    return isinstance(module, ConvUnit) and isinstance(module.conv, BinaryConv2d)


class PackedUnit:
    """A binary unit, its constants, and the modules that stay as they are."""

    def __init__(self, unit: ConvUnit) -> None:
        self.conv = PackedConv(unit)
        self.native = NativeConv(self.conv)
        self.unit = unit
        self.adds, self.pools = unit.adds_input, unit.pool

    def cells(self, x: Tensor) -> Tensor | None:
        """XNOR-Net's K of an input (N, C, H, W), or None."""
        conv, shift = self.unit.conv, self.unit.shift
        assert isinstance(conv, BinaryConv2d)
        return conv.input_scale(x if shift is None else shift(x))

    def alone(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, O, H', W'), the sums by NumPy and the steps of the unit after them."""
        unit = self.unit
        y = self.conv.sums(x) * self.conv.alpha[:, None, None]
        cells = self.cells(x)
        y = unit.norm(y if cells is None else y * cells)
        side = unit.side(x)
        y = y if side is None else y + side
        y = y if unit.act is None else unit.act(y)
        return F.max_pool2d(y, 2) if unit.pool else y

    def follows(self, before: Sequence[PackedUnit]) -> bool:
        """Whether bits, and maps where they are, of the units before are all that it needs."""
        unit = self.unit
        conv = unit.conv
        assert isinstance(conv, BinaryConv2d)
        if conv.scaling == "xnor" or unit.shortcut is not None:
            return False  # it reads the map in another way
        if any(each.adds != self.adds for each in before[1:]):
            return False
        return not (self.adds and before[-1].pools)


class PackedChain(nn.Module):
    """Binary units one after another, float32 (N, C, H, W) → (N, O, H', W') in channels_last; for evaluation alone.

    Args:
        units: binary units. native: by the C++ kernels, which must be there; else by NumPy.
    """

    def __init__(self, units: Sequence[nn.Module], *, native: bool = True) -> None:
        super().__init__()
        self.native = native
        self.units = nn.ModuleList(units)  # their real layers serve on
        self._parts: list[list[PackedUnit]] = []
        for unit in units:
            assert isinstance(unit, ConvUnit)
            packed = PackedUnit(unit)
            if self._parts and packed.follows(self._parts[-1]):
                self._parts[-1].append(packed)
            else:
                self._parts.append([packed])

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Evaluate.

        Raises:
            RuntimeError: in training mode. ValueError: not float32 on the CPU.
        """
        if self.training:
            raise RuntimeError("a packed network cannot be trained: train the original and pack it again")
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(f"a packed network wants float32 on the CPU, got {x.dtype} on {x.device}")
        kernels = library() if self.native else None
        x = x.contiguous(memory_format=torch.channels_last)
        for part in self._parts:
            if kernels is not None:
                x = _run(kernels, part, x)
            else:
                for unit in part:
                    x = unit.alone(x)
        return x


class _Buffers:
    """The bits of some images at a time; a border stays zero, for only what is inside is ever written."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._made: dict[tuple[int, ...], Tensor] = {}

    def get(self, turn: int, channels: int, size: tuple[int, int], border: int) -> Tensor:
        """The buffer of these sizes; two of another ``turn`` are apart."""
        key = (turn, channels, *size, border)
        if key not in self._made:
            self._made[key] = bit_buffer(self._images, *size, channels, border)
        return self._made[key]


def _run(kernels: ctypes.CDLL, part: Sequence[PackedUnit], x: Tensor) -> Tensor:
    """A part of a chain, some images at a time, so that their maps stay in the cache."""
    first, last = part[0], part[-1]
    side, cells = first.unit.side(x), first.cells(x)
    sizes = _sizes(part, x.shape[2], x.shape[3])
    height, width = last.conv.out_size(*sizes[-1])
    out = torch.empty(len(x), height, width, last.conv.filters)
    largest = max(height * width * unit.conv.filters for unit in part)
    at_once = max(1, min(len(x), _CACHE_BYTES // (4 * largest)))
    buffers = _Buffers(at_once)
    rows = x.permute(0, 2, 3, 1)
    beside = None if side is None else side.permute(0, 2, 3, 1).contiguous()
    cells = None if cells is None else cells.contiguous()
    for start in range(0, len(x), at_once):
        now = slice(start, start + at_once)
        _run_some(
            kernels,
            part,
            sizes,
            buffers,
            rows[now],
            out[now],
            None if beside is None else beside[now],
            None if cells is None else cells[now],
        )
    y = out.permute(0, 3, 1, 2)
    return F.max_pool2d(y, 2) if last.pools else y


def _run_some(
    kernels: ctypes.CDLL,
    part: Sequence[PackedUnit],
    sizes: Sequence[tuple[int, int]],
    buffers: _Buffers,
    x: Tensor,
    out: Tensor,
    side: Tensor | None,
    cells: Tensor | None,
) -> None:
    """All units for images ``x`` (n, H, W, C), into ``out`` (n, H', W', O). Where units add their input, ``out`` is
    what each of them reads and overwrites."""
    n, conv = len(x), part[0].conv
    bits = buffers.get(0, conv.channels, sizes[0], conv.pad)
    part[0].native.pack(kernels, x, bits, conv.pad)
    for i, unit in enumerate(part[:-1]):
        after = part[i + 1]
        made_size, channels = unit.conv.out_size(*sizes[i]), unit.conv.filters
        border = 0 if unit.pools else after.conv.pad
        made = buffers.get(1 + i % 2, channels, made_size, border)
        unit.native.convolve(
            kernels,
            bits,
            (n, *sizes[i]),
            cells=cells,
            side=side,
            out=out if after.adds else None,
            following=after.native,
            out_bits=made,
            out_border=border,
        )
        bits, cells, side = made, None, out if after.adds else None
        if unit.pools:
            bits = buffers.get(3, channels, sizes[i + 1], after.conv.pad)
            pool_bits(kernels, made, bits, (n, *made_size), channels, after.conv.pad)
    part[-1].native.convolve(kernels, bits, (n, *sizes[-1]), cells=cells, side=side, out=out)


def _sizes(part: Sequence[PackedUnit], height: int, width: int) -> list[tuple[int, int]]:
    """(H, W) before each unit."""
    sizes = [(height, width)]
    for unit in part[:-1]:
        height, width = unit.conv.out_size(*sizes[-1])
        sizes.append((height // 2, width // 2) if unit.pools else (height, width))
    return sizes
