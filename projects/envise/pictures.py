"""Pictures of a run over a stream, as PNG: agreement, the teacher's share, risk and coverage, separation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scenekd.visualize_curves import COLOURS, Mark, share_chart
from scenekd.visualize_outliers import risk_coverage_chart, score_chart

from .outcome import Outcome, answer_curve, finite_scores
from .phases import ANSWER, CALIBRATE, LEARN
from .run import OnlineRun
from .views import AttentionSamples, attention_of_runs, separation_of_runs, separation_view

_POINTS = 100  # of a curve over the stream, each of
_LEAST = 20  # samples or more
_PHASE_COLOURS = {LEARN: COLOURS[0], CALIBRATE: COLOURS[4], ANSWER: COLOURS[2]}


def stream_figures(
    run: OnlineRun, outcome: Outcome, score: str, attention: AttentionSamples | None = None
) -> dict[str, bytes]:
    """Caption → PNG; a picture that has nothing to show is left out.

    Args:
        score: name of the gate's score. attention: to be shown.
    """
    table = outcome.table
    figures: dict[str, bytes] = {}
    if not len(table):
        return figures
    marks = _marks(run)
    both = table.compared
    curves = {"both agree": (table.position[both], (table.student == table.teacher)[both])}
    figures["agreement of student and teacher over the stream"] = share_chart(
        {name: _binned(*curve) for name, curve in curves.items()},
        marks,
        "samples",
        "% of learnt, calibrated, audited",
    )
    shares = {
        "answered by the teacher": _binned(table.position, table.by_teacher),
        "asked of the teacher": _binned(table.position, table.asked),
    }
    figures["share of the stream that goes to the teacher"] = share_chart(
        shares, marks, "samples", "% of samples"
    )
    figures |= _doubt(run, outcome, score)
    if attention is not None:
        caption = "where teacher and student look for the teacher's answer"
        figures[caption] = attention_of_runs({"student": attention})
    return figures


def _doubt(run: OnlineRun, outcome: Outcome, score: str) -> dict[str, bytes]:
    """Risk and coverage, the score's spread, and the separation of features."""
    figures: dict[str, bytes] = {}
    table, rows = outcome.table, outcome.answering
    curve = answer_curve(outcome)
    if curve is not None:
        points = {}
        if rows.any():
            kept = rows & ~table.by_teacher
            wrong = float((table.student != outcome.label)[kept].mean()) if kept.any() else 0.0
            points = {score: (float(kept.sum() / rows.sum()), wrong)}
        figures["risk and coverage of the student's answers"] = risk_coverage_chart({score: curve}, points)
    strange = outcome.outlier & rows
    if strange.any() and (rows & ~strange).any():
        scores = finite_scores(table.score)
        threshold = run.distiller.phases.threshold
        sides = (scores[rows & ~strange], scores[strange], threshold if np.isfinite(threshold) else None)
        figures["the score of inliers and outliers"] = score_chart({score: sides})
    view = separation_view(outcome, run.classes)
    if view is not None:
        shown = {"student's features, two principal directions": view}
        figures["inliers and outliers in the student's features"] = separation_of_runs(shown)
    return figures


def _marks(run: OnlineRun) -> list[Mark]:
    """Where the phase, or the prior of the stream, changes."""
    changes = [Mark(at + 1, phase, _PHASE_COLOURS[phase]) for at, phase, _ in run.distiller.phases.changes]
    shifts = [Mark(prior.start, "the stream shifts", "black") for prior in run.stream.priors[1:]]
    return [*changes, *shifts]


def _binned(positions: np.ndarray, values: np.ndarray) -> tuple[Sequence[float], Sequence[float]]:
    """Means in percent over equal parts of the stream, at the parts' middles; parts without a sample are left out."""
    if not len(positions):
        return [], []
    parts = max(1, min(_POINTS, len(positions) // _LEAST))
    edges = np.linspace(0, positions[-1] + 1, parts + 1)
    part = np.searchsorted(edges, positions, side="right") - 1
    counts = np.bincount(part, minlength=len(edges) - 1)
    sums = np.bincount(part, weights=values, minlength=len(edges) - 1)
    full = counts > 0
    middles = (edges[:-1] + edges[1:]) / 2
    return middles[full].tolist(), (100 * sums[full] / counts[full]).tolist()
