"""The paper's claims as a study: who converges faster, what the cascade saves, which score tells outliers, where the
networks look. The rows are in ``experiments/``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scenekd.study.spec import Metric, StudySpec

from .study_figures import DRAWERS, learns_throughout

SUCCESSIVE = 2  # windows in which the agreement must be reached, as ONLINE.WINDOWS has it by default

Read = Callable[[CfgNode, Mapping[str, Any]], float]


def samples_to_agreement(cfg: CfgNode, stream: Mapping[str, Any]) -> float:
    """Samples from the start to the end of the windows in which ``ONLINE.AGREEMENT`` is reached; NaN where it is not,
    or only after the prior has shifted."""
    ends = first_shift(cfg) if learns_throughout(cfg) else math.inf
    return _reached(cfg, stream.get("agreement_windows", ()), 0, ends)


def samples_after_shift(cfg: CfgNode, stream: Mapping[str, Any]) -> float:
    """The same from the first shift of the prior on, of a student that learns throughout."""
    if not learns_throughout(cfg) or not math.isfinite(first_shift(cfg)):
        return math.nan
    return _reached(cfg, stream.get("agreement_windows", ()), first_shift(cfg), math.inf)


def _reached(cfg: CfgNode, windows: Sequence[float], start: float, end: float) -> float:
    """``windows`` are in percent, one behind the other from the first sample on."""
    size, good = cfg.ONLINE.WINDOW, 0
    for number, agreement in enumerate(windows):
        if number * size < start or (number + 1) * size > end:
            continue
        good = good + 1 if agreement >= 100 * cfg.ONLINE.AGREEMENT else 0
        if good == SUCCESSIVE:
            return (number + 1) * size - start
    return math.nan


def first_shift(cfg: CfgNode) -> float:
    """Where the prior first shifts; infinity where it stays."""
    return min((float(shift["AT"]) for shift in cfg.STREAM.SHIFTS), default=math.inf)


def before_shift(cfg: CfgNode, stream: Mapping[str, Any]) -> float:
    """Agreement up to the first shift, of a student that learns throughout."""
    parts = stream.get("parts", ())
    return float(parts[0]["agreement"]) if learns_throughout(cfg) and parts else math.nan


def after_shift(cfg: CfgNode, stream: Mapping[str, Any]) -> float:
    """Agreement since the last shift, of the same."""
    parts = stream.get("parts", ())
    return _number(parts[-1]["agreement"]) if learns_throughout(cfg) and len(parts) > 1 else math.nan


def converged(cfg: CfgNode, stream: Mapping[str, Any]) -> float:
    """100 where the student has been trusted, 0 where it never was; their mean is the share of the seeds."""
    return math.nan if learns_throughout(cfg) else 100.0 * bool(stream.get("changes"))


def last_part(key: str) -> Read:
    """A number of the stream since its last shift, since when outliers come."""

    def read(cfg: CfgNode, stream: Mapping[str, Any]) -> float:
        parts = stream.get("parts", ())
        return _number(parts[-1].get(key)) if parts and not learns_throughout(cfg) else math.nan

    return read


def accuracy_lost(cfg: CfgNode, stream: Mapping[str, Any]) -> float:
    """Points by which the teacher alone is better than the cascade."""
    return last_part("teacher_accuracy")(cfg, stream) - last_part("accuracy")(cfg, stream)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def under(key: str) -> Read:
    """A number that has another name in ``results.json``."""
    return lambda cfg, numbers: _number(numbers.get(key))


STREAM, SCORES, LOOK = "stream", "outlier_scores", "attention"

STUDY = StudySpec(
    system="envise",
    title="A binary student learns the stream online: the paper's claims, measured",
    folder=Path(__file__).with_name("experiments"),
    metrics=(
        Metric("accuracy", "classification", compared=False),
        Metric("samples_to_agreement", STREAM, unit="samples", lower=True, read=samples_to_agreement),
        Metric("agreement_before_shift", STREAM, read=before_shift),
        Metric("samples_after_shift", STREAM, unit="samples", lower=True, read=samples_after_shift),
        Metric("agreement_after_shift", STREAM, read=after_shift),
        Metric("converged", STREAM, compared=False, read=converged),
        Metric("cascade_accuracy", STREAM, read=last_part("accuracy")),
        Metric("teacher_accuracy", STREAM, compared=False, read=last_part("teacher_accuracy")),
        Metric("accuracy_lost", STREAM, unit="points", lower=True, read=accuracy_lost),
        Metric("share_to_teacher", STREAM, lower=True, read=last_part("share_to_teacher")),
        Metric("agreement_inliers", STREAM, read=last_part("agreement_inliers")),
        Metric("outliers_sent", STREAM, compared=False, read=last_part("outliers_sent")),
        Metric("GiE", STREAM, read=last_part("gie")),
        Metric("AUROC", SCORES, read=under("auroc")),
        Metric("FPR95", SCORES, lower=True, read=under("fpr95")),
        Metric("detection_error", SCORES, lower=True, compared=False),
        Metric("AUPR_in", SCORES, compared=False, read=under("aupr_in")),
        Metric("AUPR_out", SCORES, compared=False, read=under("aupr_out")),
        Metric("share_gated", SCORES, lower=True, compared=False, read=under("share_to_teacher")),
        Metric("gated_accuracy", SCORES, compared=False, read=under("accuracy")),
        Metric("GiE_without_audits", SCORES, read=under("gie")),
        Metric("energy_teacher", LOOK, compared=False),
        Metric("energy_student", LOOK),
        Metric("energy_uniform", LOOK, compared=False),
        Metric("pointing_teacher", LOOK, compared=False),
        Metric("pointing_student", LOOK),
        Metric("distance", LOOK, unit="", lower=True),
        Metric("contrast", LOOK, unit=""),
    ),
    drawers=DRAWERS,
)
