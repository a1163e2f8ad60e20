"""Settings chosen by command: a grid is scored on a validation split, and the best setting becomes a row."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from .rows import CHOSEN, Row, Sweep, Table
from .runs import Runs, State
from .scores import ClassMeans, RowScores, score_row


@dataclass(frozen=True)
class Setting:
    """One point of a grid, as a row, and what it scored on the validation split."""

    row: Row
    values: Mapping[str, Any]
    scores: RowScores | None = None


def settings(sweep: Sweep, table: Table) -> list[Setting]:
    """All points of a grid, the last key changing fastest."""
    base, found = table.row(sweep.row), []
    for combination in itertools.product(*sweep.grid.values()):
        values = dict(zip(sweep.grid, combination))
        name = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in values.items())
        row = dataclasses.replace(base, id=f"{base.id}[{name}]", settings={**base.settings, **values})
        found.append(Setting(row, values))
    return found


def score_settings(sweep: Sweep, runs: Runs, means: ClassMeans, seeds: range) -> list[Setting]:
    """The points of a grid with the scores of their finished runs on the validation split."""
    scored = []
    for setting in settings(sweep, runs.table):
        made = {seed: runs.run(setting.row, seed, validation=True) for seed in seeds}
        done = {seed: run for seed, run in made.items() if runs.state(run) is State.DONE}
        scored.append(dataclasses.replace(setting, scores=score_row(done, runs.spec.metrics, means)))
    return scored


def choose(sweep: Sweep, scored: list[Setting], *, lower: bool = False) -> Setting | None:
    """The setting with the best mean; the first of equal ones; None where nothing was scored.

    Args:
        lower: whether less of the metric is better.
    """
    sign = -1 if lower else 1
    known = [s for s in scored if s.scores is not None and math.isfinite(s.scores.mean(sweep.metric))]
    return max(known, key=lambda s: sign * s.scores.mean(sweep.metric) if s.scores else 0.0, default=None)


def chosen_row(sweep: Sweep, setting: Setting, table: Table, swept: Container[str] = ()) -> Row:
    """The row of the chosen setting, run and tested as its base is; compared with it, with what it is compared with,
    and with what was chosen for these, where ``swept`` names them: a loss at its best is held against none at its best.

    The published numbers are not its own: they are the base's.
    """
    base = table.row(sweep.row)
    chosen = (f"{name}/{CHOSEN}" for name in base.compared if name in swept)
    values = ", ".join(
        f"{key.rsplit('.', 1)[-1].replace('*', '×')} {value}" for key, value in setting.values.items()
    )
    return dataclasses.replace(
        setting.row,
        id=f"{base.id}/{CHOSEN}",
        series=f"{base.id}/{CHOSEN}",
        title=f"{base.title}, chosen: {values}",
        published={},
        compared=(base.id, *base.compared, *chosen),
        x=None,
    )
