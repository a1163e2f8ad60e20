"""Scoring something that answers like a network, without an engine: for files of other runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..sample import Prediction, Target
from .evaluator import Evaluator

Ask = Callable[[Tensor], Sequence[Prediction]]


@torch.no_grad()
def evaluate(
    ask: Ask, loader: Iterable[tuple[Tensor, Sequence[Target]]], evaluator: Evaluator
) -> dict[str, dict[str, Any]]:
    """The results of ``ask`` on a test set, as :meth:`Evaluator.summarize` gives them.

    Args:
        ask: of (B, 3, S, S) float32 RGB in 0…255 gives B predictions at that size.
        loader: as :meth:`scenekd.experiment.Experiment.test_loader`.

    Raises:
        UserError: a prediction that is not finite, or an image that cannot be read.
    """
    evaluator.reset()
    for images, targets in loader:
        for prediction, target in zip(ask(images.float()), targets, strict=True):
            evaluator.add(target.image_id, prediction.resize(target.height, target.width))
    return evaluator.summarize()
