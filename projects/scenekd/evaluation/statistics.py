"""What can be said of numbers that vary: paired seeds, bootstrap over images, detectable effects.

Shape shorthand: I: images (or any records); B: resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

# (b, I) weights of the records → (b, …) values, see :func:`bootstrap_interval`.
Statistic = Callable[[np.ndarray], np.ndarray]

# Resamples handled at once are bounded so that a statistic sees at most this many weights.
_WEIGHTS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class PairedDifference:
    """b − a over ``n`` pairs: mean, standard deviation (n − 1), standard error, and Student's t-interval."""

    mean: float
    sd: float
    standard_error: float
    low: float
    high: float
    n: int


def paired_difference(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> PairedDifference:
    """The difference b − a of two systems run with the same seeds.

    Args:
        a, b: one finite value per seed, in the same order of seeds; at least two.
        level: coverage of the interval mean ± t((1 + level)/2, n − 1) · standard error.

    Raises:
        ValueError: the lengths differ, fewer than two pairs, a value is not finite, level outside (0, 1).
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"a and b must be two equally long lists, got shapes {first.shape}, {second.shape}")
    n = len(first)
    if n < 2:
        raise ValueError("a paired difference needs at least two pairs")
    difference = second - first
    if not np.isfinite(difference).all():
        raise ValueError("a and b must be finite")
    _check_fraction("level", level)
    sd = float(difference.std(ddof=1))
    error = sd / np.sqrt(n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    mean = float(difference.mean())
    return PairedDifference(mean, sd, float(error), mean - half, mean + half, n)


def minimum_detectable_effect(sd: float, n: int, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true mean difference that a two-sided paired t-test of ``n`` pairs finds with ``power``.

    Solved from the noncentral t distribution, so it holds for the few seeds that one can afford.

    Args:
        sd: standard deviation of the paired differences, ≥ 0.
        n: number of pairs, ≥ 2.
        level: 1 − the test's significance level.
    """
    if not (np.isfinite(sd) and sd >= 0):
        raise ValueError(f"sd must be finite and not negative, got {sd}")
    if n < 2:
        raise ValueError("a paired test needs at least two pairs")
    _check_fraction("level", level)
    if not 1 - level < power < 1:
        raise ValueError(f"power must lie between 1 − level and 1, got {power}")
    critical = stats.t.ppf((1 + level) / 2, n - 1)

    def lacking(noncentrality: float) -> float:
        distribution = stats.nct(n - 1, noncentrality)
        # scipy returns NaN where the far tail underflows.
        far_tail = np.nan_to_num(distribution.cdf(-critical))
        return float(distribution.sf(critical) + far_tail) - power

    # The test's power is the significance level at 0 and reaches 1 well before this bound.
    upper = float(critical + stats.t.ppf(power, n - 1)) * 2 + 10
    return float(optimize.brentq(lacking, 0.0, upper)) * sd / float(np.sqrt(n))


def bootstrap_interval(
    statistic: Statistic,
    num_records: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a statistic under resampling of the records with replacement.

    Args:
        statistic: weights (b, I) → values (b, …). A weight is how often the resample holds the record, so
            a statistic that sums over records is one matrix product. NaN: undefined in that resample.
        num_records: I.
        resamples: B.
        level: coverage.
        seed: the same seed draws the same resamples, so that two systems are compared on the same ones.

    Returns:
        low, high: of the statistic's own shape; NaN where it is undefined in every resample.

    Raises:
        ValueError: no records, no resamples, or level outside (0, 1).
    """
    if num_records < 1 or resamples < 1:
        raise ValueError("bootstrap needs at least one record and one resample")
    _check_fraction("level", level)
    rng = np.random.default_rng(seed)
    chunk = max(1, _WEIGHTS_AT_ONCE // num_records)
    parts = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, num_records, size=(rows, num_records))
        drawn += np.arange(rows)[:, None] * num_records
        weights = np.bincount(drawn.reshape(-1), minlength=rows * num_records)
        parts.append(np.asarray(statistic(weights.reshape(rows, num_records))))
    values = np.concatenate(parts)
    undefined = np.isnan(values).all(axis=0)
    filled = np.where(undefined, 0.0, values)
    low, high = np.nanquantile(filled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def paired_bootstrap(
    before: Statistic, after: Statistic, num_records: int, *, resamples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of after − before of two systems on the same records, each resample drawn for both.

    Args:
        before, after, num_records …: as in :func:`bootstrap_interval`.
    """
    return bootstrap_interval(
        lambda weights: after(weights) - before(weights), num_records, resamples=resamples, seed=seed
    )


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")
