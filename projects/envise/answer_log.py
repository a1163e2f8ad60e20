"""Who answered what, sample by sample: ``OUTPUT_DIR/answers.csv``, from which the report of a run is made.

S: samples that the log holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenekd.files import write_text

from .phases import ANSWER, CALIBRATE, LEARN
from .step import Answers

HEADER = "position,phase,answer,by_teacher,asked,student,teacher,score"
_COLUMNS = HEADER.count(",") + 1
_PHASES = (LEARN, CALIBRATE, ANSWER)


@dataclass
class AnswerTable:
    """The log as columns.

    Attributes:
        position: (S,) int64, rising. phase: (S,) of LEARN, CALIBRATE, ANSWER.
        answer, student, teacher: (S,) int64 class numbers; −1 where the teacher was not asked.
        by_teacher, asked: (S,) bool, whose answer it is; whether the teacher was asked, an audit included.
        score: (S,) float64, NaN in LEARN.
    """

    position: np.ndarray
    phase: np.ndarray
    answer: np.ndarray
    by_teacher: np.ndarray
    asked: np.ndarray
    student: np.ndarray
    teacher: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    @property
    def compared(self) -> np.ndarray:
        """(S,) bool: both answered, for whatever reason but that the sample looked unfamiliar: all of learning and
        calibration, and the audits. On the others they are not expected to agree."""
        return self.asked & ~(self.by_teacher & (self.phase == ANSWER))

    def of(self, *phases: str) -> AnswerTable:
        """The samples of some phases."""
        return self.where(np.isin(self.phase, phases))

    def where(self, chosen: np.ndarray) -> AnswerTable:
        """The samples of a (S,) bool mask."""
        return AnswerTable(**{name: column[chosen] for name, column in vars(self).items()})


class AnswerLog:
    """The file, one line a sample.

    Args:
        folder: of ``answers.csv``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "answers.csv"

    def begin(self, position: int) -> None:
        """Keep what lies before ``position`` of the stream: a run that goes on does the rest again; 0: start anew."""
        kept = [line for line in self._lines() if int(line[0]) < position] if position else []
        write_text(self.path, "\n".join([HEADER, *(",".join(line) for line in kept)]) + "\n")

    def add(self, answers: Answers) -> None:
        """Write a batch."""
        columns = (
            answers.positions,
            [answers.phase] * len(answers.positions),
            answers.answers,
            answers.by_teacher.astype(int),
            answers.asked.astype(int),
            answers.student,
            answers.teacher,
            [repr(float(score)) for score in answers.scores],
        )
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(",".join(map(str, row)) + "\n" for row in zip(*columns))

    def read(self) -> AnswerTable:
        """What is written so far."""
        columns = list(zip(*self._lines())) or [()] * _COLUMNS
        numbers = {i: np.array(column, dtype=np.int64) for i, column in enumerate(columns) if i not in (1, 7)}
        return AnswerTable(
            numbers[0],
            np.array(columns[1], dtype=str),
            numbers[2],
            numbers[3].astype(bool),
            numbers[4].astype(bool),
            numbers[5],
            numbers[6],
            np.array(columns[7], dtype=np.float64),
        )

    def _lines(self) -> list[list[str]]:
        """A line that a kill has cut is left out, with the header."""
        if not self.path.is_file():
            return []
        rows = (line.split(",") for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True))
        return [
            [*row[:-1], row[-1].rstrip("\n")]
            for row in rows
            if len(row) == _COLUMNS and row[1] in _PHASES and row[-1].endswith("\n")
        ]
