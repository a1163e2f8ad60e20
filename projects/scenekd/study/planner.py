"""The label budget: how many labels without a teacher are worth the labels that one has with it.

A learning curve is the score against the share of labelled images. The curve without a teacher, inverted at the score
that x % of the labels reach with the teacher, gives the y % that would be needed without it.

S: seeds. Between the shares that were run, curves are straight in the logarithm of the share; below the smallest and
above the largest share nothing is known, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

Curve = Mapping[float, Sequence[float]]


@dataclass(frozen=True)
class Worth:
    """``share`` of the labels with the teacher reach ``score``, as ``equal`` of the labels alone would.

    ``equal``, ``low`` and ``high`` are shares in 0…1; 0 stands for "less than the smallest share that was run" and
    infinity for "more than the largest one". ``low`` and ``high`` bound the 95 % interval over seeds.
    """

    share: float
    score: float
    equal: float
    low: float
    high: float


def label_worth(
    alone: Curve, with_teacher: Curve, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Worth]:
    """For each share run with the teacher, the share of labels alone that reaches the same score.

    Args:
        alone: share of labelled images in (0, 1] → scores of S seeds, at two shares or more.
        with_teacher: the same with the teacher filling in what is missing, the seeds in the same order.
        resamples: of the seeds, drawn together for both curves, for the interval.
        level: coverage of the interval.

    Raises:
        ValueError: fewer than two shares alone, a share outside (0, 1], or unequal numbers of seeds.
    """
    _check(alone, with_teacher)
    shares = np.asarray(sorted(alone))
    own = np.asarray([alone[share] for share in shares], np.float64)
    rng = np.random.default_rng(seed)
    count = own.shape[1]
    draws = rng.integers(0, count, size=(resamples, count))
    # More labels are not worse: the nearest curve that never falls.
    curves = [isotonic_regression(own[:, draw].mean(axis=1)).x for draw in draws]
    mean_curve = isotonic_regression(own.mean(axis=1)).x
    found = []
    for share in sorted(with_teacher):
        scores = np.asarray(with_teacher[share], np.float64)
        equal = [_invert(shares, curve, scores[draw].mean()) for curve, draw in zip(curves, draws)]
        tails = (1 - level) / 2, (1 + level) / 2
        # Order statistics: interpolation between a share and infinity would make no sense.
        low, high = np.quantile(equal, tails, method="closest_observation")
        found.append(
            Worth(
                float(share),
                float(scores.mean()),
                _invert(shares, mean_curve, float(scores.mean())),
                float(low),
                float(high),
            )
        )
    return found


def _check(alone: Curve, with_teacher: Curve) -> None:
    if len(alone) < 2:
        raise ValueError("the curve without a teacher needs two shares or more")
    if bad := [share for share in (*alone, *with_teacher) if not 0 < share <= 1]:
        raise ValueError(f"shares must be in (0, 1], got {bad[0]}")
    seeds = {len(scores) for scores in (*alone.values(), *with_teacher.values())}
    if len(seeds) != 1 or not min(seeds):
        raise ValueError(f"every share needs the same seeds, got numbers of seeds {sorted(seeds)}")


def _invert(shares: np.ndarray, curve: np.ndarray, score: float) -> float:
    """The smallest share at which ``curve`` reaches ``score``; 0 below the curve's first point, inf above its last."""
    if score < curve[0]:
        return 0.0
    if score > curve[-1]:
        return float("inf")
    upper = int(np.searchsorted(curve, score, side="left"))
    if curve[upper] == score:
        return float(shares[upper])
    part = (score - curve[upper - 1]) / (curve[upper] - curve[upper - 1])
    ends = np.log(shares[upper - 1 : upper + 1])
    return float(np.exp(ends[0] + part * (ends[1] - ends[0])))
