"""MMEngine's training checkpoints, read without running code from them.

Beside the weights they hold the message hub's history of the losses, as objects of a few types of MMEngine and numpy.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_STATISTICS = ("min", "max", "current", "mean")


@contextmanager
def mmengine_types() -> Iterator[None]:
    """Within it, ``torch.load(weights_only=True)`` takes the types of MMEngine's message hub too."""
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        HistoryBuffer,
        # The buffers name their statistics through getattr, which would lead anywhere; this one leads nowhere else.
        (_statistic, "builtins.getattr"),
        np.ndarray,
        np.dtype,
        np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        np._core.multiarray.scalar,  # type: ignore[attr-defined]
        # numpy 1 wrote the same two under this name
        (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # type: ignore[attr-defined]
        (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
        *(type(np.dtype(each)) for each in ("f8", "f4", "i8", "i4", "?")),
    ]
    with torch.serialization.safe_globals(allowed):
        yield


def _statistic(owner: Any, name: str) -> Any:
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError("a checkpoint may name a HistoryBuffer's statistics alone")
    return getattr(owner, name)
