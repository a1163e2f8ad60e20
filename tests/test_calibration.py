"""Expected calibration error: by closed form, and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scenekd.evaluation.calibration import CalibrationBins


def test_two_bins_by_hand():
    """Bin [0, .5): confidences .1 and .3, one right: |.5 − .2| = .3. Bin [.5, 1]: .7, .9 and 1, two right:
    |2/3 − 2.6/3| = .2. ECE = 2/5 · .3 + 3/5 · .2 = .24."""
    bins = CalibrationBins(2)
    bins.add([0.1, 0.7, 0.9], [True, True, False])
    bins.add([0.3, 1.0], [False, True])
    assert bins.error() == pytest.approx(0.24)


def test_perfect_and_worst():
    """Confidence 1 and always right: 0; always wrong: 1. Nothing counted: undefined."""
    for right, error in ((True, 0.0), (False, 1.0)):
        bins = CalibrationBins()
        bins.add(np.ones(4), np.full(4, right))
        assert bins.error() == error
    assert math.isnan(CalibrationBins().error())


@pytest.mark.parametrize("count", [1, 10, 15])
def test_against_torchmetrics(count):
    """Confidences of two classes are their probability's larger part; parts add up as the whole does."""
    calibration = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(count)
    p = rng.dirichlet(np.full(5, 0.4), 3000)
    labels = np.array([rng.choice(5, p=row) for row in p])
    ours = CalibrationBins(count)
    for part in np.array_split(np.arange(3000), 7):
        ours.add(torch.from_numpy(p[part].max(1)), p[part].argmax(1) == labels[part])
    theirs = calibration.MulticlassCalibrationError(num_classes=5, n_bins=count, norm="l1")
    want = float(theirs(torch.from_numpy(p), torch.from_numpy(labels)))
    assert ours.error() == pytest.approx(want, abs=1e-6)


def test_bad_values():
    with pytest.raises(ValueError, match="0…1"):
        CalibrationBins().add([1.5], [True])
    with pytest.raises(ValueError, match="2 confidences for 1"):
        CalibrationBins().add([0.5, 0.5], [True])
    with pytest.raises(ValueError, match="at least 1"):
        CalibrationBins(0)
