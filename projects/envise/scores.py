"""The outlier score that ``ONLINE.SCORE`` names: how unfamiliar a sample looks to the student."""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from scenekd.errors import UserError
from scenekd.losses.attention_maps import last_linear
from scenekd.outliers import SCORES, OutlierScore, build_outlier_score

__all__ = ["OutlierScore", "build_score", "online_scores"]


def online_scores() -> list[str]:
    """Names of the scores that learn from inliers alone, or from nothing."""
    return sorted(name for name, score in SCORES.items() if not score.sees_outliers)


def build_score(cfg: CfgNode, student: nn.Module) -> OutlierScore:
    """The score of ``ONLINE.SCORE`` and ``SCORE_OPTIONS``.

    Args:
        student: whose last linear layer is read when the score is fitted and asked.

    Raises:
        UserError: no such score or option, a value out of its range, or a score that learns from outliers: a stream
            does not say which samples are.
    """
    name = cfg.ONLINE.SCORE
    if name in SCORES and SCORES[name].sees_outliers:
        raise UserError(
            f"ONLINE.SCORE: {name} learns from outliers, which a stream does not point out; choose one of "
            f"{', '.join(online_scores())}"
        )
    try:
        return build_outlier_score(name, head=last_linear(student), **_options(cfg.ONLINE.SCORE_OPTIONS))
    except (ValueError, TypeError) as error:
        raise UserError(f"ONLINE.SCORE: {error}") from None


def _options(pairs: Any) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"ONLINE.SCORE_OPTIONS: {pair!r} is no pair (option, value)")
        options[pair[0]] = pair[1]
    return options
