"""The kernels of ``csrc/packed_conv.cpp``: built when first asked for, kept in PyTorch's folder of extensions.

The name of a build holds a hash of the source, the compiler, the processor and PyTorch's version, so that a folder
shared by different machines never gives one the other's instructions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .packed_bits import PackedConv, words_of

SOURCE = Path(__file__).parents[1] / "csrc" / "packed_conv.cpp"
LANES = 16  # filters side by side
_STALE_SECONDS = 600  # a build lasts some seconds
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-Wno-psabi")

_LOG = logging.getLogger(__name__)


class _Layer(ctypes.Structure):
    """``Layer`` of the source."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("channels", "filters", "taps_y", "taps_x", "stride", "pad")),
        *(
            (name, ctypes.c_void_p)
            for name in ("weights", "padding", "alpha", "scale", "bias", "before", "slope", "after")
        ),
    ]


class _Call(ctypes.Structure):
    """``Call`` of the source."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("images", "height", "width", "border", "out_border")),
        *(
            (name, ctypes.c_void_p)
            for name in ("bits", "pixel_scale", "shortcut", "out", "least", "out_bits")
        ),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be built, which is logged once, in one line."""
    try:
        return _build()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _LOG.warning("packed kernels are not built (%s); binary networks run on NumPy, slowly", reason)
        return None


def _build() -> ctypes.CDLL:
    # Asks for setuptools; says on import that CUDA is missing, which is not what this is about
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise OSError(f"no C++ compiler {compiler}; install one, or name one in the environment variable CXX")
    if not cpp_extension.is_ninja_available():
        raise OSError("ninja is not installed: pip install ninja")
    name = f"scenekd_packed_{_fingerprint(compiler)}"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()) / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > _STALE_SECONDS:
        lock.unlink(missing_ok=True)  # of a build that was killed: every later one would wait for it
    cpp_extension.load(
        name,
        [str(SOURCE)],
        extra_cflags=list(FLAGS),
        build_directory=str(folder),
        is_python_module=False,
    )
    kernels = ctypes.CDLL(str(folder / f"{name}.so"))
    number, pointer = ctypes.c_int, ctypes.c_void_p
    kernels.scenekd_pack.argtypes = [pointer, pointer, pointer, *[number] * 5]
    kernels.scenekd_pool.argtypes = [pointer, pointer, *[number] * 6]
    kernels.scenekd_convolve.argtypes = [pointer, pointer]
    for kernel in (kernels.scenekd_pack, kernels.scenekd_pool, kernels.scenekd_convolve):
        kernel.restype = None
    return kernels


def _fingerprint(compiler: str) -> str:
    """Of all that decides whether a build fits."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = (
        SOURCE.read_bytes().decode(),
        *FLAGS,
        compiler,
        features,
        platform.machine(),
        platform.python_version(),
        torch.__version__,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class NativeConv:
    """A :class:`.packed_bits.PackedConv` as the kernels want it: sixteen filters side by side."""

    def __init__(self, conv: PackedConv) -> None:
        self.conv = conv
        taps_y, taps_x = conv.taps
        filters = -(-conv.filters // LANES) * LANES
        room = filters - conv.filters
        weights = np.pad(conv.weights, ((0, room), (0, 0), (0, 0), (0, 0)))
        weights = weights.reshape(filters // LANES, LANES, *weights.shape[1:]).transpose(0, 2, 3, 4, 1)
        self._weights = np.ascontiguousarray(weights)
        self._padding = np.ascontiguousarray(np.pad(conv.padding, ((0, 0), (0, 0), (0, room))))
        act = conv.act or ()
        self._floats = [_filled(values) for values in (conv.alpha, conv.scale, conv.bias, *act)]
        self.least = _filled(conv.least)
        self._struct = _Layer(
            conv.channels,
            conv.filters,
            taps_y,
            taps_x,
            conv.stride,
            conv.pad,
            self._weights.ctypes.data,
            self._padding.ctypes.data,
            *(values.data_ptr() for values in self._floats),
        )
        self._address = ctypes.addressof(self._struct)

    def __reduce__(self) -> tuple[type[NativeConv], tuple[PackedConv]]:
        return NativeConv, (self.conv,)  # addresses do not travel

    def pack(self, kernels: ctypes.CDLL, x: Tensor, bits: Tensor, border: int) -> None:
        """Write the signs of float32 (n, H, W, C) into ``bits`` (n, H + 2·border, W + 2·border, words)."""
        n, height, width, channels = x.shape
        kernels.scenekd_pack(
            x.data_ptr(), self.least.data_ptr(), bits.data_ptr(), n, height, width, channels, border
        )

    def convolve(
        self,
        kernels: ctypes.CDLL,
        bits: Tensor,
        size: tuple[int, int, int],
        *,
        cells: Tensor | None = None,
        side: Tensor | None = None,
        out: Tensor | None = None,
        following: NativeConv | None = None,
        out_bits: Tensor | None = None,
        out_border: int = 0,
    ) -> None:
        """Convolve, normalise, add, activate.

        Args:
            bits: with a border of this convolution's padding. size: (n, H, W) of the input.
            cells: (n, H', W') factor of each output cell. side: (n, H', W', O) to add; may be ``out``.
            out: (n, H', W', O) float32, contiguous. following, out_bits, out_border: the convolution whose signs of
                the output are written, and where to.
        """
        call = _Call(
            *size,
            self.conv.pad,
            out_border,
            bits.data_ptr(),
            *(None if tensor is None else tensor.data_ptr() for tensor in (cells, side, out)),
            None if following is None else following.least.data_ptr(),
            None if out_bits is None else out_bits.data_ptr(),
        )
        kernels.scenekd_convolve(self._address, ctypes.addressof(call))


def bit_buffer(images: int, height: int, width: int, channels: int, border: int) -> Tensor:
    """Zeros int32 (n, H + 2·border, W + 2·border, words)."""
    size = (images, height + 2 * border, width + 2 * border, words_of(channels))
    return torch.zeros(size, dtype=torch.int32)


def pool_bits(
    kernels: ctypes.CDLL,
    bits: Tensor,
    out: Tensor,
    size: tuple[int, int, int],
    channels: int,
    out_border: int,
) -> None:
    """Largest of 2 × 2 cells as bits: ``bits`` (n, H, W, words) without a border, ``out`` with one.

    Args:
        size: (n, H, W). channels: C. out_border: cells on each side of ``out``.
    """
    kernels.scenekd_pool(bits.data_ptr(), out.data_ptr(), *size, channels, 0, out_border)


def _filled(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, -len(values) % LANES)).contiguous()
