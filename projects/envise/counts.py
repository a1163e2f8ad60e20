"""What a run counts: who answered, how often the teacher was asked, how often it agreed; and, apart, the report that
knows the labels.

N: samples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .phases import ANSWER, CALIBRATE, LEARN

if TYPE_CHECKING:
    from .step import Answers
    from .stream import Truth

_NAMES = ("samples", "asked", "by_teacher", "compared", "agreed")


class Counts:
    """By phase: samples, samples asked of the teacher, answers that are the teacher's, samples of which both answered,
    and of these those on which they agreed. No label comes in."""

    def __init__(self) -> None:
        self._by_phase = {phase: dict.fromkeys(_NAMES, 0) for phase in (LEARN, CALIBRATE, ANSWER)}

    def add(self, answers: Answers) -> None:
        """Count a batch."""
        row = self._by_phase[answers.phase]
        row["samples"] += len(answers.positions)
        row["asked"] += int(answers.asked.sum())
        row["by_teacher"] += int(answers.by_teacher.sum())
        row["compared"] += len(answers.agreed)
        row["agreed"] += int(answers.agreed.sum())

    def total(self, name: str) -> int:
        """Over all phases, of ``samples``, ``asked``, ``by_teacher``, ``compared`` or ``agreed``."""
        return sum(row[name] for row in self._by_phase.values())

    def total_of(self, *phases: str) -> dict[str, int]:
        """All counts over some phases."""
        return {name: sum(self._by_phase[phase][name] for phase in phases) for name in _NAMES}

    def summary(self) -> dict[str, dict[str, float]]:
        """By phase the counts, the share asked, and the agreement; shares of nothing are NaN."""
        return {
            phase: {
                **row,
                "share_asked": _ratio(row["asked"], row["samples"]),
                "agreement": _ratio(row["agreed"], row["compared"]),
            }
            for phase, row in self._by_phase.items()
        }

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Plain numbers."""
        return {phase: dict(row) for phase, row in self._by_phase.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Go on with them."""
        for phase, row in self._by_phase.items():
            row.update(state[phase])


class TruthReport:
    """How right the answers were, of samples with a label; never shown to the student.

    Args:
        truth: labels and outliers by position; where they are not known nothing is counted.
    """

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._rows = {
            f"{phase}/{kind}": {"samples": 0, "right": 0, "student_right": 0, "to_teacher": 0}
            for phase in (LEARN, CALIBRATE, ANSWER)
            for kind in ("inlier", "outlier")
        }

    def add(self, answers: Answers) -> None:
        """Count a batch."""
        if not self._truth.is_known:
            return
        labels, outlier = self._truth.labels[answers.positions], self._truth.outlier[answers.positions]
        for kind, chosen in (("inlier", ~outlier), ("outlier", outlier)):
            chosen = chosen & (labels >= 0)
            row = self._rows[f"{answers.phase}/{kind}"]
            row["samples"] += int(chosen.sum())
            row["right"] += int((answers.answers == labels)[chosen].sum())
            row["student_right"] += int((answers.student == labels)[chosen].sum())
            row["to_teacher"] += int(answers.by_teacher[chosen].sum())

    def summary(self) -> dict[str, dict[str, float]]:
        """By phase and kind the samples, the accuracy of the system and of the student alone, and the share that the
        teacher answered; in percent, NaN where there were no samples."""
        return {
            name: {
                "samples": row["samples"],
                "accuracy": 100 * _ratio(row["right"], row["samples"]),
                "student_accuracy": 100 * _ratio(row["student_right"], row["samples"]),
                "to_teacher": 100 * _ratio(row["to_teacher"], row["samples"]),
            }
            for name, row in self._rows.items()
        }

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Plain numbers."""
        return {name: dict(row) for name, row in self._rows.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Go on with them."""
        for name, row in self._rows.items():
            row.update(state[name])


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float(np.nan)
