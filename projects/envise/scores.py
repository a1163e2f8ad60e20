"""Outlier scores: how unfamiliar a sample looks to the student.

N: samples; D, h, w: the student's feature map; C: classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from scenekd.errors import UserError


class OutlierScore(Protocol):
    """Higher is more unfamiliar.

    Attributes:
        needs_fit: :meth:`fit` is called once learning has ended, before anything is scored.
        fitted: what it has learnt, tensors by name, which travel with the state of the run.
    """

    needs_fit: bool
    fitted: dict[str, Tensor]

    def prepare(self, net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """The images of which ``features`` and ``logits`` are wanted: themselves, or moved by the gradient of ``net``
        (images → logits), which is in evaluation mode."""
        ...

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        """Learn what is familiar from (N, D, h, w), (N, C) and the teacher's top classes (N,) int64.

        Raises:
            ValueError: there is too little.
        """
        ...

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """(N,) float, each sample by itself."""
        ...

    def load_fitted(self, fitted: Mapping[str, Tensor]) -> None:
        """Take up what :attr:`fitted` held."""
        ...


class MaxSoftmax:
    """1 − the highest probability (Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution
    examples, 2017); nothing is fitted."""

    needs_fit = False

    def __init__(self) -> None:
        self.fitted: dict[str, Tensor] = {}

    def prepare(self, net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """See :class:`OutlierScore`."""
        return images

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        """See :class:`OutlierScore`."""

    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """See :class:`OutlierScore`; float64, in which sure students do not tie."""
        return 1 - torch.softmax(logits.double(), dim=1).amax(dim=1)

    def load_fitted(self, fitted: Mapping[str, Tensor]) -> None:
        """See :class:`OutlierScore`."""


SCORES: dict[str, Callable[[CfgNode], OutlierScore]] = {"max_softmax": lambda cfg: MaxSoftmax()}


def build_score(cfg: CfgNode) -> OutlierScore:
    """The score of ``ONLINE.SCORE``.

    Raises:
        UserError: no such score.
    """
    name = cfg.ONLINE.SCORE
    if name not in SCORES:
        raise UserError(f"ONLINE.SCORE: {name!r}; choose one of {', '.join(sorted(SCORES))}")
    return SCORES[name](cfg)
