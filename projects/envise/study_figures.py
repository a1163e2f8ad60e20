"""Kinds of figures of the study; where numbers stand, mean ± standard deviation over the seeds.

``agreement``: of student and teacher against samples seen, with the shifts of the prior. ``scores``: metrics of outlier
scores, those of two trainings side by side. ``focus``: the share of attention on the object. ``attention`` and
``separation``: pictures that runs have kept, of the first seed that all rows have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import Any, TypeVar

import numpy as np
from fvcore.common.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from scenekd.errors import UserError
from scenekd.study.rows import Figure, Table
from scenekd.study.scores import read_parts, spread_of
from scenekd.visualize_curves import COLOURS, png

from .answer_log import AnswerLog
from .views import (
    ATTENTION,
    SEPARATION,
    attention_of_runs,
    read_attention,
    read_separation,
    separation_of_runs,
)

Finished = Mapping[str, Mapping[int, Any]]  # row id → seed → scenekd.study.runs.Run
_POINTS = 40  # of a curve
_TITLE = 20  # characters over a column of pictures
PLAIN = ".plain"  # ends the name of a row without the triplet loss
_LABELS = {"auroc": "AUROC", "fpr95": "FPR95 (less is better)"}

T = TypeVar("T")


def learns_throughout(cfg: CfgNode) -> bool:
    """Whether the stream ends before so many windows could be reached that the student is trusted."""
    return bool(cfg.ONLINE.WINDOWS * cfg.ONLINE.WINDOW > cfg.STREAM.SAMPLES > 0)


def draw_agreement(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """One line a row; None where none was run."""
    canvas = Canvas(figsize=(7.2, 3.8), layout="constrained")
    axis = canvas.subplots()
    shifts: set[int] = set()
    level, seeds = 0.0, list[int]()
    for number, name in enumerate(figure.series):
        runs = finished.get(name, {})
        if not runs:
            continue
        curves = [agreement_curve(run) for run in runs.values()]
        middles, values = curves[0][0], np.array([curve[1] for curve in curves])
        mean, sd = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        colour = COLOURS[number]
        axis.plot(middles, mean, color=colour, label=table.row(name).title)
        axis.fill_between(middles, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        cfg = next(iter(runs.values())).cfg
        shifts |= {int(shift["AT"]) for shift in cfg.STREAM.SHIFTS}
        level = 100 * cfg.ONLINE.AGREEMENT
        seeds.append(len(runs))
    if not seeds:
        return None
    axis.axhline(level, color="grey", linestyle="--", linewidth=1, label=f"reached: {level:g} %")
    for place, at in enumerate(sorted(shifts)):
        axis.axvline(at, color="black", linewidth=1, label="" if place else "the prior shifts")
    axis.set_xlabel(f"samples seen; {spread_of(seeds)}")
    axis.set_ylabel("agreement with the teacher in %")
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    columns = len(axis.lines) if max(len(str(line.get_label())) for line in axis.lines) < _TITLE * 2 else 1
    canvas.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=columns)
    return png(canvas)


def agreement_curve(run: Any) -> tuple[np.ndarray, np.ndarray]:
    """Middles of equal parts of the stream, and the agreement in percent of what both answered there."""
    answers, samples = AnswerLog(run.folder).read(), int(run.cfg.STREAM.SAMPLES)
    edges = np.linspace(0, samples, _POINTS + 1)
    both = answers.compared
    part = np.minimum(np.searchsorted(edges, answers.position[both], side="right") - 1, _POINTS - 1)
    counts = np.bincount(part, minlength=_POINTS)
    agreed = np.bincount(part, weights=(answers.student == answers.teacher)[both], minlength=_POINTS)
    share = np.divide(100 * agreed, counts, out=np.full(_POINTS, np.nan), where=counts > 0)
    return (edges[:-1] + edges[1:]) / 2, share


def draw_scores(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """A panel a metric (a key of ``outlier_scores``), a pair of bars a score: without and with the triplet loss."""
    names = [name.removesuffix(PLAIN) for name in figure.series if name.endswith(PLAIN)]
    known = [name for name in names if finished.get(name) or finished.get(name + PLAIN)]
    if not known:
        return None
    size = (1.6 + 3.2 * len(figure.metrics), 1.1 + 0.45 * len(known))
    canvas = Canvas(figsize=size, layout="constrained")
    for axis, metric in zip(
        canvas.subplots(1, len(figure.metrics), sharey=True, squeeze=False)[0], figure.metrics
    ):
        for place, (end, label) in enumerate(((PLAIN, "without"), ("", "with the triplet loss"))):
            values = [_values(table, finished, name + end, metric) for name in known]
            _bars(
                axis,
                np.arange(len(known)) + 0.38 * (place - 0.5),
                values,
                COLOURS[6 - 6 * place],
                label,
                0.36,
            )
        axis.set_title(f"{_LABELS.get(metric, metric)} in %", fontsize=9)
        titles = [table.row(name).title.rpartition(",")[0] for name in known]
        axis.set_yticks(range(len(known)), titles, fontsize=8)
    canvas.axes[0].invert_yaxis()
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    counts = (len(finished.get(name + end, ())) for name in known for end in ("", PLAIN))
    canvas.supxlabel(spread_of(counts), fontsize=8)
    return png(canvas)


def draw_focus(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """Energy and pointing game: of a flat map, of the teacher, and of each row's student."""
    rows = [name for name in figure.series if _values(table, finished, name, "energy_student")]
    if not rows:
        return None
    canvas = Canvas(figsize=(8.4, 1.1 + 0.34 * (2 + len(rows))), layout="constrained")
    titles = ["a flat map", "teacher", *(table.row(name).title for name in rows)]
    panels = {"energy": "attention energy on the object in %", "pointing": "pointing game in %"}
    for axis, (key, title) in zip(canvas.subplots(1, 2, sharey=True), panels.items()):
        values = [
            _values(table, finished, rows[0], "energy_uniform"),
            _values(table, finished, rows[0], f"{key}_teacher"),
        ]
        values += [_values(table, finished, name, f"{key}_student") for name in rows]
        _bars(axis, np.arange(len(values)), values, COLOURS[0], "", 0.7)
        axis.set_title(title, fontsize=9)
        axis.set_yticks(range(len(titles)), titles, fontsize=8)
    canvas.axes[0].invert_yaxis()
    canvas.supxlabel(spread_of(len(finished[name]) for name in rows), fontsize=8)
    return png(canvas)


