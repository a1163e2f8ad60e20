"""How ground truth and teacher share the loss of one task.

S = 2 sources: ground truth, teacher; B: images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scenekd.losses.reduce import Reduce, at_least_float32, safe_count
from scenekd.sample import Target

SOURCES = ("ground_truth", "teacher")


def source_losses(task: str, losses: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
    """``source/<task>/<source>`` for the log: the loss of each source that some image learns from.

    Args:
        losses: one or several numbers for each of :data:`SOURCES`; they are summed.
    """
    return {
        f"source/{task}/{source}": loss.detach().sum()
        for source, loss, own in zip(SOURCES, losses, _weights(task, targets))
        if any(own)
    }


def weigh_sources(
    task: str, targets: Sequence[Target], like: Tensor, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    """Weight of every source and image (S, B), 0 where an image has no such label, and every source's share in
    the task's loss (S,).

    Args:
        like: gives the device, and the precision where it is above half.
        reduce: averages over processes; called once.
    """
    dtype = at_least_float32(like[:0]).dtype
    weights = torch.tensor(_weights(task, targets), dtype=dtype, device=like.device)
    amount = reduce(weights.sum(dim=1))
    return weights, amount / safe_count(amount.sum())


def present(label: Tensor | None) -> Tensor:
    """A label of an image that weighs in the loss: only images that have it do."""
    assert label is not None
    return label


def _weights(task: str, targets: Sequence[Target]) -> list[list[float]]:
    """For each source one weight an image."""
    by_image = [target.existing_weights(task) for target in targets]
    return [[weights[source] for weights in by_image] for source in range(len(SOURCES))]
