"""Files of torch.save, read without running code from them.

MMEngine's training checkpoints hold, beside the weights, the history of the losses: objects whose building calls
``getattr`` and numpy. Nothing here needs it, so each name of a closed list stands for an object that holds and does
nothing; any other is refused, as torch's restricted loader does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class Unread:
    """Stands in for an object, and for a function that would make one: whatever it is given is dropped."""

    def __init__(self, *dropped: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_NUMPY = ("numpy._core.multiarray", "numpy.core.multiarray")  # versions 2 and 1
_UNREAD = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",  # by which a HistoryBuffer names its statistics
    "builtins.slice",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"{module}.{name}" for module in _NUMPY for name in ("_reconstruct", "scalar")),
)


def load_safely(path: str | Path) -> Any:
    """The content of a file of tensors and plain values; :class:`Unread` where MMEngine wrote the course of a training.

    Raises:
        pickle.UnpicklingError: it names anything else. Of a damaged file, whatever torch raises.
    """
    with torch.serialization.safe_globals([(Unread, name) for name in _UNREAD]):
        return torch.load(path, map_location="cpu", weights_only=True)
