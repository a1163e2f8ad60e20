"""Rows that take as long as another: ``same_time: [other, like]``.

Such a row trains exactly as ``like`` does, for so many steps as fit into the seconds of ``other``: its own number of
steps times (cost of a step of ``other`` × its steps) / (cost of a step of ``like`` × its steps). The costs are the
means over the runs of both rows at the moment they are first asked for, kept in
``<output>/same_time/<like>_as_long_as_<other>.yaml``, so that the number of steps stays what it was, and is one for
all settings of a sweep. Seconds are those inside the steps, without reading and augmenting,
which a step of either side does alike: of the processor on CPU, on the clock on CUDA, see
:func:`scenekd.recorder.training_cost`. On CUDA what else the machine does meanwhile is in them: there run with
``--jobs 1`` on a machine that is otherwise idle.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import UserError
from ..files import write_text
from ..recorder import training_cost
from .rows import Row, read_yaml

FOLDER = "same_time"


@dataclass(frozen=True)
class Cost:
    """What one training of a row took: ``seconds`` a step, mean over its runs, and ``steps``."""

    row: str
    seconds: float
    steps: int


def cost_of(row: str, folders: Iterable[Path], steps: int) -> Cost:
    """Measured in the folders of finished runs of so many steps each.

    Raises:
        UserError: they took no time.
    """
    seconds = [training_cost(folder) / max(steps, 1) for folder in folders]
    if not all(seconds):
        raise UserError(f"row {row}: its steps were not timed; run it again")
    return Cost(row, statistics.fmean(seconds), steps)


def measure(row: Row, finished: Mapping[str, tuple[Iterable[Path], int]], output: Path) -> None:
    """Keep the costs that fix the steps of a row, where they are not kept yet.

    Args:
        finished: row id → folders of its finished runs, and their steps.

    Raises:
        UserError: a row was not run, or see :func:`cost_of`.
    """
    path = _path(row, output)
    if path.is_file():
        return
    for name in row.same_time:
        if name not in finished:
            raise UserError(f"row {row.id}: takes as long as other rows do; run {name} with it, or before")
    costs = [cost_of(name, *finished[name]) for name in row.same_time]
    keys = [{"row": cost.row, "seconds": cost.seconds, "steps": cost.steps} for cost in costs]
    write_text(path, yaml.safe_dump({"as_long_as": keys[0], "a_step_of": keys[1]}))


def costs(row: Row, output: Path) -> tuple[Cost, Cost]:
    """What was kept: of the row that it takes as long as, and of the one whose steps cost what its own do.

    Raises:
        UserError: nothing was kept yet, or the file is no such file.
    """
    path = _path(row, output)
    if not path.is_file():
        raise UserError(f"row {row.id}: its steps follow from {' and '.join(row.same_time)}; run those first")
    content = read_yaml(path)
    try:
        first, second = (Cost(**content[key]) for key in ("as_long_as", "a_step_of"))
    except (KeyError, TypeError):
        raise UserError(f"{path}: not what a study writes; delete it") from None
    return first, second


def steps_factor(row: Row, output: Path) -> float:
    """By which the row's own number of steps is multiplied: 1 without ``same_time``.

    Raises:
        UserError: see :func:`costs`.
    """
    if not row.same_time:
        return 1.0
    other, like = costs(row, output)
    return other.seconds * other.steps / (like.seconds * like.steps)


def _path(row: Row, output: Path) -> Path:
    other, like = row.same_time
    return output / FOLDER / f"{like}_as_long_as_{other}.yaml"
