"""The label budget planner against curves that are known."""

import math

import pytest

from scenekd.study.planner import label_worth


def test_worth_on_a_straight_curve():
    # Score = 10 · log10(share) + 40: .01 → 20, .1 → 30, 1 → 40. A score of 25 is share 10^−1.5, one of 30 is .1.
    alone = {0.01: [20.0], 0.1: [30.0], 1.0: [40.0]}
    found = label_worth(alone, {0.01: [25.0], 0.1: [30.0]})
    assert [worth.share for worth in found] == [0.01, 0.1]
    assert found[0].equal == pytest.approx(10**-1.5)
    assert found[1].equal == pytest.approx(0.1)
    # One seed has no spread.
    assert (found[0].low, found[0].high) == (found[0].equal, found[0].equal)


def test_outside_what_was_run():
    alone = {0.1: [30.0], 1.0: [40.0]}
    below, above = label_worth(alone, {0.1: [29.0], 0.5: [41.0]})
    assert below.equal == 0 and math.isinf(above.equal)


def test_a_curve_that_falls_is_flattened():
    # 30, 40, 38 → the nearest rising curve is 30, 39, 39: a score of 39 is first reached at the second share.
    alone = {0.01: [30.0], 0.1: [40.0], 1.0: [38.0]}
    assert label_worth(alone, {0.01: [39.0]})[0].equal == pytest.approx(0.1)


def test_interval_comes_from_the_seeds():
    # Two seeds, equally drawn: means of (0, 0), (0, 1), (1, 1). The score with the teacher is 25 in seed 0 and 35 in
    # seed 1; the curve alone is the same in both: share 10^−1.5 to 10^−.5 around 10^−1.
    alone = {0.01: [20.0, 20.0], 0.1: [30.0, 30.0], 1.0: [40.0, 40.0]}
    (worth,) = label_worth(alone, {0.01: [25.0, 35.0]})
    assert worth.equal == pytest.approx(0.1)
    assert (worth.low, worth.high) == (pytest.approx(10**-1.5), pytest.approx(10**-0.5))
    assert worth == label_worth(alone, {0.01: [25.0, 35.0]})[0]


def test_a_shared_seed_effect_cancels():
    # Seed 1 is 5 better everywhere: the teacher's gain is the same in both, and so is what it is worth.
    alone = {0.01: [20.0, 25.0], 0.1: [30.0, 35.0]}
    (worth,) = label_worth(alone, {0.01: [25.0, 30.0]})
    assert worth.low == pytest.approx(worth.high)


@pytest.mark.parametrize(
    ("alone", "teacher", "names"),
    [
        ({0.1: [1.0]}, {0.1: [1.0]}, "two shares"),
        ({0.1: [1.0], 2.0: [2.0]}, {0.1: [1.0]}, "2.0"),
        ({0.1: [1.0], 1.0: [2.0]}, {0.1: [1.0, 2.0]}, "seeds"),
    ],
)
def test_refused(alone, teacher, names):
    with pytest.raises(ValueError, match=names):
        label_worth(alone, teacher)
