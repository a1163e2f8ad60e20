"""Pictures of a student's doubt, as PNG: where outliers lie, how scores are spread, what coverage costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .evaluation.risk_coverage import RiskCoverage
from .visualize_curves import COLOURS, png

_NAMED_CLASSES = 7  # with colours of their own; more cannot be told apart


def separation_chart(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray | None, np.ndarray]], classes: Sequence[str] = ()
) -> bytes:
    """Features on a plane, one plot for each network.

    Args:
        panels: title → (N, 2) inliers, their (N,) labels or None, (M, 2) outliers. classes: names by label.
    """
    figure, axes = _row(len(panels), 4.6, 4.0)
    every = [np.unique(labels) for _, labels, _ in panels.values() if labels is not None]
    present = np.unique(np.concatenate(every)) if every else np.zeros(1, np.int64)
    for axis, (title, (inliers, labels, outliers)) in zip(axes, panels.items()):
        groups = np.full(len(inliers), present[0]) if labels is None else labels
        # The classes of all plots, so that each has one colour
        for i, label in enumerate(present[:1] if labels is None else present):
            name = classes[label] if len(present) <= _NAMED_CLASSES and label < len(classes) else None
            if labels is None or (name is None and i == 0):
                name = "inliers"
            chosen = inliers[groups == label]
            colour = COLOURS[i % (len(COLOURS) - 1)] if len(present) <= _NAMED_CLASSES else COLOURS[0]
            axis.scatter(chosen[:, 0], chosen[:, 1], s=9, color=colour, alpha=0.6, linewidths=0, label=name)
        axis.scatter(
            outliers[:, 0],
            outliers[:, 1],
            s=16,
            color="black",
            marker="x",
            linewidths=0.8,
            alpha=0.7,
            label="outliers",
        )
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_aspect("equal", "datalim")
    axes[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.5)
    return png(figure)


def score_chart(scores: Mapping[str, tuple[np.ndarray, np.ndarray, float | None]]) -> bytes:
    """How a score is spread over inliers and outliers, one plot for each score.

    Args:
        scores: title → (N,) inliers' scores, (M,) outliers', and the threshold or None.
    """
    figure, axes = _row(len(scores), 3.6, 2.7)
    for axis, (title, (inliers, outliers, threshold)) in zip(axes, scores.items()):
        both = np.concatenate([inliers, outliers])
        bins = np.linspace(float(both.min()), float(both.max()), 41).tolist()
        for values, colour, name in ((inliers, COLOURS[0], "inliers"), (outliers, COLOURS[1], "outliers")):
            weights = np.full(len(values), 100 / len(values))
            axis.hist(values, bins, weights=weights, color=colour, alpha=0.6, label=name)
        if threshold is not None:
            axis.axvline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("score (right: unfamiliar)", fontsize=9)
    axes[0].set_ylabel("% of each side", fontsize=9)
    axes[-1].legend(fontsize=8, frameon=False)
    return png(figure)


def risk_coverage_chart(
    curves: Mapping[str, RiskCoverage], points: Mapping[str, tuple[float, float]] | None = None
) -> bytes:
    """Share of wrong answers against share of answers, in percent, one line for each score.

    Args:
        curves: name → curve. points: name → (coverage, risk) in 0…1 at which a cascade works, marked on the line.
    """
    figure, (axis,) = _row(1, 6.4, 3.8)
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        style = "-" if i < len(COLOURS) else "--"
        label = f"{name}, AURC {100 * curve.aurc:.1f}"
        axis.step(
            100 * curve.coverage, 100 * curve.risk, color=colour, linestyle=style, where="post", label=label
        )
        if points and name in points:
            axis.plot(100 * points[name][0], 100 * points[name][1], "o", color=colour, markersize=6)
    axis.set_xlim(0, 100)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("coverage: % of samples that the student answers", fontsize=9)
    axis.set_ylabel("risk: % of these that are wrong", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return png(figure)


def _row(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count + 1.2, height), layout="constrained")
    axes = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes
