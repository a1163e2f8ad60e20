"""Pickles of numpy arrays, as detectron2 ships its weights: read without running code from them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from . import checkpoint
from .errors import UserError


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers, and nothing else."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),  # numpy 1
        ("numpy._core.multiarray", "_reconstruct"),  # numpy 2
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),  # how Python 3 writes bytes into protocol 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def load_array_pickle(data: bytes) -> Any:
    """Unpickle ``data`` that holds numpy arrays and plain containers only (Python 2's pickles too).

    Raises:
        pickle.UnpicklingError: it is damaged, or names anything else.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise pickle.UnpicklingError(f"it is damaged: {error}") from None


def read_weight_file(path: str | Path) -> dict[str, Any]:
    """A .pkl of detectron2's or Caffe2's, or a .pth, in the form that detectron2's checkpointer loads: ``model``,
    and ``matching_heuristics`` where the names are Caffe2's.

    Raises:
        UserError: no such file, or one that holds more than arrays.
    """
    path = Path(path)
    if path.suffix != ".pkl":
        return {"model": checkpoint.weights_of(checkpoint.read(path))}
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    try:
        content = load_array_pickle(path.read_bytes())
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than arrays ({error}); it is not loaded") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of arrays")
    if "model" in content and "__author__" in content:
        return content
    blobs = content.get("blobs", content)
    blobs = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
