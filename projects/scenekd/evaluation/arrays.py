"""Arrays from whoever calls: torch tensors, numpy arrays or lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def to_numpy(values: Any) -> np.ndarray:
    """The values as a numpy array, copied from the device where need be."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)
