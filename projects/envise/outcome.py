"""The results of a run over a stream: agreement, convergence, shares, accuracies where labels are known, the gate, and
what was saved. Percentages are 0…100.

S: samples of the log; F: of these, those whose features are looked at; D: channels of the last features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from scenekd.evaluation.efficiency import TrainingCost, cascade_accuracy, cascade_gain, gain_in_efficiency
from scenekd.evaluation.ood import outlier_metrics
from scenekd.evaluation.risk_coverage import RiskCoverage, risk_coverage
from scenekd.evaluation.separation import separation
from scenekd.flops import Operations

from .answer_log import AnswerTable
from .phases import ANSWER, CALIBRATE, LEARN
from .run import OnlineRun
from .scores import look

FEATURE_SAMPLES = 1000  # looked at for the separation, evenly chosen
_AT_ONCE = 256


@dataclass
class Outcome:
    """What was said, and what is known of it.

    Attributes:
        table: every sample. label: (S,) int64, −1 where unknown. outlier: (S,) bool, False where unknown.
        teacher: (S,) int64, what it says; −1 where it was never asked.
        features: (F, D) float64 of the student as it is now, feature_rows: (F,) their rows.
    """

    table: AnswerTable
    label: np.ndarray
    outlier: np.ndarray
    teacher: np.ndarray
    features: np.ndarray
    feature_rows: np.ndarray

    @property
    def answering(self) -> np.ndarray:
        """(S,) bool: the student answered, and the label is known."""
        return (self.table.phase == ANSWER) & (self.label >= 0)

    def between(self, start: int, end: int) -> Outcome:
        """Of the samples from ``start`` to below ``end``; without features, which are too few in a part."""
        kept = (self.table.position >= start) & (self.table.position < end)
        label, outlier, teacher = self.label[kept], self.outlier[kept], self.teacher[kept]
        return Outcome(
            self.table.where(kept), label, outlier, teacher, np.empty((0, 0)), np.empty(0, np.int64)
        )


def judge(run: OnlineRun, table: AnswerTable, *, ask_teacher: bool) -> Outcome:
    """Hold the log against the labels, where they are known.

    Args:
        ask_teacher: also about the samples of which it was not asked.
    """
    truth, count = run.stream.truth, len(table)
    label, outlier = np.full(count, -1), np.zeros(count, bool)
    if truth.is_known:
        label, outlier = truth.labels[table.position], truth.outlier[table.position]
    teacher = table.teacher.copy()
    found = Outcome(table, label, outlier, teacher, np.empty((0, 0)), np.empty(0, np.int64))
    if ask_teacher:
        rows = np.flatnonzero(found.answering & (teacher < 0))
        teacher[rows] = ask_about(run, table.position[rows])
    rows = evenly(np.flatnonzero(found.answering), FEATURE_SAMPLES)
    if len(rows):
        maps = (look(run.distiller.student, images)[0] for images in images_of(run, table.position[rows]))
        features = [one.double().mean((2, 3)).cpu().numpy() for one in maps]
        found.features, found.feature_rows = np.concatenate(features), rows
    return found


def ask_about(run: OnlineRun, positions: np.ndarray) -> np.ndarray:
    """(N,) int64, what the teacher says of samples, for the report alone."""
    said = [
        run.distiller.teacher.logits(images).argmax(1).cpu().numpy() for images in images_of(run, positions)
    ]
    return np.concatenate(said) if said else np.empty(0, np.int64)


def images_of(run: OnlineRun, positions: np.ndarray, at_once: int = _AT_ONCE) -> Iterator[Tensor]:
    """(n, 3, S, S) float32 images of samples that have been seen, on the student's device, so many at once."""
    device = next(run.distiller.student.parameters()).device
    for start in range(0, len(positions), at_once):
        yield run.stream.read(positions[start : start + at_once]).to(device).float()


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly chosen, with the first and the last of them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int))]


def stream_results(
    run: OnlineRun, outcome: Outcome, operations: tuple[Operations, Operations]
) -> dict[str, Any]:
    """The numbers of ``results.json``; what cannot be told is NaN or left out, see the README."""
    table, distiller = outcome.table, run.distiller
    student, teacher = operations
    answered, compared = table.of(ANSWER), (table.student == table.teacher)[table.compared]
    audits = answered.asked & ~answered.by_teacher
    windows, changes = distiller.phases.windows, distiller.phases.changes
    reached = [at for at, phase, _ in changes if phase == CALIBRATE]
    results: dict[str, Any] = {
        "samples": len(table),
        "agreement": _percent(compared),
        "agreement_last_window": 100 * windows[-1] if windows else math.nan,
        "agreement_audit": _percent((answered.student == answered.teacher)[audits]),
        "samples_to_convergence": float(reached[0] + 1) if reached else math.nan,
        "samples_answering": len(answered),
        "share_to_teacher": _percent(answered.by_teacher),
        "share_asked": _percent(answered.asked),
        "share_to_teacher_whole": _percent(table.by_teacher),
        "threshold": distiller.phases.threshold,
        **gain(run, answered, student, teacher),
        "student_flops": student.flops,
        "student_bops": student.bops,
        "student_ops": student.ops,
        "teacher_flops": teacher.flops,
        "teacher_bops": teacher.bops,
        "steps": distiller.step,
        "unreadable": len(run.stream.unreadable),
        **known_results(outcome),
        "agreement_windows": [100 * window for window in windows],
        "changes": [list(change) for change in changes],
    }
    if run.stream.truth.is_known:
        results["phases"] = run.report.summary()
        results["parts"] = part_results(run, outcome, operations)
    return results


