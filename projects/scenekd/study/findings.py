"""What a study found, for its page and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .advice import Budget, ForecastSpec
from .looks import Look
from .rows import Row, Sweep, Table
from .runs import Run, Runs
from .scores import ClassMeans, Comparison, RowScores, compare
from .sweep import Setting


@dataclass
class Findings:
    """Everything that the page tells.

    Attributes:
        rows: those with results or asked for. scores, finished: row id → its numbers, its runs by seed.
        owners: row id → the row whose runs it shares. failed: run → its last line.
        sweeps: each with its scored settings and the chosen one. looks: pairs of rows side by side.
    """

    runs: Runs
    means: ClassMeans
    rows: Sequence[Row]
    scores: Mapping[str, RowScores]
    finished: Mapping[str, Mapping[int, Run]]
    owners: Mapping[str, str]
    failed: Mapping[str, str] = field(default_factory=dict)
    sweeps: Sequence[tuple[Sweep, Sequence[Setting], Setting | None]] = ()
    looks: Sequence[Look] = ()

    @property
    def metrics(self) -> list[str]:
        """Names, in the order of the columns."""
        return [metric.name for metric in self.runs.spec.metrics]

    def metrics_of(self, rows: Sequence[Row]) -> list[str]:
        """Those that some of the rows has, published or here; all where none has any."""
        found = [
            name
            for name in self.metrics
            if any(name in row.published for row in rows)
            or any(row.id in self.scores and self.scores[row.id].values.get(name) for row in rows)
        ]
        return found or self.metrics

    @property
    def table(self) -> Table:
        """The table of rows, with the settings that were chosen."""
        known = {row.id for row in self.runs.table.rows}
        chosen = tuple(row for row in self.rows if row.id not in known)
        return dataclasses.replace(self.runs.table, rows=(*self.runs.table.rows, *chosen))

    def comparisons(self) -> list[Comparison]:
        """Each row with each of its references that share a seed, in each metric."""
        by_id = {row.id: row for row in (*self.runs.table.rows, *self.rows)}
        found = []
        for row in self.rows:
            for reference in row.compared:
                for metric in self.runs.spec.metrics:
                    if (
                        metric.compared
                        and row.id in self.scores
                        and reference in self.scores
                        and not self._same(row.id, reference)
                    ):
                        own, other = ((r.id, self.scores[r.id], r.published) for r in (row, by_id[reference]))
                        room = self._headroom(row)
                        found.append(compare(own, other, metric.name, headroom=room, lower=metric.lower))
        return [comparison for comparison in found if comparison is not None]

    def own_runs(self) -> dict[str, Mapping[int, Run]]:
        """Row id → seed → run, of the rows that do not share another's."""
        return {name: runs for name, runs in self.finished.items() if self.owners.get(name) == name}

    def budgets(self) -> list[Budget]:
        """The budgets of the rows file."""
        return [Budget(b["metric"], b["alone"], b["teacher"], b["all"]) for b in self.runs.table.budgets]

    def forecasts(self) -> list[ForecastSpec]:
        """The forecasts of the rows file."""
        return [
            ForecastSpec(f["metric"], f["reference"], tuple(f["rows"])) for f in self.runs.table.forecasts
        ]

    def _same(self, a: str, b: str) -> bool:
        return self.owners.get(a, a) == self.owners.get(b, b)

    def _headroom(self, row: Row) -> tuple[RowScores, RowScores] | None:
        pair = [self.scores[name] for name in row.headroom if name in self.scores]
        return (pair[0], pair[1]) if len(pair) == 2 else None
