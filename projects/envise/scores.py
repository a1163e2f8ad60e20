"""Outlier scores: how unfamiliar a sample looks to the student.

N: samples; D, h, w: the student's feature map; C: classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from scenekd.errors import UserError


class OutlierScore(Protocol):
    """``score(features, logits)``: (N, D, h, w) and (N, C) → (N,) float, higher = more unfamiliar, each sample by
    itself.

    A score that must be fitted has ``fit(features, logits, labels)`` as well, with the teacher's top classes (N,) int64
    of samples that the student has learnt; it is called once learning has ended, before anything is scored. What it has
    fitted travels with the state of the run where it has ``state_dict()`` and ``load_state_dict(state)`` of tensors and
    plain values; without them it is fitted again on the same samples.
    """

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor: ...


def max_softmax(features: Tensor, logits: Tensor) -> Tensor:
    """1 − the highest probability (Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution
    examples, 2017)."""
    return 1 - torch.softmax(logits.float(), dim=1).amax(dim=1)


SCORES: dict[str, Callable[[CfgNode], OutlierScore]] = {"max_softmax": lambda cfg: max_softmax}


def build_score(cfg: CfgNode) -> OutlierScore:
    """The score of ``ONLINE.SCORE``.

    Raises:
        UserError: no such score.
    """
    name = cfg.ONLINE.SCORE
    if name not in SCORES:
        raise UserError(f"ONLINE.SCORE: {name!r}; choose one of {', '.join(sorted(SCORES))}")
    return SCORES[name](cfg)