def part_results(
    run: OnlineRun, outcome: Outcome, operations: tuple[Operations, Operations]
) -> list[dict[str, Any]]:
    """The numbers between two shifts of the prior, one mapping a part of the stream, as of the whole: what was answered
    before outliers came says nothing of the share that they send to the teacher."""
    starts, found = [prior.start for prior in run.stream.priors], []
    for start, end in zip(starts, [*starts[1:], run.stream.samples]):
        part = outcome.between(start, end)
        compared = (part.table.student == part.table.teacher)[part.table.compared]
        answered = part.table.of(ANSWER)
        numbers = {
            "start": start,
            "samples": len(part.table),
            "samples_answering": len(answered),
            "agreement": _percent(compared),
            "share_to_teacher": _percent(answered.by_teacher),
            "share_asked": _percent(answered.asked),
            "gie": gain(run, answered, *operations)["gie"],
            **known_results(part),
        }
        found.append(numbers)
    return found


def gain(run: OnlineRun, answered: AnswerTable, student: Operations, teacher: Operations) -> dict[str, float]:
    """Of the samples since the student answers; in percent but for operations and ``break_even`` samples. NaN where
    there are none, or where the teacher's operations cannot be counted."""
    total, asked = len(answered), int(answered.asked.sum())
    learning = run.distiller.counts.total_of(LEARN, CALIBRATE)
    cost = TrainingCost(learning["asked"], run.distiller.passes, learning["samples"])
    training = cost.operations(student, teacher)
    if not total or not teacher.ops:
        return {"gie": math.nan, "training_operations": training}
    found = cascade_gain(student, teacher, total, asked, cost)
    without = gain_in_efficiency(student.ops, teacher.ops, total, int(answered.by_teacher.sum()))
    return {
        "gie": 100 * found.gie,
        "gie_without_audits": 100 * without,
        "cost_ratio": 100 * found.cost_ratio,
        "saved_operations": found.saved,
        "training_operations": training,
        "break_even": found.break_even,
    }


def known_results(outcome: Outcome) -> dict[str, float]:
    """What the labels say of the samples since the student answers; empty where none is known."""
    rows, table = outcome.answering, outcome.table
    if not rows.any():
        return {}
    found: dict[str, float] = {}
    label, outlier, teacher = outcome.label[rows], outcome.outlier[rows], outcome.teacher[rows]
    if (teacher >= 0).all():
        found = cascade_accuracy(table.student[rows], teacher, table.by_teacher[rows], label, outlier)
        found.pop("share_teacher")  # share_to_teacher, of all samples
    else:
        found["accuracy"] = _percent(table.answer[rows] == label)
        found["student_accuracy"] = _percent(table.student[rows] == label)
    known = outcome.label >= 0
    found["accuracy_whole"] = _percent(table.answer[known] == outcome.label[known])
    scores = finite_scores(table.score[rows])
    curve = answer_curve(outcome)
    if curve is not None:
        found["aurc"], found["best_aurc"] = 100 * curve.aurc, 100 * curve.best_aurc
    if outlier.any() and not outlier.all():
        found |= outlier_metrics(scores[~outlier], scores[outlier]).percentages()
    inliers, outliers = feature_groups(outcome)
    if min(len(inliers), len(outliers)) > 1:
        found |= separation(inliers, outliers)
    return found


def feature_groups(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Features of inliers and of outliers."""
    strange = outcome.outlier[outcome.feature_rows]
    return outcome.features[~strange], outcome.features[strange]


def answer_curve(outcome: Outcome) -> RiskCoverage | None:
    """Risk and coverage of the student's answers: wrong by the labels, or, where none is known, other than the
    teacher's in the calibration, in which it was asked about every sample."""
    table, rows = outcome.table, outcome.answering
    wrong = table.student != outcome.label
    if not (outcome.label >= 0).any():
        rows, wrong = table.phase == CALIBRATE, table.student != table.teacher
    return risk_coverage(finite_scores(table.score[rows]), wrong[rows]) if rows.any() else None


def finite_scores(scores: np.ndarray) -> np.ndarray:
    """Scores in which those that are not finite, which the gate takes for unfamiliar, stand above all others."""
    good = np.isfinite(scores)
    top = float(scores[good].max()) if good.any() else 0.0
    return np.where(good, scores, top + 1.0)


def _percent(right: np.ndarray) -> float:
    return 100 * float(right.mean()) if right.size else math.nan
