"""Arrays from whoever calls, and means over what is defined."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor


def to_numpy(values: Any) -> np.ndarray:
    """The values as a numpy array, copied from the device where need be."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def class_logits(scores: Any, num_classes: int) -> np.ndarray:
    """The logits of one image, (C,) float64.

    Raises:
        ValueError: not C of them.
    """
    logits = to_numpy(scores).astype(np.float64)
    if logits.shape != (num_classes,):
        raise ValueError(f"class_scores are {logits.shape}, there are {num_classes} classes")
    return logits


def defined_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(-1) / defined.sum(-1)


def group_matrix(places: np.ndarray, count: int) -> sparse.csr_array:
    """(count, N), 1 where one of N cases belongs to a group: sums over groups are products with it.

    Args:
        places: (N,) the group of each case, 0…count − 1.
    """
    ones = np.ones(len(places))
    return sparse.csr_array((ones, (places, np.arange(len(places)))), shape=(count, len(places)))
