"""Outlier metrics by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from scenekd.evaluation.ood import outlier_metrics


def oracle(inliers, outliers):
    """The definitions of :class:`OutlierMetrics` in scikit-learn's words."""
    labels = np.r_[np.zeros(len(inliers)), np.ones(len(outliers))]
    scores = np.r_[inliers, outliers].astype(np.float64)
    wanted = {"auroc": metrics.roc_auc_score(labels, scores)}
    for name, positive, values in (("in", 0, -scores), ("out", 1, scores)):
        truth = labels == positive
        precision, recall, _ = metrics.precision_recall_curve(truth, values)
        wanted[f"aupr_{name}"] = metrics.auc(recall, precision)
        false, found, _ = metrics.roc_curve(truth, values, drop_intermediate=False)
        wanted["fpr95_inlier" if name == "in" else "fpr95"] = false[np.argmax(found >= 0.95)]
    wanted["detection_error"] = ((1 - found) + false).min() / 2
    return {name: 100 * value for name, value in wanted.items()}


@pytest.mark.parametrize("kind", ["apart", "mixed", "tied", "turned", "uneven"])
def test_against_scikit_learn(kind):
    rng = np.random.default_rng(0)
    inliers, outliers = {
        "apart": lambda: (rng.normal(0, 1, 200), rng.normal(9, 1, 150)),
        "mixed": lambda: (rng.normal(0, 1, 400), rng.normal(1, 2, 300)),
        "tied": lambda: (rng.integers(0, 4, 300), rng.integers(1, 6, 200)),
        "turned": lambda: (rng.normal(2, 1, 300), rng.normal(0, 1, 300)),
        "uneven": lambda: (rng.normal(0, 1, 1000), rng.normal(1, 1, 3)),
    }[kind]()
    found = outlier_metrics(inliers, outliers).percentages()
    assert found == pytest.approx(oracle(inliers, outliers), rel=1e-12, abs=1e-12)


def test_by_hand():
    # In order: 1 in, 2 in, 3 out, 4 in, 5 out. Of 3 · 2 pairs the outlier is above in 3 (5) + 2 (3) = 5.
    found = outlier_metrics(torch.tensor([4.0, 1.0, 2.0]), torch.tensor([5.0, 3.0]))
    assert found.auroc == pytest.approx(5 / 6)
    # To find both outliers (≥ 3) one of three inliers is taken along; to keep all inliers (≤ 4) one of two outliers.
    assert (found.fpr95, found.fpr95_inlier) == pytest.approx((1 / 3, 1 / 2))
    # At ≥ 3: misses 0, false ⅓: mean 1/6. At ≥ 5: misses ½, false 0: ¼.
    assert found.detection_error == pytest.approx(1 / 6)
    # Precision at recall 0, ½ (5), ½ (4), 1 (3): 1, 1, ½, 2/3: ½ · 1 + ½ · (½ + 2/3) / 2.
    assert found.aupr_out == pytest.approx(0.5 + 0.25 * (1 / 2 + 2 / 3))


def test_all_equal_scores_tell_nothing():
    # One threshold: all or nothing. AUROC of ties ½; precision falls from 1 to the share: its trapezoid is their mean.
    found = outlier_metrics([0.0] * 30, [0.0] * 10)
    assert (found.auroc, found.detection_error, found.fpr95, found.fpr95_inlier) == (0.5, 0.5, 1, 1)
    assert found.aupr_out == pytest.approx((1 + 0.25) / 2)


def test_random_scores():
    rng = np.random.default_rng(3)
    found = outlier_metrics(rng.random(5000), rng.random(5000))
    assert found.auroc == pytest.approx(0.5, abs=0.02)
    assert found.aupr_in == pytest.approx(0.5, abs=0.02) and found.aupr_out == pytest.approx(0.5, abs=0.02)
    assert found.fpr95 == pytest.approx(0.95, abs=0.02) and found.detection_error == pytest.approx(
        0.5, abs=0.02
    )


def test_only_the_order_counts():
    rng = np.random.default_rng(1)
    inliers, outliers = rng.normal(0, 1, 50), rng.normal(1, 1, 60)
    assert outlier_metrics(inliers, outliers) == outlier_metrics(np.exp(inliers), np.exp(outliers))


@pytest.mark.parametrize(
    ("inliers", "outliers", "message"),
    [
        ([], [1.0], "inlier scores"),
        ([1.0], [], "outlier scores"),
        ([1.0, math.nan], [1.0], "inlier scores must be finite; 1 of 2"),
        ([1.0], [math.inf], "outlier scores must be finite"),
        ([[1.0]], [1.0], "inlier scores"),
    ],
)
def test_refuses(inliers, outliers, message):
    with pytest.raises(ValueError, match=message) as error:
        outlier_metrics(inliers, outliers)
    assert "\n" not in str(error.value)
