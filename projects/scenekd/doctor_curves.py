"""What the doctor reads from curves: how they end, how they wobble. Lines are those of ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .visualize_curves import HEADLINES

Lines = Sequence[Mapping[str, Any]]

_SURE = 3.0  # standard errors that a slope must be away from 0
_ENOUGH = 6  # evaluations that say something about their spread


def loss_names(lines: Lines) -> list[str]:
    """The terms of the loss; not their sum, nor what a balance adds to it, which may be negative."""
    names = dict.fromkeys(name for line in lines if "total_loss" in line for name in line)
    return [name for name in names if name.startswith("loss_") and name != "loss_balance"]


def raw_series(lines: Lines, name: str) -> np.ndarray:
    """A number of the training lines, (n,); a term of the loss before the balance has weighted it."""
    rows = [line for line in lines if "total_loss" in line and isinstance(line.get(name), (int, float))]
    return np.array([row[name] / (row.get(f"balance/{name}") or 1.0) for row in rows], float)


def rise(series: np.ndarray) -> float:
    """How far a curve ends above its best, as a part of its best; both are means over an eighth of it."""
    width = max(1, len(series) // 8)
    means = np.convolve(series, np.full(width, 1 / width), mode="valid")
    best = means.min()
    return float(means[-1] / best - 1) if best > 0 else 0.0


def fall_at_end(series: np.ndarray) -> float:
    """How much a curve falls over its last quarter, as a part of its mean there, by a straight line through it;
    0 where the slope is within three standard errors of 0; negative where it rises."""
    end = series[-(len(series) // 4) :]
    if len(end) < 3 or end.mean() <= 0:
        return 0.0
    x = np.arange(len(end)) - (len(end) - 1) / 2
    slope = (x * end).sum() / (x * x).sum()
    rest = end - end.mean() - slope * x
    deviation = math.sqrt((rest * rest).sum() / (len(end) - 2) / (x * x).sum())
    if abs(slope) <= _SURE * deviation:
        return 0.0
    return float(-slope * (len(end) - 1) / end.mean())


def evaluations(lines: Lines) -> dict[str, tuple[list[int], np.ndarray]]:
    """Headline metric → iterations and values of the periodic evaluations, where there are at least two."""
    found = {}
    for name in HEADLINES:
        rows = [
            line for line in lines if "total_loss" not in line and isinstance(line.get(name), (int, float))
        ]
        if len(rows) > 1:
            found[name] = ([row["iteration"] for row in rows], np.array([row[name] for row in rows], float))
    return found


def wobble(values: np.ndarray) -> float:
    """Spread of the second half of the evaluations around their trend: from their second differences, which a
    straight line leaves at 0, the standard deviation of independent noise on it; 0 for few evaluations."""
    if len(values) < _ENOUGH:
        return 0.0
    half = values[-max(4, len(values) // 2) :]
    # Var(a − 2b + c) = 6 σ² for independent a, b, c.
    return float(math.sqrt((np.diff(half, n=2) ** 2).mean() / 6))


def best_evaluation(iterations: Sequence[int], values: np.ndarray) -> tuple[int, float] | None:
    """Iteration and value of the best of at least three evaluations."""
    if len(values) < 3:
        return None
    at = int(values.argmax())
    return iterations[at], float(values[at])
