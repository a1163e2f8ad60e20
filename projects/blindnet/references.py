"""The lines beside a model's top-n curve: random, ideal, the class prior, the Bayes oracle, other runs.

C: classes; N: cases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from matplotlib.figure import Figure

from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.evaluation.hidden_objects import HiddenObjectRecords
from scenekd.visualize_curves import COLOURS, png

from .config import KEY
from .truth import oracle_probabilities

Summary = dict[str, Any]
_SMALLEST = 1e-9  # probability; a class that cannot be is last, and its logarithm finite


def score_cases(dataset: Dataset, probabilities: np.ndarray, *, bootstrap: int = 0, seed: int = 0) -> Summary:
    """The numbers of a scorer that is no network.

    Args:
        dataset: of cases. probabilities: (N, C), or (C,) for every case the same.
    """
    records = HiddenObjectRecords(dataset.classes)
    rows = np.broadcast_to(probabilities, (len(dataset), len(dataset.classes)))
    for record, row in zip(dataset.records, rows):
        assert record.hidden is not None
        records.add(record.image_id, np.log(np.maximum(row, _SMALLEST)), record.hidden)
    return _brief(records.summary(bootstrap=bootstrap, seed=seed))


def _brief(summary: Summary) -> Summary:
    return {name: value for name, value in summary.items() if name != "groups" and "TOP1-" not in name}


def reference_results(dataset: Dataset, class_shares: np.ndarray, **options: int) -> dict[str, Summary]:
    """``class_prior``, and on drawn scenes ``oracle`` and what it loses by knowing less (:data:`.truth.ORACLES`).

    Args:
        class_shares: (C,) of the training objects. options: of :func:`score_cases`.
    """
    results = {"class_prior": score_cases(dataset, class_shares, **options)}
    for name, known in oracle_probabilities(dataset).items():
        results[name] = score_cases(dataset, known, **options)
    return results


def gap_covered(top1: float, prior: float, oracle: float) -> float:
    """How much of the way from the class prior's top-1 to the oracle's a model has gone, in percent; NaN where there
    is no way to go."""
    return 100 * (top1 - prior) / (oracle - prior) if oracle > prior else float("nan")


def read_compared(cfg: CfgNode, num_classes: int) -> dict[str, list[float]]:
    """Name → top-n curve in percent, of the runs that ``MODEL.BLINDNET.COMPARE`` names.

    Raises:
        UserError: not pairs, a file that is no results.json of this system, or one of other classes.
    """
    curves = {}
    for pair in cfg.MODEL.BLINDNET.COMPARE:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UserError(f"{KEY}.COMPARE: {pair!r} is no pair (name, results.json)")
        name, path = map(str, pair)
        try:
            curve = json.loads(Path(path).read_text(encoding="utf-8"))["hidden_object"]["top_n"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{KEY}.COMPARE: {path}: no results.json of a blindnet run; train {name} first"
            ) from None
        if not isinstance(curve, list) or len(curve) != num_classes:
            raise UserError(f"{KEY}.COMPARE: {path}: has another number of classes than this run")
        curves[name] = [float(value) for value in curve]
    return curves


def top_n_chart(curves: Mapping[str, list[float]]) -> bytes:
    """The curves over n as a PNG, with the random diagonal n / C and the ideal.

    Args:
        curves: name → C numbers in percent; the first is drawn thick.
    """
    count = len(next(iter(curves.values())))
    n = np.arange(1, count + 1)
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axis = figure.add_subplot()
    axis.plot(n, 100 * n / count, color="grey", linestyle=":", label="random, n / C")
    axis.plot(n, np.full(count, 100.0), color="grey", linestyle="--", label="ideal")
    for place, (name, curve) in enumerate(curves.items()):
        colour, width = COLOURS[place % len(COLOURS)], 1.4 if place else 2.6
        style = "-." if place >= len(COLOURS) else "-"
        marker = "o" if count <= 25 else None
        label = f"{name}: top-1 {curve[0]:.1f}"
        axis.plot(n, curve, color=colour, linewidth=width, linestyle=style, marker=marker, ms=3, label=label)
    axis.set(xlabel="n", ylabel="true class among the first n, %", xlim=(1, count), ylim=(0, 102))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="lower right")
    return png(figure)
