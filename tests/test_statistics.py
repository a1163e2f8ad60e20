"""Paired differences, detectable effects and bootstrap intervals against closed forms and scipy."""

import numpy as np
import pytest
from scipy import stats

from scenekd.evaluation.statistics import bootstrap_interval, minimum_detectable_effect, paired_difference


def test_paired_difference_closed_form():
    # Differences 1, 2, 3: mean 2, sd 1, standard error 1/√3; t(.975, 2) = 4.302653.
    result = paired_difference([10, 20, 30], [11, 22, 33])
    assert result.n == 3
    assert result.mean == pytest.approx(2)
    assert result.sd == pytest.approx(1)
    assert result.standard_error == pytest.approx(1 / np.sqrt(3))
    assert result.low == pytest.approx(2 - 4.302653 / np.sqrt(3), abs=1e-6)
    assert result.high == pytest.approx(2 + 4.302653 / np.sqrt(3), abs=1e-6)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_paired_difference_is_scipys_interval(level):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=7), rng.normal(0.3, 1, size=7)
    ours = paired_difference(a, b, level=level)
    oracle = stats.ttest_rel(b, a).confidence_interval(level)
    assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high))


@pytest.mark.parametrize(
    ("a", "b", "level"),
    [([1], [2], 0.95), ([1, 2], [1], 0.95), ([1, np.nan], [1, 2], 0.95), ([1, 2], [1, 2], 1.0)],
)
def test_paired_difference_refuses(a, b, level):
    with pytest.raises(ValueError):
        paired_difference(a, b, level=level)


def test_minimum_detectable_effect_reaches_its_power():
    effect = minimum_detectable_effect(2.0, 5, power=0.8)
    # 20,000 simulated experiments with that true effect: a share of .8 ± .003 is found.
    draws = np.random.default_rng(0).normal(effect, 2.0, size=(20000, 5))
    p = stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.01)


def test_minimum_detectable_effect_for_many_pairs_is_the_normal_one():
    # (z.975 + z.8) / √n = (1.959964 + 0.841621) / 100
    assert minimum_detectable_effect(1.0, 10000) == pytest.approx(0.02801585, rel=1e-3)
    assert minimum_detectable_effect(0.0, 3) == 0


@pytest.mark.parametrize("kwargs", [dict(sd=-1, n=3), dict(sd=1, n=1), dict(sd=1, n=3, power=0.01)])
def test_minimum_detectable_effect_refuses(kwargs):
    with pytest.raises(ValueError):
        minimum_detectable_effect(**kwargs)


def test_bootstrap_of_a_mean_is_near_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, size=400)
    low, high = bootstrap_interval(lambda w: w @ values / w.sum(1), 400, resamples=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_weights_are_resamples_and_repeat():
    seen = []

    def statistic(weights):
        seen.append(weights.copy())
        return weights[:, :1].astype(float)

    bootstrap_interval(statistic, 9, resamples=50, seed=3)
    bootstrap_interval(statistic, 9, resamples=50, seed=3)
    assert (seen[0].sum(axis=1) == 9).all()
    assert (seen[0] == seen[1]).all()
    assert seen[0].std() > 0


def test_bootstrap_leaves_undefined_resamples_out():
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    low, high = bootstrap_interval(lambda w: values, 4, resamples=3, level=0.5)
    # Quartiles of {1, 3}.
    assert (low[0], high[0]) == pytest.approx((1.5, 2.5))
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_bootstrap_refuses_nothing():
    with pytest.raises(ValueError):
        bootstrap_interval(lambda w: w, 0)
