"""The figures of a study drawn again, as PNG: ours with error bars on the left, the paper's on the right.

``points``: a metric over x (a temperature, a fraction), one line a series. ``steps``: the periodic evaluations of
some rows over training. ``bars``: see :mod:`.bars`. A system may have kinds of its own, see :mod:`.spec`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ..recorder import read_metrics
from ..visualize_curves import COLOURS, png
from .bars import draw_bars
from .rows import Figure, Row, Table
from .runs import Run
from .scores import ClassMeans, RowScores, spread_of
from .spec import Metric, StudySpec

Finished = Mapping[str, Mapping[int, Run]]  # row id → seed → run
_MARKERS = "osD^vP"
_INSIDE = 5  # lines whose names find room inside a figure


def draw_figure(
    figure: Figure,
    table: Table,
    spec: StudySpec,
    scores: Mapping[str, RowScores],
    finished: Finished,
    means: ClassMeans,
) -> bytes | None:
    """The picture; None where nothing of it was run."""
    if figure.kind in spec.drawers:
        return spec.drawers[figure.kind](figure, table, finished)
    if figure.kind == "steps":
        return _steps(figure, spec, finished, means)
    labels = {metric.name: metric.label for metric in spec.metrics}
    if figure.kind == "bars":
        return draw_bars(figure, table, scores, labels)
    return _points(figure, table, scores, labels)


def _points(
    figure: Figure, table: Table, scores: Mapping[str, RowScores], labels: Mapping[str, str]
) -> bytes | None:
    metric = figure.metrics[0]
    series = {name: _series(table, name) for name in figure.series}
    ours = {name: [row for row in rows if _known(scores, row.id, metric)] for name, rows in series.items()}
    if max(map(len, ours.values())) < 2:  # a lone point may be another row's run
        return None
    ours = {name: rows for name, rows in ours.items() if rows}
    paper = {name: [row for row in rows if metric in row.published] for name, rows in series.items()}
    paper = {name: rows for name, rows in paper.items() if rows}
    canvas = Canvas(figsize=(9.2 if paper else 7.2, 3.6), layout="constrained")
    axes = canvas.subplots(1, 2 if paper else 1, squeeze=False)[0]
    _draw_ours(axes[0], ours, scores, metric)
    if paper:
        _draw_paper(axes[1], paper, metric)
    if figure.level:
        if _known(scores, figure.level, metric):
            _level(axes[0], scores[figure.level].mean(metric), scores[figure.level].sd(metric), figure.level)
        if paper and metric in table.row(figure.level).published:
            _level(axes[1], table.row(figure.level).published[metric], math.nan, figure.level)
    ticks = sorted({_x(row) for rows in series.values() for row in rows})
    for axis in axes:
        _style(axis, figure.x, labels[metric], beside=len(ours) > _INSIDE)
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize=8, rotation=90 if len(ticks) > 5 else 0)
        margin = 0.06 * (ticks[-1] - ticks[0])
        axis.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    return png(canvas)


def _draw_ours(
    axis: Axes, ours: Mapping[str, Sequence[Row]], scores: Mapping[str, RowScores], metric: str
) -> None:
    span = max(_x(r) for rows in ours.values() for r in rows) - min(
        _x(r) for rows in ours.values() for r in rows
    )
    for i, (name, rows) in enumerate(ours.items()):
        # A little to the side of one another, so that bars at one x can be told apart.
        x = [_x(row) + 0.006 * span * (i - (len(ours) - 1) / 2) for row in rows]
        y, bars = [scores[r.id].mean(metric) for r in rows], [scores[r.id].sd(metric) for r in rows]
        style = {"capsize": 2, "markersize": 4.5, "linewidth": 1.2, **_line(i)}
        axis.errorbar(x, y, yerr=bars, label=name, **style)
    counts = (len(scores[r.id].values[metric]) for rows in ours.values() for r in rows)
    axis.set_title(f"this run: {spread_of(counts)}")


def _draw_paper(axis: Axes, paper: Mapping[str, Sequence[Row]], metric: str) -> None:
    for i, (name, rows) in enumerate(paper.items()):
        y = [row.published[metric] for row in rows]
        axis.plot([_x(r) for r in rows], y, **{**_line(i), "color": "black"}, label=name, mfc="white")
    axis.set_title("published: one run a point")


def _line(i: int) -> dict[str, Any]:
    """Colour, marker and stroke of the i-th line; the strokes change where the colours begin again."""
    stroke = ("-", "--", ":")[i // len(COLOURS) % 3]
    return {"color": COLOURS[i % len(COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "linestyle": stroke}


def _series(table: Table, name: str) -> list[Row]:
    rows = [row for row in table.rows if name in (row.series, row.id) and row.x is not None]
    return sorted(rows, key=_x)


def _x(row: Row) -> float:
    return 0.0 if row.x is None else row.x


def _known(scores: Mapping[str, RowScores], name: str, metric: str) -> bool:
    return name in scores and math.isfinite(scores[name].mean(metric))


def _level(axis: Axes, mean: float, sd: float, name: str) -> None:
    axis.axhline(mean, color="grey", linestyle="--", linewidth=1, label=name)
    if math.isfinite(sd):
        axis.axhspan(mean - sd, mean + sd, color="grey", alpha=0.15, linewidth=0)


def _steps(figure: Figure, spec: StudySpec, finished: Finished, means: ClassMeans) -> bytes | None:
    metrics = [spec.metric(name) for name in figure.metrics]
    curves = {
        (metric.name, name): found
        for metric in metrics
        for name in figure.series
        if (found := curve(finished.get(name, {}), metric, means))
    }
    if not curves:
        return None
    canvas = Canvas(figsize=(4.3 * len(metrics), 3.4), layout="constrained")
    for axis, metric in zip(canvas.subplots(1, len(metrics), squeeze=False)[0], metrics):
        for i, name in enumerate(figure.series):
            steps = curves.get((metric.name, name))
            if steps:
                x, values = list(steps), [np.asarray(v) for v in steps.values()]
                y = np.array([v.mean() for v in values])
                sd = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
                axis.plot(x, y, **_line(i), markersize=4, label=name)
                axis.fill_between(x, y - sd, y + sd, color=_line(i)["color"], alpha=0.15, linewidth=0)
        axis.set_title(f"{metric.name}: mean, band ± sd over seeds")
        _style(axis, "step", metric.label)
        if not metric.lower:  # a loss is told by its differences, far from 0
            axis.set_ylim(bottom=0)
    return png(canvas)


def curve(runs: Mapping[int, Run], metric: Metric, means: ClassMeans) -> dict[int, list[float]]:
    """Step → the metric of each seed, from the evaluations in ``metrics.json``; steps that all seeds have."""
    by_seed: list[dict[int, float]] = []
    for run in runs.values():
        points = {}
        for line in read_metrics(run.folder / "metrics.json"):
            prefix = f"{metric.task}/"
            numbers = {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}
            if numbers:
                points[int(line["iteration"])] = means.mean(metric, run.cfg, numbers)
        by_seed.append({step: value for step, value in points.items() if math.isfinite(value)})
    common = sorted(set.intersection(*(set(points) for points in by_seed))) if by_seed else []
    return {step: [points[step] for points in by_seed] for step in common}


def _style(axis: Axes, x: str, y: str, *, legend: bool = True, beside: bool = False) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.title.set_fontsize(10)
    if legend:
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {}
        axis.legend(fontsize=8, frameon=False, **place)


def filter_figure(lines: Sequence[Mapping[str, float]]) -> bytes:
    """A teacher's mAP and boxes an image over the filter's threshold; ``lines`` as in :mod:`.filters`."""
    canvas = Canvas(figsize=(8.6, 3.2), layout="constrained")
    left, right = canvas.subplots(1, 2)
    places = range(len(lines))  # thresholds span decades, from 0 on: even places
    for axis, key, label in ((left, "mAP", "mAP of the teacher in %"), (right, "boxes", "boxes an image")):
        axis.plot(places, [line[key] for line in lines], color=COLOURS[0], marker="o")
        axis.set_xticks(places, [f"{line['threshold']:g}" for line in lines])
        _style(axis, "threshold", label, legend=False)
        axis.set_ylim(bottom=0)
    return png(canvas)
