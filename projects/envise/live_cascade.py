"""The cascade on a live stream: a student that learns from its teacher and then answers, by packed bits where it can.

F_B, F_T: OPs of one sample by student and teacher, see :mod:`scenekd.flops`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scenekd.errors import UserError
from scenekd.evaluation.efficiency import Gain, TrainingCost, cascade_gain
from scenekd.flops import Operations, count_flops, count_operations
from scenekd.nets.packed_native import library

from .live import Status, share
from .phases import ANSWER, CALIBRATE, LEARN
from .run import OnlineRun
from .saved import WHOLE, load_student
from .step import Answers, AskedTeacher
from .students import StreamStudent

PACKED = ("auto", "on", "off")

logger = logging.getLogger(__name__)


class LiveCascade:
    """An :class:`.run.OnlineRun` as a live task, see :class:`.live.LiveTask`.

    Args:
        run: whose own states are far apart (``period``): this class writes them. image_size: S, for its costs.
        folder: of its state. packed: ``on``: the student answers by packed bits; ``auto``: where it is binary, on the
            CPU, and the kernels can be built; ``off``: never. classes: names of the answers, as far as they are known.

    Raises:
        UserError: ``on`` cannot be had.
    """

    def __init__(
        self,
        run: OnlineRun,
        folder: str | Path,
        image_size: int,
        *,
        packed: str = "auto",
        classes: Sequence[str] = (),
    ) -> None:
        self.run, self._folder, self._classes = run, Path(folder), tuple(classes)
        distiller = run.distiller
        self._costs = _costs(distiller.student, distiller.teacher, image_size)
        self._packs, self.how = _packs(distiller.student, packed)
        self._agreed = deque[bool](maxlen=distiller.options.window)
        self._latest: Answers | None = None

    @property
    def position(self) -> int:
        """See :class:`.live.LiveTask`."""
        return self.run.stream.position

    @property
    def phase(self) -> str:
        """See :class:`.live.LiveTask`."""
        return self.run.distiller.phases.phase

    def resume(self) -> bool:
        """See :class:`.live.LiveTask`."""
        return (self._folder / WHOLE).is_file() and self.run.resume()

    def load_weights(self, path: str) -> None:
        """Begin with a student of an earlier run, see :func:`.saved.load_student`."""
        load_student(self.run.distiller.student, path)

    def save(self, *, final: bool = False) -> None:
        """See :class:`.live.LiveTask`."""
        self.run.save()

    def advance(self) -> list[dict[str, Any]] | None:
        """See :class:`.live.LiveTask`."""
        student = self.run.distiller.student
        if self._packs and self.phase != LEARN and not student.is_packed:
            student.pack()
        answers = self.run.advance()
        if answers is None:
            return None
        self._latest = answers
        self._agreed.extend(bool(one) for one in answers.agreed)
        return [self._row(answers, i) for i in range(len(answers.positions))]

    def _row(self, answers: Answers, i: int) -> dict[str, Any]:
        answer, teacher, score = int(answers.answers[i]), int(answers.teacher[i]), float(answers.scores[i])
        return {
            "position": int(answers.positions[i]),
            "image": self.run.stream.image_ids[i],
            "phase": answers.phase,
            "by": "teacher" if answers.by_teacher[i] else "student",
            "class": answer,
            "name": self._name(answer),
            "student": int(answers.student[i]),
            "teacher": teacher if answers.asked[i] else None,
            "score": score if np.isfinite(score) else None,
        }

    def _name(self, number: int) -> str:
        return self._classes[number] if number < len(self._classes) else str(number)

    def gain(self) -> Gain | None:
        """What the cascade has saved since it answers, and what the student's training took; None where it has not
        answered yet, or the teacher's operations cannot be counted."""
        distiller, (student, teacher) = self.run.distiller, self._costs
        counts, options = distiller.counts.summary(), distiller.options
        if not counts[ANSWER]["samples"] or not teacher.flops:
            return None
        apart = [counts[phase] for phase in (LEARN, CALIBRATE)]
        training = TrainingCost(
            asked=int(sum(row["asked"] for row in apart)),
            passes=distiller.step * (options.batch_size + min(options.replay_batch, options.replay_size)),
            predictions=int(sum(row["samples"] for row in apart)),
        )
        answering = counts[ANSWER]
        return cascade_gain(
            student, teacher, int(answering["samples"]), int(answering["asked"]), training=training
        )

    def status(self) -> Status:
        """See :class:`.live.LiveTask`."""
        counts = self.run.distiller.counts
        samples, asked, by_teacher = (counts.total(name) for name in ("samples", "asked", "by_teacher"))
        who = (
            f"student {share(samples - by_teacher, samples)} {self.how}, teacher {share(by_teacher, samples)}"
        )
        agreed = f"{share(sum(self._agreed), len(self._agreed))} of the last {len(self._agreed)} compared"
        details = [
            ("answered by", who),
            ("agreement", agreed),
            ("to teacher", self._asked(samples, asked)),
            ("GiE", _gain_text(self.gain())),
        ]
        if self._latest is not None:
            by = "teacher" if self._latest.by_teacher[-1] else "student"
            details.append(("last", f"{self._name(int(self._latest.answers[-1]))} ({by})"))
        return Status(samples, self.phase, tuple(details))

    def _asked(self, samples: int, asked: int) -> str:
        answering = self.run.distiller.counts.summary()[ANSWER]
        text = f"{share(asked, samples)} of all"
        if answering["samples"]:
            text += f", {share(int(answering['asked']), int(answering['samples']))} since the student answers"
        return text

    def results(self) -> dict[str, dict[str, Any]]:
        """Numbers of the run by group: its counts by phase, and its gain."""
        found = {f"stream_{phase}": dict(row) for phase, row in self.run.summary()["counts"].items()}
        gain = self.gain()
        if gain is not None:
            found["gain"] = {
                "GiE": gain.gie,
                "share_teacher": gain.share_teacher,
                "cost_ratio": gain.cost_ratio,
                "break_even_samples": gain.break_even,
            }
        return found


def _costs(student: StreamStudent, teacher: AskedTeacher, image_size: int) -> tuple[Operations, Operations]:
    """F_B and F_T."""
    image = torch.zeros(1, 3, image_size, image_size, device=next(student.parameters()).device)
    student.eval()
    own = count_operations(student, lambda: student(image))
    return own, Operations(count_flops(lambda: teacher.logits(image))[0])


def _packs(student: StreamStudent, wanted: str) -> tuple[bool, str]:
    """Whether the student is to be packed, and how it answers, in words."""
    real = "in float32"
    if wanted == "off":
        return False, real
    why = ""
    if next(student.parameters()).device.type != "cpu":
        why = "packed bits run on the CPU; set MODEL.DEVICE cpu"
    elif wanted == "auto" and library() is None:
        why = "the kernels cannot be built here"
    else:
        try:
            student.pack()
        except ValueError as error:
            why = f"{error}; set MODEL.ENVISE.NETWORK to a binary one"
    if why and wanted == "on":
        raise UserError(f"--packed on: {why}")
    if why:
        logger.info("the student answers %s: %s", real, why)
    return not why, real if why else "by packed bits"


def _gain_text(gain: Gain | None) -> str:
    if gain is None:
        return "not yet"
    paid = f"training is paid back by {gain.break_even:.0f} samples" if gain.saved > 0 else "nothing is saved"
    return f"{gain.gie:.3f} since the student answers, {paid}"
