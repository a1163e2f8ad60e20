"""A binary unit as bits and constants, and its sums by NumPy's popcount.

N: images; C: channels in; O: filters; R × S: taps; words: ceil(C / 32). One bit a value, 1 for +1; bit i of a word is
channel 32 · word + i. Of n products of ±1, p of which differ in sign, the sum is n − 2p.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .binary import BinaryConv2d, ConvUnit, plus_minus

WORD = 32


def words_of(channels: int) -> int:
    """32-bit words for so many channels."""
    return -(-channels // WORD)


def pack_signs(positive: np.ndarray) -> np.ndarray:
    """bool (…, C) → uint32 (…, words); the bits beyond C are zero."""
    channels = positive.shape[-1]
    room = [(0, 0)] * (positive.ndim - 1) + [(0, words_of(channels) * WORD - channels)]
    packed = np.packbits(np.pad(positive, room), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u4").astype(np.uint32, copy=False)


class PackedConv:
    """The convolution of a unit and the affine steps after it, as constants.

    Attributes:
        channels, filters, taps, stride, pad: C, O, (R, S), and the padding of each side.
        weights: uint32 (O, R, S, words).
        padding: int32 (R, S, O): 2 · popcount of a tap − C. A padded cell has no bit set and the value 0; the sum of
            this over the taps that lie outside puts back what its bits counted.
        alpha: (O,) scale of each filter. scale, bias: (O,) of the normalisation.
        least: (C,) the input's sign is + where it is at least this.
        act: (before, slope, after), (O,) each, or None.

    Raises:
        ValueError: the unit's convolution is not binary, or its padding or stride differs between the axes.
    """

    def __init__(self, unit: ConvUnit) -> None:
        conv = unit.conv
        if not isinstance(conv, BinaryConv2d):
            raise ValueError(f"only a binary convolution can be packed, got {conv}")
        pads: Any = conv.padding
        if len({*pads}) > 1 or len({*conv.stride}) > 1:
            raise ValueError(f"padding and stride must be the same along both axes, got {conv}")
        self.channels, self.filters = conv.in_channels, conv.out_channels
        self.taps = (conv.kernel_size[0], conv.kernel_size[1])
        self.stride, self.pad = conv.stride[0], int(pads[0])
        signs = plus_minus(conv.weight.detach().float()).permute(0, 2, 3, 1) > 0
        self.weights = pack_signs(signs.numpy())
        ones = np.bitwise_count(self.weights).sum(-1, dtype=np.int32)
        self.padding = np.ascontiguousarray((2 * ones - self.channels).transpose(1, 2, 0)).astype(np.int32)
        self.alpha = _constant(conv.scale())
        scale, bias = unit.norm.folded()
        self.scale, self.bias = _constant(scale), _constant(bias)
        self.least = torch.zeros(self.channels) if unit.shift is None else -_constant(unit.shift.bias)
        act = unit.act
        self.act = None if act is None else tuple(map(_constant, (act.before, act.slope, act.after)))

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """(H', W') of an input (H, W)."""
        grow = 2 * self.pad
        return (
            (height + grow - self.taps[0]) // self.stride + 1,
            (width + grow - self.taps[1]) // self.stride + 1,
        )

    def sums(self, x: Tensor) -> Tensor:
        """The sums of signs, whole numbers in float32, (N, O, H', W') in channels_last, of (N, C, H, W)."""
        positive = (x.detach() >= self.least[:, None, None]).permute(0, 2, 3, 1).numpy()
        pad = self.pad
        bits = np.pad(pack_signs(positive), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        height, width = self.out_size(*x.shape[2:])
        differ = np.zeros((len(x), height, width, self.filters), np.int32)
        put_back = np.zeros((height, width, self.filters), np.int32)
        for r in range(self.taps[0]):
            for s in range(self.taps[1]):
                rows = slice(r, r + (height - 1) * self.stride + 1, self.stride)
                columns = slice(s, s + (width - 1) * self.stride + 1, self.stride)
                seen = bits[:, rows, columns]
                for word in range(seen.shape[-1]):
                    different = seen[..., word, None] ^ self.weights[:, r, s, word]
                    differ += np.bitwise_count(different)
                outside = _outside(r, height, self.stride, pad, x.shape[2])[:, None] | _outside(
                    s, width, self.stride, pad, x.shape[3]
                )
                put_back += outside[..., None] * self.padding[r, s]
        total = self.channels * self.taps[0] * self.taps[1]
        sums = (total + put_back - 2 * differ).astype(np.float32)
        return torch.from_numpy(sums).permute(0, 3, 1, 2)


def _outside(tap: int, count: int, stride: int, pad: int, size: int) -> np.ndarray:
    """bool (count,): where the tap lies in the padding, along one axis."""
    at = np.arange(count) * stride + tap - pad
    return (at < 0) | (at >= size)


def _constant(values: Tensor) -> Tensor:
    return values.detach().float().cpu().clone().contiguous()
