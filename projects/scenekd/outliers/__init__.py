"""Outlier scores in one interface: what looks unfamiliar to a network, by its features and logits."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .attention import AttentionScore
from .base import OutlierScore, check_threshold, fit_threshold
from .features import Mahalanobis, NearestNeighbours, ViM
from .logits import ODIN, Energy, MaxLogit, MaxSoftmax
from .seen import ClassifierDiscrepancy, LeaveOutEnsemble, SeesOutliers

__all__ = [
    "SCORES",
    "OutlierScore",
    "SeesOutliers",
    "build_outlier_score",
    "check_threshold",
    "fit_threshold",
]

SCORES: dict[str, type[OutlierScore]] = {
    score.name: score
    for score in (
        MaxSoftmax,
        MaxLogit,
        Energy,
        ODIN,
        Mahalanobis,
        ViM,
        NearestNeighbours,
        AttentionScore,
        ClassifierDiscrepancy,
        LeaveOutEnsemble,
    )
}


def build_outlier_score(name: str, *, head: nn.Linear | None = None, **options: Any) -> OutlierScore:
    """The score of a name, with options of its own.

    Args:
        name: one of :data:`SCORES`. head: the network's linear head, which ``vim`` and ``attention`` need.

    Raises:
        ValueError: an unknown name or option, one outside its range, or a head that is needed and not there.
    """
    if name not in SCORES:
        raise ValueError(f"outlier score {name!r} is not known; choose one of {', '.join(SCORES)}")
    known = set(inspect.signature(SCORES[name]).parameters)
    if "head" in known:
        if head is None:
            raise ValueError(f"{name} needs the network's linear head; choose another score for this network")
        options["head"] = head
    if unknown := sorted(set(options) - known):
        own = ", ".join(sorted(known - {"head"})) or "none"
        raise ValueError(f"outlier score {name} has no option {unknown[0]!r}; its options: {own}")
    return SCORES[name](**options)
