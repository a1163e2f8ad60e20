"""``tools/reproduce.py``: choose rows, prepare, run what is missing, write the page."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command_line import split_words
from ..config import SYSTEMS
from ..engines.select import choose_engine
from ..errors import UserError
from ..files import write_text
from .filters import score_filters
from .findings import Findings
from .looks import look_at, look_json
from .page import write_study_page
from .presets import read_preset
from .rows import Row, Sweep, read_table
from .runs import Run, Runs, State
from .same_time import measure
from .scores import ClassMeans, Comparison, RowScores, score_row
from .spec import StudySpec, find_study
from .stages import Stages, evaluate, train_together
from .sweep import Setting, choose, chosen_row, score_settings, settings


class Study:
    """One call of the command.

    Args:
        rows: those asked for. seeds: 0…n−1. sweep_seeds: those that score the settings of a sweep; None: ``seeds``.
    """

    def __init__(
        self,
        runs: Runs,
        rows: Sequence[Row],
        seeds: range,
        *,
        engine: str,
        jobs: int,
        sweep_seeds: range | None = None,
    ) -> None:
        self.runs, self.rows, self.seeds = runs, list(rows), seeds
        self.sweep_seeds = seeds if sweep_seeds is None else sweep_seeds
        self.engine, self.jobs = engine, jobs
        self.means = ClassMeans(runs.preset.min_images)
        self.failed: dict[str, str] = {}

    def run_rows(self, rows: Sequence[Row]) -> None:
        """Train and score what is not done yet."""
        trained = [row for row in rows if row.kind == "train" and not row.same_time]
        scored = [row for row in rows if row.kind != "train"]
        self._run(self.runs.unique(trained, self.seeds) + self.runs.unique(scored, [0]))
        timed = [row for row in rows if row.same_time and self._measure(row)]
        self._run(self.runs.unique(timed, self.seeds))

    def _measure(self, row: Row) -> bool:
        """Fix the steps of a row that takes as long as another; False where that one was not run."""
        finished = {name: self.runs.finished(self.runs.table.row(name)) for name in row.same_time}
        timed = {
            name: ([run.folder for run in runs.values()], next(iter(runs.values())).cfg.SOLVER.MAX_ITER)
            for name, runs in finished.items()
            if runs
        }
        try:
            measure(row, timed, self.runs.output)
        except UserError as error:
            self.failed[f"runs/{row.id}"] = str(error)
            return False
        return True

    def run_sweeps(self, sweeps: Sequence[Sweep]) -> list[tuple[Sweep, list[Setting], Setting | None]]:
        """Score each grid on the validation split, then run the chosen settings as rows of their own."""
        points = [setting.row for sweep in sweeps for setting in settings(sweep, self.runs.table)]
        points = [row for row in points if not row.same_time or self._measure(row)]
        self._run([self.runs.run(row, seed, validation=True) for seed in self.sweep_seeds for row in points])
        found: list[tuple[Sweep, list[Setting], Setting | None]] = []
        for sweep in sweeps:
            scored = score_settings(sweep, self.runs, self.means, self.sweep_seeds)
            lower = self.runs.spec.metric(sweep.metric).lower
            found.append((sweep, scored, choose(sweep, scored, lower=lower)))
        names = {sweep.row for sweep, _, best in found if best is not None}
        chosen = [
            chosen_row(sweep, best, self.runs.table, names) for sweep, _, best in found if best is not None
        ]
        self.run_rows(chosen)
        self.rows += chosen
        return found

    def _run(self, wanted: Sequence[Run]) -> None:
        waiting = [run for run in wanted if self.runs.state(run) is not State.DONE]
        if not waiting:
            return
        Stages(self.runs, engine=self.engine, jobs=self.jobs).prepare(waiting)
        trained = [run for run in waiting if run.row.kind == "train"]
        self.failed |= train_together(
            trained, self.runs.output, engine=self.engine, jobs=self.jobs, keep_going=True
        )
        for run in waiting:
            if run.row.kind == "filter":
                score_filters(run)
            elif run.row.kind == "test":
                evaluate(run, engine=self.engine)

    def findings(self, sweeps: Sequence[tuple[Sweep, list[Setting], Setting | None]] = ()) -> Findings:
        """The numbers of all rows with results in the output folder, whether asked for now or before."""
        table = self.runs.table
        asked = {row.id for row in self.rows}
        chosen = [row for row in self.rows if row.id not in {r.id for r in table.rows}]
        candidates = [*table.rows, *chosen]
        finished = {row.id: self.runs.finished(row) for row in candidates}
        rows = [row for row in candidates if row.id in asked or finished[row.id]]
        scores = {
            row.id: score_row(finished[row.id], self.runs.spec.metrics, self.means)
            for row in rows
            if finished[row.id] and row.kind != "filter"
        }
        owners = {row.id: self.runs.owner(row) for row in rows if finished[row.id]}
        return Findings(self.runs, self.means, rows, scores, finished, owners, self.failed, sweeps)


def as_json(findings: Findings) -> dict[str, Any]:
    """What the page tells, for programs; percent, points, seconds."""
    rows = []
    for row in findings.rows:
        scores = findings.scores.get(row.id, RowScores({}))
        line: dict[str, Any] = {
            "id": row.id,
            "title": row.title,
            "published": dict(row.published),
            "x": row.x,
        }
        line |= {
            "run": findings.owners.get(row.id),
            "seconds": _plain(scores.seconds),
            "images": scores.images,
            "steps": scores.steps,
            "memory_mib": _plain(scores.memory),
        }
        line["here"] = {metric: dict(values) for metric, values in scores.values.items()}
        rows.append(line)
    return {
        "preset": findings.runs.preset.name,
        "overrides": findings.runs.overrides,
        "rows": rows,
        "comparisons": [_comparison(c) for c in findings.comparisons()],
        "sweeps": [
            {"row": sweep.row, "metric": sweep.metric, "chosen": dict(best.values) if best else None}
            for sweep, _, best in findings.sweeps
        ],
        "pairs": [look_json(look) for look in findings.looks],
        "failed": dict(findings.failed),
    }


def _comparison(c: Comparison) -> dict[str, Any]:
    names = (
        "row",
        "reference",
        "metric",
        "published",
        "single",
        "headroom",
        "detectable",
        "verdict",
        "has_headroom",
    )
    difference = None if c.difference is None else dataclasses.asdict(c.difference)
    return {name: getattr(c, name) for name in names} | {"difference": difference}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run a system's experiments and write one page about them.")
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument(
        "--only", nargs="+", metavar="ID", help="rows, series or groups (default: the preset's)"
    )
    parser.add_argument("--preset", default="small", help="paper, small, smoke …")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each row, paired by seed")
    parser.add_argument("--sweep", action="store_true", help="choose settings on a validation split first")
    parser.add_argument(
        "--sweep-seeds", type=int, metavar="N", help="runs of each setting of a sweep (default: --seeds)"
    )
    parser.add_argument("--output", metavar="DIR", help="default: output/reproduce/SYSTEM-PRESET")
    parser.add_argument(
        "--data", default="", metavar="DIR", help="the data of the preset, where it needs some"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="runs side by side"
    )
    parser.add_argument("--engine", default="auto", help="auto, mmengine or detectron2")
    parser.add_argument("--list", action="store_true", help="show the rows and what is done; run nothing")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config overrides for every run")
    return parser.parse_intermixed_args()


def listing(runs: Runs, rows: Sequence[Row], spec: StudySpec) -> str:
    """The rows as text: id, the numbers that the paper gives for any of them, seeds done, title."""
    metrics = [metric for metric in spec.metrics if any(metric.name in row.published for row in rows)]
    width = max(len(row.id) for row in rows)
    lines, group = [], ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines += ["", f"{group}: {runs.table.groups[group]}"]
        paper = "".join(
            f"{row.published.get(metric.name, math.nan):>7.1f}".replace("nan", "  –") for metric in metrics
        )
        done = len(runs.finished(row))
        lines.append(f"  {row.id:<{width}}{paper}{f'{done} done' if done else '':>9}  {row.title}")
    heading = (
        f"published {', '.join(metric.label for metric in metrics)}" if metrics else "no number is published"
    )
    return "\n".join([heading, *lines])


def main() -> None:
    """Run the command."""
    args = parse_args()
    spec = find_study(args.system)
    words, pairs = split_words(args.only or [], args.system)
    output = Path(args.output or f"output/reproduce/{args.system}-{args.preset}")
    preset = read_preset(spec.folder, args.preset, output=output, data=args.data)
    runs = Runs(spec, read_table(spec.folder / "rows.yaml"), preset, output, [*args.overrides, *pairs])
    sweep_seeds = args.seeds if args.sweep_seeds is None else args.sweep_seeds
    if min(args.seeds, sweep_seeds, args.jobs) < 1:
        raise UserError("--seeds, --sweep-seeds, --jobs: give a number from 1 on")
    if args.list:
        print(listing(runs, runs.table.select(words) if words else runs.table.rows, spec))
        return
    asked = runs.table.select(words or preset.default)
    rows = [row for row in asked if not preset.why_unavailable(row)]
    study = Study(
        runs,
        asked,
        range(args.seeds),
        engine=choose_engine(args.engine),
        jobs=args.jobs,
        sweep_seeds=range(sweep_seeds),
    )
    study.run_rows(rows)
    names = {row.id for row in rows}
    sweeps = [sweep for sweep in runs.table.sweeps if args.sweep and sweep.row in names]
    findings = study.findings(study.run_sweeps(sweeps))
    findings.looks = look_at(runs.table, findings.finished, study.means)
    write_text(output / "reproduce.json", json.dumps(as_json(findings), indent=2) + "\n")
    print(f"page: {write_study_page(output / 'reproduce.html', findings)}")
    if study.failed:
        raise UserError(
            f"{len(study.failed)} runs failed; the page names them, and they go on when run again"
        )
