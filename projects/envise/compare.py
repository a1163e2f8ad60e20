"""Outlier scores held against each other on one finished run: ``ONLINE.COMPARE_SCORES``.

Each is fitted as the gate's own score was: its parameters on the samples that are replayed, its threshold on the
calibration's inliers alone; and then gates the samples that were answered since, all with the student as it ended.
Percentages are 0…100.

N: samples that are scored.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
from torch import Tensor

from scenekd.errors import UserError
from scenekd.evaluation.efficiency import cascade_accuracy, gain_in_efficiency
from scenekd.evaluation.ood import outlier_metrics
from scenekd.flops import Operations
from scenekd.outliers import OutlierScore

from .answer_log import AnswerTable
from .outcome import Outcome, ask_about, finite_scores, images_of
from .phases import ANSWER, CALIBRATE, Phases
from .run import OnlineRun
from .scores import fit_score, look, scores_of

OF_SCORES = ("auroc", "fpr95", "detection_error", "aupr_in", "aupr_out")
OF_SYSTEM = ("share_to_teacher", "accuracy", "gie")
SEEN_PART = 4  # one in so many images is kept for the scores that see outliers
AT_ONCE = 64  # a score that moves the images runs back through the network

logger = logging.getLogger(__name__)


def compare_scores(
    run: OnlineRun,
    outcome: Outcome,
    operations: tuple[Operations, Operations],
    scores: dict[str, OutlierScore],
) -> dict[str, float]:
    """``score/metric`` → number, of each score :data:`OF_SCORES` and of it as the whole system's gate
    :data:`OF_SYSTEM`; NaN where there is nothing to tell. Beside them how many ``samples`` were scored, and how many
    ``outliers_shown`` to the scores that see some.

    Only samples answered since the last calibration belong: earlier ones were another student's. Where any of the
    scores sees outliers, every fourth of the images shown since then (counted apart among inliers and outliers, so
    that the prior stays) is scored by none: its outliers are what these scores see. GiE is without audits, and without
    the cost of the score itself.

    Args:
        operations: of student and teacher, for one sample. scores: by name, not fitted.
    """
    if not run.stream.can_reread:
        logger.warning("ONLINE.COMPARE_SCORES: frames of a video or camera do not come again; left out")
        return {}
    calibration, answered = settled(run.distiller.phases, outcome.table)
    if not len(answered):
        logger.warning("ONLINE.COMPARE_SCORES: the student as it ended answered no sample; left out")
        return {}
    shown = np.empty(0, np.int64)
    if any(score.sees_outliers for score in scores.values()) and run.stream.truth.is_known:
        kept = kept_apart(
            run.stream.truth.records[outcome.table.position[answered]], outcome.outlier[answered]
        )
        shown, answered = answered[kept & outcome.outlier[answered]], answered[~kept]
    fitted = _fit(run, scores, outcome.table.position[shown])
    told = {
        side: _score(run, fitted, outcome.table.position[rows])
        for side, rows in (("calibration", calibration), ("answered", answered))
    }
    judge = _Judge(run, outcome, operations, calibration, answered)
    found: dict[str, float] = {"samples": len(answered), "outliers_shown": len(shown)}
    for name in scores:
        row = dict.fromkeys((*OF_SCORES, *OF_SYSTEM), math.nan)
        if name in fitted:
            row |= judge(name, told["calibration"][name], told["answered"][name])
        found |= {f"{name}/{metric}": value for metric, value in row.items()}
    return found


def settled(phases: Phases, table: AnswerTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the last calibration, and of what was answered since; both empty where the student does not answer, for
    then it has learnt since, or was never trusted."""
    if phases.phase != ANSWER:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    began = [at for at, phase, _ in phases.changes if phase == CALIBRATE][-1]
    since = table.position > began
    calibration, answered = (np.flatnonzero(since & (table.phase == one)) for one in (CALIBRATE, ANSWER))
    return calibration, answered


def kept_apart(images: np.ndarray, outlier: np.ndarray) -> np.ndarray:
    """(N,) bool: samples that show every fourth of the images, in the order in which they first come; counted among
    inliers and outliers apart.

    Args:
        images: (N,) int64, which image each sample shows. outlier: (N,) bool.
    """
    chosen = []
    for side in (~outlier, outlier):
        first = np.sort(np.unique(images[side], return_index=True)[1])
        chosen.append(images[side][first][SEEN_PART - 1 :: SEEN_PART])
    return np.isin(images, np.concatenate(chosen))


def _fit(run: OnlineRun, scores: dict[str, OutlierScore], shown: np.ndarray) -> dict[str, OutlierScore]:
    """Those that could be fitted; of the others the log says why they could not."""
    outliers: Tensor | None = run.stream.read(shown) if len(shown) else None
    fitted = {}
    for name, score in scores.items():
        try:
            fit_score(score, run.distiller.student, run.distiller.replayed, outliers)
        except UserError as error:
            logger.warning("ONLINE.COMPARE_SCORES: %s is left out: %s", name, error)
        else:
            fitted[name] = score
    return fitted


def _score(run: OnlineRun, scores: dict[str, OutlierScore], positions: np.ndarray) -> dict[str, np.ndarray]:
    """(N,) float64 of each score, of the student as it stands."""
    student = run.distiller.student
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in scores}
    for images in images_of(run, positions, AT_ONCE):
        seen = look(student, images)
        for name, score in scores.items():
            parts[name].append(scores_of(score, student, images, seen))
    return {name: np.concatenate(part) for name, part in parts.items()}


class _Judge:
    """The metrics of a score's numbers.

    Args:
        calibration, answered: rows of the table.
    """

    def __init__(
        self,
        run: OnlineRun,
        outcome: Outcome,
        operations: tuple[Operations, Operations],
        calibration: np.ndarray,
        answered: np.ndarray,
    ) -> None:
        table, phases = outcome.table, run.distiller.phases
        self._phases, self._calibrated = phases, (table.teacher[calibration], table.student[calibration])
        # What ONLINE.THRESHOLD gives is of the gate's own score.
        self._options = dataclasses.replace(run.distiller.options, threshold=())
        self._operations, self._label = operations, outcome.label[answered]
        self._outlier, self._student = outcome.outlier[answered], table.student[answered]
        self._teacher = outcome.teacher[answered].copy()
        unasked = self._teacher < 0
        self._teacher[unasked] = ask_about(run, table.position[answered][unasked])

    def __call__(self, name: str, calibration: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        """Of the scores of both rows."""
        found: dict[str, float] = {}
        if self._outlier.any() and not self._outlier.all():
            values = finite_scores(scores)
            metrics = outlier_metrics(values[~self._outlier], values[self._outlier]).percentages()
            found = {metric: metrics[metric] for metric in OF_SCORES}
        try:
            threshold, _ = self._phases.fit(calibration, *self._calibrated, self._options)
        except UserError as error:
            logger.warning("ONLINE.COMPARE_SCORES: %s has no threshold: %s", name, error)
            return found
        sent = ~(scores <= threshold) | self._phases.is_rare(self._student)
        student, teacher = self._operations
        found["share_to_teacher"] = 100 * float(sent.mean())
        if teacher.ops:
            gain = gain_in_efficiency(student.ops, teacher.ops, len(sent), int(sent.sum()))
            found["gie"] = 100 * gain
        known = self._label >= 0
        if known.any():
            columns = (self._student, self._teacher, sent, self._label, self._outlier)
            found["accuracy"] = cascade_accuracy(*(column[known] for column in columns))["accuracy"]
        return found
