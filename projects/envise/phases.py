"""When the student is trusted: learn, calibrate, answer, and back.

In LEARN every sample is asked of the teacher, and learnt after the student has answered it. Where both agree often
enough, CALIBRATE scores further samples with fixed weights, for the threshold. In ANSWER the student answers what looks
familiar; a sampled audit, and the share of what does not, say when it must learn again.

N: samples of a batch; C: classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scenekd.errors import UserError

from .options import OnlineOptions
from .scores import gate_threshold

LEARN, CALIBRATE, ANSWER = "learn", "calibrate", "answer"


class Phases:
    """The state machine; it sees what student and teacher said, never an image or a label.

    Args:
        num_classes: C.

    Attributes:
        phase: LEARN, CALIBRATE or ANSWER. threshold: of the score, where the phase is ANSWER.
        changes: (position, phase, why) of each change. windows: agreement of each full window of learning so far.
    """

    def __init__(self, options: OnlineOptions, num_classes: int) -> None:
        self._options, self._num_classes = options, num_classes
        self.phase, self.threshold = LEARN, float("nan")
        self.changes: list[tuple[int, str, str]] = []
        self.windows: list[float] = []
        self._begin_learning()

    def _begin_learning(self) -> None:
        self._agreed, self._counted, self._good = 0, 0, 0
        self._class_counts = np.zeros(self._num_classes, np.int64)
        self._scores: list[float] = []
        self._score_labels: list[int] = []
        self._score_answers: list[int] = []
        options = self._options
        self._audits = deque[bool](maxlen=options.audit_window)
        self._gates = deque[bool](maxlen=options.gate_window)

    def learnt(self, position: int, agreed: np.ndarray, labels: np.ndarray) -> None:
        """A batch of LEARN: whether student and teacher agreed (N,) bool before the update, and the teacher's answers
        (N,) int. A window that a batch completes may change the phase after the batch.

        Raises:
            UserError: converged on a stream in which the teacher sees one class alone.
        """
        self._class_counts += np.bincount(labels, minlength=self._num_classes)
        converged = False
        for one in agreed:
            self._agreed += bool(one)
            self._counted += 1
            if self._counted == self._options.window:
                agreement = self._agreed / self._counted
                self.windows.append(agreement)
                self._good = self._good + 1 if agreement >= self._options.agreement else 0
                self._agreed = self._counted = 0
                converged |= self._good >= self._options.windows
        if not converged:
            return
        if np.count_nonzero(self._class_counts) < 2:
            raise UserError(
                f"STREAM: the teacher named one class alone in the {int(self._class_counts.sum())} samples learnt; "
                "a stream of one class teaches nothing, choose another source"
            )
        self._change(position, CALIBRATE, f"agreement {self.windows[-1]:.3f}")

    def inlier_classes(self) -> np.ndarray:
        """(C,) bool: classes that the teacher named often enough while the student learnt."""
        return self._class_counts >= self._options.inlier_min_share * max(1, self._class_counts.sum())

    def calibrated(self, position: int, scores: np.ndarray, labels: np.ndarray, answers: np.ndarray) -> None:
        """A batch of CALIBRATE: the student's scores (N,), the teacher's answers (N,) and the student's (N,). Enough of
        them change the phase after the batch.

        Raises:
            UserError: no threshold can be fitted, or no sample reaches a given one.
        """
        self._scores += [float(score) for score in scores]
        self._score_labels += [int(label) for label in labels]
        self._score_answers += [int(answer) for answer in answers]
        if len(self._scores) < self._options.calibration:
            return
        labels, answers = np.array(self._score_labels), np.array(self._score_answers)
        self.threshold, used = self.fit(np.array(self._scores), labels, answers, self._options)
        self._change(position, ANSWER, f"threshold {self.threshold:.6g} of {used} inliers")
        self._scores, self._score_labels, self._score_answers = [], [], []

    def fit(
        self, scores: np.ndarray, labels: np.ndarray, answers: np.ndarray, options: OnlineOptions
    ) -> tuple[float, int]:
        """The threshold of calibration samples, and how many of them it is of: those of inlier classes by the teacher
        that would not go to the teacher anyway.

        Args:
            scores: (N,). labels, answers: (N,) of the teacher and of the student. options: of the gate.

        Raises:
            UserError: as of :meth:`calibrated`.
        """
        used = self.inlier_classes()[labels] & ~self.is_rare(answers)
        return gate_threshold(scores[used], options, (labels == answers)[used]), int(used.sum())

    def is_rare(self, answers: np.ndarray) -> np.ndarray:
        """(N,) bool, of the student's answers (N,): no inlier class, where that hands a sample on."""
        return self._options.hand_on_rare & ~self.inlier_classes()[answers]

    def is_unfamiliar(self, scores: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(N,) bool, for (N,) scores and answers of the student: above the threshold, not a number, or rare."""
        return ~(scores <= self.threshold) | self.is_rare(answers)

    def answered(self, position: int, unfamiliar: np.ndarray, audits: Sequence[bool]) -> bool:
        """A batch of ANSWER: what was unfamiliar (N,) bool, and whether the two agreed in each sample of the audit.

        Returns:
            Whether the student must learn again.
        """
        self._gates.extend(bool(one) for one in unfamiliar)
        self._audits.extend(audits)
        options = self._options
        why = ""
        if len(self._audits) == options.audit_window and np.mean(self._audits) < options.audit_agreement:
            why = f"audit agreement {np.mean(self._audits):.3f}"
        elif len(self._gates) == options.gate_window and np.mean(self._gates) > options.gate_share:
            why = f"share unfamiliar {np.mean(self._gates):.3f}"
        if why:
            self._begin_learning()
            self.threshold = float("nan")
            self._change(position, LEARN, why)
        return bool(why)

    def _change(self, position: int, phase: str, why: str) -> None:
        self.phase = phase
        self.changes.append((position, phase, why))

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "phase": self.phase,
            "threshold": self.threshold,
            "changes": [list(change) for change in self.changes],
            "windows": list(self.windows),
            "window": [self._agreed, self._counted, self._good],
            "class_counts": self._class_counts.tolist(),
            "scores": list(self._scores),
            "score_labels": list(self._score_labels),
            "score_answers": list(self._score_answers),
            "audits": list(self._audits),
            "gates": list(self._gates),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` gave."""
        self._begin_learning()
        self.phase, self.threshold = state["phase"], state["threshold"]
        self.changes = [(int(at), str(phase), str(why)) for at, phase, why in state["changes"]]
        self.windows = list(state["windows"])
        self._agreed, self._counted, self._good = state["window"]
        self._class_counts = np.array(state["class_counts"], np.int64)
        self._scores, self._score_labels = list(state["scores"]), list(state["score_labels"])
        self._score_answers = list(state["score_answers"])
        self._audits.extend(state["audits"])
        self._gates.extend(state["gates"])