def _bars(
    axis: Axes, places: np.ndarray, values: Sequence[Sequence[float]], colour: str, label: str, height: float
) -> None:
    """Horizontal ones of the mean, with its deviation and number."""
    means = np.array([np.mean(one) if one else np.nan for one in values])
    spread = np.array([np.std(one, ddof=1) if len(one) > 1 else np.nan for one in values])
    bars = axis.barh(places, means, height, xerr=spread, color=colour, alpha=0.75, capsize=2, label=label)
    numbers = [f"{mean:.1f}" if np.isfinite(mean) else "–" for mean in means]
    on_lines = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axis.bar_label(bars, numbers, padding=5, fontsize=7, bbox=on_lines)
    axis.margins(x=0.14)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _values(table: Table, finished: Finished, name: str, key: str) -> list[float]:
    """Of each finished run of a row that knows the number."""
    found = []
    for run in finished.get(name, {}).values():
        parts = read_parts(run.results(), table.row(name).parts)
        value = next((numbers[key] for numbers in parts.values() if numbers.get(key) is not None), None)
        found += [] if value is None else [float(value)]
    return found


def draw_attention(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """The same samples under each row's student; nothing where a run has kept none, or rows share none."""
    return _side_by_side(
        figure, table, finished, lambda folder: read_attention(folder / ATTENTION), attention_of_runs
    )


def draw_separation(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """The features of each row's student."""
    return _side_by_side(
        figure, table, finished, lambda folder: read_separation(folder / SEPARATION), separation_of_runs
    )


def _side_by_side(
    figure: Figure,
    table: Table,
    finished: Finished,
    read: Callable[[Any], T],
    draw: Callable[[Mapping[str, T]], bytes],
) -> bytes | None:
    names = [name for name in figure.series if finished.get(name)]
    for seed in sorted(set.intersection(*(set(finished[name]) for name in names)) if names else ()):
        try:
            views = {name: read(finished[name][seed].folder) for name in names}
            return draw({"\n".join(wrap(table.row(name).title, _TITLE)): views[name] for name in names})
        except (UserError, ValueError):  # not kept, or not of one stream
            continue
    return None


DRAWERS = {
    "agreement": draw_agreement,
    "scores": draw_scores,
    "focus": draw_focus,
    "attention": draw_attention,
    "separation": draw_separation,
}
