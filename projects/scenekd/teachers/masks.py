"""Instance masks → the dense class vectors of the thesis (form ``scores``)."""

from __future__ import annotations

import numpy as np

from ..sample import SoftSegmentation


def masks_to_scores(
    masks: np.ndarray, labels: np.ndarray, scores: np.ndarray, num_classes: int
) -> SoftSegmentation:
    """Box confidence at the class's slot wherever that instance's mask is positive, else 0.

    Where several instances of one class overlap, the highest confidence counts; instances of different
    classes each fill their own slot. The background's slot stays 0: it is filled, if at all, when the array
    is sampled.

    Args:
        masks: (N, H, W) bool. labels: (N,) in 0…C−1. scores: (N,) in 0…1. num_classes: C.

    Returns:
        (C + 1, H, W) float32, background first.
    """
    masks = np.asarray(masks, bool)
    if masks.ndim != 3 or not len(masks) == len(labels) == len(scores):
        raise ValueError(f"masks {masks.shape}, {len(labels)} labels and {len(scores)} scores do not match")
    if len(labels) and not 0 <= min(labels) <= max(labels) < num_classes:
        raise ValueError(f"labels must lie in 0…{num_classes - 1}")
    values = np.zeros((num_classes + 1, *masks.shape[1:]), np.float32)
    for instance in np.argsort(scores, kind="stable"):  # the most confident is written last
        values[int(labels[instance]) + 1][masks[instance]] = scores[instance]
    return SoftSegmentation(values, "scores")
