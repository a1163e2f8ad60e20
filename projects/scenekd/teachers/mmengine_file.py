"""MMEngine's checkpoints by torch's restricted loader.

Beside the weights they hold the history of their training, in classes whose building calls ``getattr``. Nothing
here needs it: those names stand for stand-ins that do nothing, so that no code is trusted for the weights' sake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checkpoint


class _Unread:
    """Stands in for a HistoryBuffer."""

    def __setstate__(self, state: Any) -> None:
        pass


def _nothing(*unused: Any) -> None:
    return None


def read_mmengine_file(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint; what recorded its training is left unbuilt.

    Raises:
        UserError: see :func:`scenekd.checkpoint.read`.
    """
    known: list[Any] = [np.ndarray, np.dtype, slice]
    known += [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u4", "bool")]
    known += [np.ndarray(0).__reduce__()[0], np.float64(0).__reduce__()[0]]  # how numpy makes both again
    known += [(_Unread, "mmengine.logging.history_buffer.HistoryBuffer"), (_nothing, "builtins.getattr")]
    with torch.serialization.safe_globals(known):
        return checkpoint.read(path)
