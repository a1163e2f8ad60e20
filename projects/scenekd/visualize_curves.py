"""Curves of a run and bars of several runs, as PNG. Lines are those of ``metrics.json``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_COLUMNS = 3
_SMOOTH_FROM = 100  # points; fewer are readable as they are
HEADLINES = (
    "sem_seg/mIoU",
    "bbox/mAP",
    "bbox/AP",
    "segm/AP",
    "classification/accuracy",
    "hidden_object/top1",
    "multi_label/mAP",
)  # AP50 is mAP under another name, or a part of AP

Lines = Sequence[Mapping[str, Any]]


def loss_curves(lines: Lines) -> bytes | None:
    """One small plot for each loss, with its own axis, and one for the learning rate; None without lines."""
    rows = [line for line in lines if "total_loss" in line]
    if not rows:
        return None
    names = ["total_loss", *sorted({k for row in rows for k in row if k.startswith("loss_")}), "lr"]
    figure, axes = _grid(len(names))
    for i, (axis, name) in enumerate(zip(axes, names)):
        x, y = _series(rows, name)
        colour = COLOURS[i % len(COLOURS)]
        if len(y) >= _SMOOTH_FROM and name != "lr":
            axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            y = running_mean(y, len(y) // 30)
        axis.plot(x, y, color=colour, marker="o" if len(y) == 1 else None)
        axis.set_title({"total_loss": "total loss", "lr": "learning rate"}.get(name, name))
        if len(y) and y.min() >= 0:
            axis.set_ylim(bottom=0)  # so that noise does not look like progress
    return png(figure)


def evaluation_curves(lines: Lines) -> bytes | None:
    """The headline numbers of the periodic evaluations, in percent; None where there were not two of them."""
    rows = [line for line in lines if "total_loss" not in line]
    if len(rows) < 2:
        return None
    names = [name for name in HEADLINES if any(name in row for row in rows)]
    if not names:
        return None
    figure, axes = _grid(len(names))
    for i, (axis, name) in enumerate(zip(axes, names)):
        axis.plot(*_series(rows, name), color=COLOURS[i], marker="o")
        axis.set_title(f"{name} in %")
    return png(figure)


def bar_chart(
    names: Sequence[str], series: Mapping[str, Sequence[float]], trivial: Mapping[str, float] | None = None
) -> bytes:
    """One small plot for each metric, one bar for each name, in percent.

    Args:
        series: metric → a value for each name; what is not finite has no bar.
        trivial: metric → the number of the trivial baseline, drawn as a dashed line.
    """
    figure, axes = _grid(len(series))
    for axis, (metric, values) in zip(axes, series.items()):
        heights = [value if math.isfinite(value) else 0.0 for value in values]
        bars = axis.bar(
            range(len(names)), heights, color=[COLOURS[i % len(COLOURS)] for i in range(len(names))]
        )
        axis.bar_label(bars, [f"{v:.1f}" if math.isfinite(v) else "–" for v in values], fontsize=9)
        axis.set_xticks(range(len(names)), names)
        axis.set_title(f"{metric} in %")
        axis.set_xlabel("")
        axis.set_axisbelow(True)
        axis.margins(y=0.15)
        level = (trivial or {}).get(metric, math.nan)
        if math.isfinite(level):
            axis.axhline(level, color="black", linestyle="--", linewidth=1)
            axis.set_xlabel(f"dashed: trivial baseline, {level:.1f}", fontsize=9)
    return png(figure)


def error_chart(shares: Mapping[str, Mapping[str, float]]) -> bytes:
    """What the surest boxes of each class are, as stacked bars in percent.

    Args:
        shares: class → kind of error → percent; a class whose numbers are not finite has no bar.
    """
    kinds = list(next(iter(shares.values())))
    shown = {name: row for name, row in shares.items() if all(map(math.isfinite, row.values()))}
    figure = Figure(figsize=(7.8, 1.2 + 0.24 * len(shown)), layout="constrained")
    axis = figure.add_subplot()
    left = np.zeros(len(shown))
    for kind, colour in zip(kinds, ("#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#BBBBBB")):
        widths = np.asarray([row[kind] for row in shown.values()])
        axis.barh(range(len(shown)), widths, left=left, color=colour, label=kind, height=0.8)
        left += widths
    axis.set_yticks(range(len(shown)), list(shown), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of a class's surest boxes, as many as it has objects", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(ncols=len(kinds), fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return png(figure)


@dataclass(frozen=True)
class Bar:
    """A bar of :func:`gain_chart`: its label, a number, those behind it, and [low, high] around it or None."""

    label: str
    value: float
    dots: Sequence[float] = ()
    interval: tuple[float, float] | None = None


def gain_chart(groups: Mapping[str, Sequence[Bar]], axis_label: str) -> bytes:
    """Lying bars to both sides of zero, each group below the other under its name; gains and losses in two colours.

    Args:
        groups: heading → bars from top to bottom; a heading that begins with ``(`` has pale bars.
    """
    rows = sum(len(bars) + 1 for bars in groups.values())
    figure = Figure(figsize=(8.4, 1.0 + 0.25 * rows), layout="constrained")
    axis = figure.add_subplot()
    place, places, labels = 0, list[int](), list[str]()
    for heading, bars in groups.items():
        axis.text(
            0, place, heading, transform=axis.get_yaxis_transform(), fontsize=9, weight="bold", va="center"
        )
        pale = 0.4 if heading.startswith("(") else 1.0
        for bar in bars:
            place += 1
            places.append(place)
            labels.append(bar.label)
            colour = COLOURS[0] if bar.value >= 0 else COLOURS[1]
            axis.barh(place, bar.value, color=colour, height=0.72, alpha=pale)
            if bar.interval is not None:
                axis.plot(bar.interval, (place, place), color="black", linewidth=1.2)
            axis.plot(bar.dots, [place] * len(bar.dots), "o", color="black", markersize=3)
            _write_value(axis, bar, place)
        place += 1
    axis.set_yticks(places, labels, fontsize=8)
    axis.set_ylim(place - 0.4, -0.6)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.margins(x=0.1)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.set_xlabel(axis_label, fontsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    return png(figure)


@dataclass(frozen=True)
class Mark:
    """A place on the horizontal axis of :func:`share_chart` at which something happens."""

    at: float
    name: str
    colour: str


def share_chart(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    marks: Sequence[Mark],
    x_label: str,
    y_label: str,
) -> bytes:
    """Shares in percent over something, with lines where something happens.

    Args:
        curves: name → x and y, rising x. marks: those of one name share an entry in the legend.
    """
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axis = figure.add_subplot()
    for (name, (x, y)), colour in zip(curves.items(), COLOURS):
        axis.plot(x, y, color=colour, linewidth=1.2, label=name, marker="o" if len(x) == 1 else None)
    named = set[str]()
    for mark in marks:
        style = ":" if mark.colour == "black" else "--"
        label = None if mark.name in named else mark.name
        axis.axvline(mark.at, color=mark.colour, linestyle=style, linewidth=1.2, label=label)
        named.add(mark.name)
    axis.set_ylim(0, 102)
    axis.set_xlim(left=0)
    axis.set_xlabel(x_label, fontsize=9)
    axis.set_ylabel(y_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return png(figure)


def _write_value(axis: Axes, bar: Bar, place: int) -> None:
    """The bar's number outside of all that is drawn of it."""
    ends = [0.0, bar.value, *bar.dots, *(bar.interval or ())]
    right = bar.value >= 0
    axis.annotate(
        f"{bar.value:+.1f}",
        (max(ends) if right else min(ends), place),
        xytext=(4 if right else -4, 0),
        textcoords="offset points",
        fontsize=8,
        va="center",
        ha="left" if right else "right",
    )


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over up to ``width`` values on each side, fewer at the ends; (n,) → (n,)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _series(rows: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["iteration"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
    x, y = np.asarray(points, float).reshape(-1, 2).T
    return x, y


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.9 * columns, 2.6 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("iteration", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(10)
    return figure, axes


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
