"""Does a teacher's fitness foretell its students' gain? A line through what was run, judged on rows left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Forecast:
    """gain = slope · fitness + intercept.

    Attributes:
        error: root mean square error of each row predicted from the others (leave one out), in points.
        naive_error: the same of the others' mean gain, which looks at no fitness.
        right_sign: share of rows whose gain or harm was told rightly, each from the others.
        rows: how many.
        predicted: gain of each row, from the others.
    """

    slope: float
    intercept: float
    error: float
    naive_error: float
    right_sign: float
    rows: int
    predicted: tuple[float, ...] = ()

    def predict(self, fitness: float) -> float:
        """The gain to expect, in points."""
        return self.slope * fitness + self.intercept


def fit_forecast(fitness: Sequence[float], gains: Sequence[float]) -> Forecast:
    """Least squares through (fitness, gain) of rows that were run.

    Args:
        fitness: of each row's teacher, before training. gains: the row's mean paired gain over ground truth alone.

    Raises:
        ValueError: unequal lengths, fewer than four rows, values that are not finite, or all of one fitness.
    """
    x, y = np.asarray(fitness, np.float64), np.asarray(gains, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"fitness and gains must be equally long lists, got {x.shape} and {y.shape}")
    if len(x) < 4:
        raise ValueError(f"a forecast that is judged on rows left out needs four or more, got {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("fitness and gains must be finite")
    if np.ptp(x) == 0:
        raise ValueError("every row has the same fitness")
    slope, intercept = _line(x, y)
    predicted, mean = np.empty_like(y), np.empty_like(y)
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        a, b = _line(x[others], y[others])
        predicted[i], mean[i] = a * x[i] + b, y[others].mean()
    return Forecast(
        slope,
        intercept,
        float(np.sqrt(((predicted - y) ** 2).mean())),
        float(np.sqrt(((mean - y) ** 2).mean())),
        float((np.sign(predicted) == np.sign(y)).mean()),
        len(x),
        tuple(predicted.tolist()),
    )


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept; a level line where all x are one."""
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())
