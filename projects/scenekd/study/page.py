"""The page of a study: published numbers beside ours, differences with their intervals, figures, caveats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report_html import Markup, Number, escape, figure, number, table, write_page
from .advice import forecast_table, foretell, worth_of, worth_table
from .figures import curve, draw_figure, filter_figure
from .findings import Findings
from .looks import look_sections
from .rows import Row
from .runs import Run
from .same_time import costs, steps_factor
from .scores import ClassMeans, Comparison, RowScores
from .spec import Metric
from .teachers import teachers_of

_RULE = (
    "Rows are compared seed by seed: same initial weights, same order of images, same number of steps where a row "
    "does not say otherwise (images seen and seconds, on CPU of the processor, stand beside each). Nothing is "
    "claimed inside an interval: only where the 95 % interval of the difference leaves out zero does a verdict stand. "
    "The detectable effect is the true difference that this many seeds would find four times in five. A comparison "
    "can tell nothing where learning from all labels is not better than learning from the labels at hand by more "
    "than that (no headroom)."
)


def write_study_page(path: Path, findings: Findings) -> Path:
    """Write the page; returns its path."""
    comparisons = findings.comparisons()
    sections = [
        ("What was run", _about(findings)),
        *_group_sections(findings, comparisons),
        ("Figures", _figures(findings)),
        *look_sections(findings.looks),
        ("The teachers alone", teachers_of(findings.own_runs())),
        ("What labels are worth beside a teacher", _worth(findings)),
        ("What a teacher's fitness foretells", _foretold(findings)),
        ("What the last steps still gained", _convergence(findings)),
        ("Settings chosen on a validation split", _sweeps(findings)),
        ("Classes left out of the means", _classes(findings)),
        (
            "Runs that failed",
            [table(("run", "its last line"), findings.failed.items())] if findings.failed else [],
        ),
    ]
    return write_page(path, findings.runs.spec.title, sections)


def _paragraph(text: str) -> Markup:
    return Markup(f"<p>{escape(text)}</p>")


def _about(findings: Findings) -> list[Markup]:
    preset, runs = (
        findings.runs.preset,
        [r for by_seed in findings.finished.values() for r in by_seed.values()],
    )
    seeds = sorted({run.cfg.SEED for run in runs})
    starts = {trunk_start(run.cfg.MODEL.WEIGHTS) for run in runs if run.row.kind == "train"}
    facts = [
        ("preset", preset.name),
        ("trunk starts from", "; ".join(sorted(starts)) or "–"),
        ("seeds", ", ".join(map(str, seeds)) or "–"),
        ("tested on", "; ".join(sorted({" + ".join(run.cfg.DATASETS.TEST) for run in runs})) or "–"),
        ("key overrides", " ".join(findings.runs.overrides) or "none"),
    ]
    shown = [_paragraph(preset.about), table(("", ""), facts), _paragraph(_RULE)]
    if preset.caveats:
        shown.append(Markup("<ul>" + "".join(f"<li>{escape(c)}</li>" for c in preset.caveats) + "</ul>"))
    return shown


def trunk_start(weights: str) -> str:
    """What ``MODEL.WEIGHTS`` gives the trunk at the start, in words."""
    if not weights:
        return "random weights (nothing pretrained)"
    return "torchvision's ImageNet weights" if weights == "torchvision" else Path(weights).name


def _group_sections(findings: Findings, comparisons: Sequence[Comparison]) -> list[tuple[str, list[Markup]]]:
    sections = []
    for group, heading in findings.runs.table.groups.items():
        rows = [row for row in findings.rows if row.group == group]
        if not rows:
            continue
        names = {row.id for row in rows}
        pieces = [_rows_table(rows, findings), *_same_time(rows, findings)]
        mine = [comparison for comparison in comparisons if comparison.row in names]
        pieces += [comparison_table(mine)] if mine else []
        for row in rows:
            pieces += [_paragraph(f"{row.id}: {row.note}")] if row.note else []
            pieces += _filter(row, findings)
        sections.append((heading, pieces))
    return sections


def _rows_table(rows: Sequence[Row], findings: Findings) -> Markup:
    headers = ["row", "learns from"]
    metrics = findings.metrics_of(rows)
    known = {name for name in metrics if any(name in row.published for row in rows)}
    for name in metrics:
        headers += [f"{name} paper", f"{name} here"] if name in known else [name.replace("_", " ")]
    cells = []
    for row in rows:
        scores = findings.scores.get(row.id, RowScores({}))
        line: list[Any] = [row.id, row.title]
        for metric in metrics:
            line += [number(row.published.get(metric), 1)] if metric in known else []
            line.append(mean_sd(scores, metric))
        owner = findings.owners.get(row.id, row.id)
        count = len(scores.seeds) or len(findings.finished.get(row.id, ()))
        state = str(count) if count else findings.runs.preset.why_unavailable(row) or "not run"
        line += [state + (f" (the run of {owner})" if owner != row.id and count else "")]
        line += [number(scores.images or None), number(scores.seconds, 0)]
        line += [number(scores.step_cost, 0), number(scores.memory, 0)]
        cells.append(line)
    caption = (
        f"{_units(findings, metrics)}; here: mean ± standard deviation over seeds. Seconds: of one training's steps. "
        "Memory: of the accelerator, or of the whole process on a CPU, at its peak, evaluation included."
    )
    return table((*headers, "seeds", "images seen", "seconds", "ms a step", "MiB"), cells, caption)


def _units(findings: Findings, names: Sequence[str]) -> str:
    """What the numbers of some metrics are."""
    metrics = [findings.runs.spec.metric(name) for name in names]
    others = [metric.label for metric in metrics if metric.unit != "%"]
    lower = [metric.name for metric in metrics if metric.lower]
    text = f"In percent, but for {', '.join(others)}" if others else "In percent"
    return f"{text}; less is better of {', '.join(lower)}" if lower else text


def _same_time(rows: Sequence[Row], findings: Findings) -> list[Markup]:
    """How the steps of rows that take as long as another were found."""
    pieces = []
    for row in rows:
        if row.same_time and findings.finished.get(row.id):
            other, like = costs(row, findings.runs.output)
            steps = round(like.steps * steps_factor(row, findings.runs.output))
            text = (
                f"{row.id} takes as long as {other.row}: {other.steps} steps of {1000 * other.seconds:.1f} ms and "
                f"{1000 * like.seconds:.1f} ms a step as {like.row} trains, so {steps} steps instead of {like.steps}."
            )
            pieces.append(_paragraph(text))
    return pieces


def mean_sd(scores: RowScores, metric: str) -> Number:
    """``mean ± sd``; without a deviation where there is one seed."""
    mean, sd = scores.mean(metric), scores.sd(metric)
    spread = f" ± {sd:.2f}" if math.isfinite(sd) else ""
    return Number(f"{number(mean)}{spread}")


def comparison_table(comparisons: Sequence[Comparison]) -> Markup:
    """Differences row − reference in points, with what may be said of them; of one seed nothing may."""
    measured = any(c.difference is not None for c in comparisons)
    headers = ["difference", "metric", "paper", "here"]
    caption = "Differences in points. One seed: nothing can be claimed of them."
    if measured:
        headers += ["95 % interval", "detectable", "headroom", "what may be said"]
        caption = "Differences in points, paired by seed; intervals are not corrected for their number."
    lines = []
    for c in comparisons:
        ours, interval = number(c.single), ""
        if c.difference is not None:
            ours = Number(f"{c.difference.mean:+.2f}")
            interval = f"{c.difference.low:+.2f} … {c.difference.high:+.2f}"
        paper = Number(f"{c.published:+.1f}") if c.published is not None else number(None)
        room = number(c.headroom) if c.headroom is not None else Number("")
        cells = (f"{c.row} − {c.reference}", c.metric, paper, ours)
        said = (interval, number(c.detectable), room, saying(c)) if measured else ()
        lines.append((*cells, *said))
    return table(headers, lines, caption)


def saying(comparison: Comparison) -> str:
    """A comparison in words."""
    if comparison.difference is None:
        return "one seed: nothing can be claimed"
    if comparison.has_headroom is False:
        return "no headroom: nothing can be concluded"
    if comparison.verdict:
        return comparison.verdict
    return "no difference claimed"


def _filter(row: Row, findings: Findings) -> list[Markup]:
    if row.kind != "filter" or not findings.finished.get(row.id):
        return []
    run = next(iter(findings.finished[row.id].values()))
    lines = run.results()["filters"]
    cells = [(number(x["threshold"], 3), number(x["mAP"]), number(x["boxes"], 1)) for x in lines]
    shown = table(
        ("threshold", "mAP of the teacher", "boxes an image"), cells, " + ".join(run.cfg.DATASETS.TRAIN)
    )
    return [shown, figure(filter_figure(lines), "mAP of the teacher over the threshold")]


def _figures(findings: Findings) -> list[Markup]:
    runs, pieces = findings.runs, []
    for drawn in runs.table.figures:
        png = draw_figure(
            drawn, findings.table, runs.spec, findings.scores, findings.finished, findings.means
        )
        if png is not None:
            pieces += [Markup(f"<h3>{escape(drawn.title)}</h3>"), figure(png, drawn.title)]
    return pieces


def _worth(findings: Findings) -> list[Markup]:
    pieces = []
    for budget in findings.budgets():
        pieces += worth_table(budget, worth_of(budget, findings.rows, findings.scores))
    return pieces


def _foretold(findings: Findings) -> list[Markup]:
    pieces = []
    for spec in findings.forecasts():
        pieces += forecast_table(spec, foretell(spec, findings.scores, findings.finished))
    return pieces


def _convergence(findings: Findings) -> list[Markup]:
    lines: list[Sequence[Any]] = []
    for row in findings.rows:
        if row.kind == "train" and findings.owners.get(row.id) == row.id:
            gains = [
                late_gain(findings.finished[row.id], m, findings.means) for m in findings.runs.spec.metrics
            ]
            lines.append((row.id, *(number(gain) for gain in gains)))
    known = [line for line in lines if any(cell != number(None) for cell in line[1:])]
    text = (
        "Points between the last two evaluations, mean over seeds: what still rises is limited by its steps."
    )
    return [table(("row", *findings.metrics), known, text)] if known else []


def late_gain(runs: Mapping[int, Run], metric: Metric, means: ClassMeans) -> float:
    """The last periodic evaluation − the one before, in points, mean over the seeds; NaN below two evaluations."""
    steps = list(curve(runs, metric, means).values())
    return statistics.fmean(steps[-1]) - statistics.fmean(steps[-2]) if len(steps) > 1 else math.nan


def _sweeps(findings: Findings) -> list[Markup]:
    pieces = []
    for sweep, scored, chosen in findings.sweeps:
        lines = []
        for setting in scored:
            scores = setting.scores or RowScores({})
            values = ", ".join(f"{key} = {value}" for key, value in setting.values.items())
            mark = "chosen" if chosen is not None and setting.row.id == chosen.row.id else ""
            lines.append((values, mean_sd(scores, sweep.metric), number(len(scores.seeds)), mark))
        headers = ("setting", f"{sweep.metric} on the validation split", "seeds", "")
        pieces.append(table(headers, lines, f"{sweep.row}: one grid, scored apart from the test set."))
    return pieces


def _classes(findings: Findings) -> list[Markup]:
    runs = [r for by_seed in findings.finished.values() for r in by_seed.values() if r.row.kind == "train"]
    if not runs:
        return []
    out = []
    for metric in findings.runs.spec.metrics:
        cfg = next((run.cfg for run in runs if metric.task in run.results()), None)
        left = findings.means.left_out(cfg, metric.task) if metric.per_class and cfg is not None else {}
        if left:
            names = ", ".join(f"{name} ({n})" for name, n in sorted(left.items(), key=lambda item: item[1]))
            out.append((metric.name, names))
    text = f"A class counts from {findings.means.min_images} test images on; in brackets, how many it has."
    return [table(("metric", "left out"), out, text) if out else _paragraph("None.")]
