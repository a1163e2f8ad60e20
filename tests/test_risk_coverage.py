"""Risk and coverage by hand, and against all orders of what is tied."""

from itertools import permutations

import numpy as np
import pytest

from scenekd.evaluation.risk_coverage import risk_coverage
from scenekd.visualize_outliers import risk_coverage_chart


def test_by_hand():
    # In order of the scores: right, wrong, right, wrong. Risks of the first n: 0, ½, ⅓, ½: their mean is 1/3.
    # The best order has both faults last: 0, 0, ⅓, ½: 5/24.
    curve = risk_coverage([3.0, 1.0, 2.0, 4.0], [False, False, True, True])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.threshold.tolist() == [1, 2, 3, 4]
    assert (curve.aurc, curve.best_aurc) == pytest.approx((1 / 3, 5 / 24))
    assert curve.coverage_at(0.4) == 0.75 and curve.coverage_at(0.0) == 0.25
    assert curve.threshold_at(0.4) == 3 and curve.threshold_at(0.4, 2.5) == 1
    nothing = risk_coverage([1.0], [True])
    assert nothing.coverage_at(0.5) == 0 and nothing.threshold_at(0.5) == -np.inf


def test_ties_in_expectation():
    scores, wrong = np.array([1, 1, 1, 2, 2]), np.array([1, 0, 0, 1, 0], bool)
    areas = []
    for first in permutations(range(3)):
        for second in permutations((3, 4)):
            faults = wrong[[*first, *second]].cumsum()
            areas.append((faults / np.arange(1, 6)).mean())
    curve = risk_coverage(scores, wrong)
    assert curve.aurc == pytest.approx(np.mean(areas))
    assert curve.coverage.tolist() == [0.6, 1] and curve.risk.tolist() == pytest.approx([1 / 3, 2 / 5])


def test_a_score_that_says_nothing_has_the_error_rate():
    wrong = np.arange(50) % 5 == 0
    curve = risk_coverage(np.zeros(50), wrong)
    assert curve.aurc == pytest.approx(0.2) and curve.risk.tolist() == pytest.approx([0.2])
    # A score that knows is the best there is.
    assert risk_coverage(wrong.astype(float), wrong).aurc == pytest.approx(curve.best_aurc)


@pytest.mark.parametrize(
    ("scores", "wrong"), [([], []), ([1.0], [True, False]), ([float("nan")], [True]), ([[1.0]], [[True]])]
)
def test_refuses(scores, wrong):
    with pytest.raises(ValueError):
        risk_coverage(scores, wrong)


def test_chart():
    curve = risk_coverage(np.arange(4), [False, True, False, True])
    plain, marked = (
        risk_coverage_chart({"energy": curve}),
        risk_coverage_chart({"energy": curve}, {"energy": (0.5, 0.5)}),
    )
    assert plain.startswith(b"\x89PNG") and plain != marked
