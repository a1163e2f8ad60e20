"""Rows side by side as bars with error bars: ``kind: bars`` of a rows file's figures.

``series`` are ids of rows; the first one is the reference, whose mean is drawn through as a line, and ``level`` names
the row with every label, drawn dashed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from textwrap import wrap

import numpy as np
from matplotlib.figure import Figure as Canvas

from ..visualize_curves import COLOURS, png
from .rows import Figure, Table
from .scores import RowScores, spread_of

_TITLE = 46  # characters that a panel's width holds


def draw_bars(
    figure: Figure, table: Table, scores: Mapping[str, RowScores], labels: Mapping[str, str] | None = None
) -> bytes | None:
    """The picture, one panel a metric; None where fewer than two rows were run.

    Args:
        labels: of the metrics; by default they are in percent.
    """
    rows = [table.row(name) for name in figure.series if name in scores]
    metrics = [m for m in figure.metrics if sum(math.isfinite(scores[r.id].mean(m)) for r in rows) > 1]
    if len(rows) < 2 or not metrics:
        return None
    titles = max(len(row.title) for row in rows) * 0.065  # inches of the rows' names
    size = (0.4 + titles + 3.2 * len(metrics), 1.0 + 0.32 * len(rows))
    canvas = Canvas(figsize=size, layout="constrained")
    for axis, metric in zip(canvas.subplots(1, len(metrics), sharey=True, squeeze=False)[0], metrics):
        means = np.array([scores[row.id].mean(metric) for row in rows])
        spread = np.array([scores[row.id].sd(metric) for row in rows])
        colours = [COLOURS[6] if i == 0 else COLOURS[0] for i in range(len(rows))]
        bars = axis.barh(range(len(rows)), means, xerr=spread, color=colours, alpha=0.75, capsize=2)
        numbers = [f"{m:.1f}" if math.isfinite(m) else "–" for m in means]
        on_lines = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axis.bar_label(bars, numbers, padding=5, fontsize=8, bbox=on_lines)
        axis.axvline(means[0], color="black", linewidth=0.8)
        label = (labels or {}).get(metric, f"{metric} in %")
        if figure.level in scores and math.isfinite(scores[figure.level].mean(metric)):
            level = scores[figure.level].mean(metric)
            axis.axvline(level, color="grey", linestyle="--", linewidth=1)
            title = f"{label} (dashed: {table.row(figure.level).title}, {level:.1f})"
        else:
            title = label
        axis.set_title("\n".join(wrap(title, _TITLE)), fontsize=9)
        axis.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    canvas.axes[0].invert_yaxis()
    canvas.supxlabel(spread_of(len(scores[row.id].seeds) for row in rows), fontsize=8)
    return png(canvas)
