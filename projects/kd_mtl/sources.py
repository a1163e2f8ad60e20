"""How ground truth and teacher share the loss of one task.

S = 2 sources: ground truth, teacher; B: images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scenekd.losses.reduce import Reduce, at_least_float32, safe_count

SOURCES = ("ground_truth", "teacher")


def source_losses(task: str, losses: Sequence[Tensor], *weights: Sequence[float]) -> dict[str, Tensor]:
    """``source/<task>/<source>`` for the log: the loss of each source that some image learns from.

    Args:
        losses: one or several numbers for each of :data:`SOURCES`; they are summed.
        weights: for each source one weight an image.
    """
    return {
        f"source/{task}/{source}": loss.detach().sum()
        for source, loss, own in zip(SOURCES, losses, weights)
        if any(own)
    }


def weigh_sources(
    ground_truth: Sequence[float], teacher: Sequence[float], like: Tensor, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    """Weight of every source and image (S, B), and every source's share in the loss (S,).

    Args:
        ground_truth, teacher: one weight an image, ≥ 0; 0 where the source does not exist.
        like: gives the device, and the precision where it is above half.
        reduce: averages over processes; called once.
    """
    dtype = at_least_float32(like[:0]).dtype
    weights = torch.tensor([ground_truth, teacher], dtype=dtype, device=like.device)
    amount = reduce(weights.sum(dim=1))
    return weights, amount / safe_count(amount.sum())
