"""Outlier scores of a student: which ones a configuration names, how they are fitted, asked, and made a gate of.

N: samples; S: side of an image; C: classes; D, h, w: a feature map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.evaluation.risk_coverage import risk_coverage
from scenekd.losses.attention_maps import last_linear
from scenekd.outliers import (
    SCORES,
    OutlierScore,
    SeesOutliers,
    build_outlier_score,
    check_threshold,
    fit_threshold,
)

from .options import OnlineOptions
from .students import StreamStudent

__all__ = [
    "OutlierScore",
    "build_compared",
    "build_score",
    "fit_score",
    "gate_threshold",
    "look",
    "online_scores",
    "scores_of",
]

FIT_BATCH = 256  # images at a time, where a score is fitted


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
    return _build("ONLINE.SCORE", name, student, _options(cfg.ONLINE.SCORE_OPTIONS))


def build_compared(cfg: CfgNode, student: nn.Module) -> dict[str, OutlierScore]:
    """Those of ``ONLINE.COMPARE_SCORES`` by name, with their default options; the gate's own with its
    ``SCORE_OPTIONS``.

    Raises:
        UserError: no such score, or one that this student cannot have.
    """
    own = cfg.ONLINE.SCORE, _options(cfg.ONLINE.SCORE_OPTIONS)
    return {
        name: _build("ONLINE.COMPARE_SCORES", name, student, own[1] if name == own[0] else {})
        for name in map(str, cfg.ONLINE.COMPARE_SCORES)
    }


def _build(key: str, name: str, student: nn.Module, options: dict[str, Any]) -> OutlierScore:
    try:
        return build_outlier_score(name, head=last_linear(student), **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {error}") from None


def _options(pairs: Any) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"ONLINE.SCORE_OPTIONS: {pair!r} is no pair (option, value)")
        options[pair[0]] = pair[1]
    return options


def look(student: StreamStudent, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D, h, w) and logits (N, C) of the student as it stands, of float images on its device."""
    student.eval()
    with torch.no_grad():
        features, logits = student.features_and_logits(images)
    return features, logits


def scores_of(
    score: OutlierScore, student: StreamStudent, images: Tensor, seen: tuple[Tensor, Tensor]
) -> np.ndarray:
    """(N,) float64; a score that looks at moved images has the student look at those.

    Args:
        seen: what :func:`look` gave of the images.
    """
    moved = score.prepare(student, images)
    features, logits = seen if moved is images else look(student, moved)
    return np.asarray(score.score(features, logits).detach().double().cpu().numpy())


def fit_score(
    score: OutlierScore,
    student: StreamStudent,
    kept: tuple[Tensor, Tensor] | None,
    outliers: Tensor | None = None,
) -> None:
    """Fit a score that needs it, on replayed samples as the student sees them now.

    Args:
        kept: (N, 3, S, S) uint8 images and (N, C) logits of the teacher; None: nothing is replayed.
        outliers: (M, 3, S, S) uint8 images, for scores that see some.

    Raises:
        UserError: nothing to fit on, or too little.
    """
    if not score.needs_fit:
        return
    if kept is None:
        raise UserError("ONLINE.REPLAY_SIZE: this ONLINE.SCORE is fitted on replayed samples; set it above 0")
    student.eval()  # before it is looked at, for a score that moves the images
    device = next(student.parameters()).device
    features, logits = _look_at_all(score, student, kept[0], device)
    try:
        labels = kept[1].argmax(1).to(device)
        if isinstance(score, SeesOutliers):
            strange = None
            if outliers is not None and len(outliers):
                strange = _look_at_all(score, student, outliers, device)[0]
            score.fit(features, logits, labels, outliers=strange)
        else:
            score.fit(features, logits, labels)
    except ValueError as error:
        raise UserError(f"ONLINE.SCORE: {error}; choose another, or a larger ONLINE.REPLAY_SIZE") from None


def _look_at_all(
    score: OutlierScore, student: StreamStudent, images: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    parts = []
    for part in images.split(FIT_BATCH):
        parts.append(look(student, score.prepare(student, part.to(device).float())))
    features, logits = (torch.cat(one) for one in zip(*parts))
    return features, logits


def gate_threshold(scores: np.ndarray, options: OnlineOptions, agreed: np.ndarray | None = None) -> float:
    """That of ``ONLINE``: fitted at ``TPR`` on the finite ones of the inliers' scores, see
    :func:`scenekd.outliers.fit_threshold`, and lowered to what ``MAX_DISAGREEMENT`` allows; or the given ``THRESHOLD``.

    Args:
        scores: (N,), of inliers. agreed: (N,) bool, whether student and teacher agree; None: ``MAX_DISAGREEMENT``
            does not count.

    Raises:
        UserError: nothing to fit on, the gate would never or always open, or they disagree too often at any threshold.
    """
    finite = np.isfinite(scores)
    scores = scores[finite]
    if not len(scores):
        raise UserError(
            "ONLINE.CALIBRATION: no sample of an inlier class with a finite score; lower ONLINE.INLIER_MIN_SHARE "
            "or choose another ONLINE.SCORE"
        )
    try:
        if options.threshold:
            name, threshold = "ONLINE.THRESHOLD", options.threshold[0]
            check_threshold(threshold, torch.from_numpy(scores))
        else:
            name = "ONLINE.TPR"
            threshold = fit_threshold(scores, tpr=options.tpr)
    except UserError as error:
        raise UserError(
            f"{name}: {error}; or take more ONLINE.CALIBRATION, or another ONLINE.SCORE"
        ) from None
    if not (scores <= threshold).any():
        raise UserError(
            f"{name}: the {len(scores)} inlier scores lie in {scores.min():.6g}…{scores.max():.6g}; every sample "
            f"exceeds {threshold:.6g}, the student would never answer; raise it"
        )
    if agreed is None or options.max_disagreement == 1 or options.threshold:
        return threshold
    allowed = options.max_disagreement
    threshold = risk_coverage(scores, ~agreed[finite]).threshold_at(allowed, threshold)
    if threshold < scores.min():
        raise UserError(
            f"ONLINE.MAX_DISAGREEMENT: of the {len(scores)} inliers of the calibration the student answers more than "
            f"{allowed:.1%} otherwise than the teacher, whatever the threshold; raise it, or ONLINE.AGREEMENT"
        )
    return threshold
