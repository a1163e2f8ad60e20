"""Arrays from whoever calls, and means over what is defined."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def to_numpy(values: Any) -> np.ndarray:
    """The values as a numpy array, copied from the device where need be."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def defined_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(-1) / defined.sum(-1)
