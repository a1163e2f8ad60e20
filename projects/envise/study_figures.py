"""Kinds of figures of the study. ``agreement``: of student and teacher against samples seen, mean ± standard deviation
over the seeds, with the shifts of the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from matplotlib.figure import Figure as Canvas

from scenekd.study.rows import Figure, Table
from scenekd.visualize_curves import COLOURS, png

from .answer_log import AnswerLog

Finished = Mapping[str, Mapping[int, Any]]  # row id → seed → scenekd.study.runs.Run
_POINTS = 40  # of a curve


def learns_throughout(cfg: CfgNode) -> bool:
    """Whether the stream ends before so many windows could be reached that the student is trusted."""
    return bool(cfg.ONLINE.WINDOWS * cfg.ONLINE.WINDOW > cfg.STREAM.SAMPLES > 0)


def draw_agreement(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """One line a row; None where none was run."""
    canvas = Canvas(figsize=(7.2, 3.8), layout="constrained")
    axis = canvas.subplots()
    shifts: set[int] = set()
    level, seeds = 0.0, 0
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
        level, seeds = 100 * cfg.ONLINE.AGREEMENT, max(seeds, len(runs))
    if not seeds:
        return None
    axis.axhline(level, color="grey", linestyle="--", linewidth=1, label=f"reached: {level:g} %")
    for place, at in enumerate(sorted(shifts)):
        axis.axvline(at, color="black", linewidth=1, label="" if place else "the prior shifts")
    axis.set_xlabel(
        "samples seen; mean ± standard deviation of " + (f"{seeds} seeds" if seeds > 1 else "one seed")
    )
    axis.set_ylabel("agreement with the teacher in %")
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
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


DRAWERS = {"agreement": draw_agreement}
