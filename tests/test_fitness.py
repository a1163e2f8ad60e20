"""What a target says of the labels, and whether that foretells a gain."""

import math

import numpy as np
import pytest
from voc_folder import add_image, add_list, annotation, bare_config

from scenekd.data.catalog import load_datasets
from scenekd.sample import SoftSegmentation
from scenekd.study.fitness import fit_forecast
from scenekd.teachers.fitness import segmentation_fitness


class Store:
    """One array for every image."""

    def __init__(self, values, form):
        self.values, self.form = values, form
        self.classes, self.info = (), {}

    def __contains__(self, image_id):
        return True

    def get_segmentation(self, image_id):
        return SoftSegmentation(self.values, self.form)


@pytest.fixture
def data(tmp_path):
    """One image of 8 × 8: the left half is background, the right half class 1 (aeroplane)."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 1
    add_image(tmp_path, "a", annotation([], (8, 8)), mask, size=(8, 8))
    add_list(tmp_path, "Segmentation", "train", ["a"])
    cfg = bare_config()
    cfg.DATASETS.ROOT, cfg.INPUT.SIZE = str(tmp_path), 8
    return load_datasets(("voc_seg_train",), cfg, train=True), cfg


def halves(left, right):
    """(21, 1, 2) with probability ``left`` on background in the left cell and ``right`` on class 1 in the right."""
    values = np.zeros((21, 1, 2), np.float32)
    for cell, (label, p) in enumerate(((0, left), (1, right))):
        values[:, 0, cell] = (1 - p) / 20
        values[label, 0, cell] = p
    return values


def test_the_labels_themselves_tell_all(data):
    dataset, cfg = data
    # 1 × 2 cells are bilinearly enlarged, so that only nearest cells make the labels exactly: take 8 × 8 cells.
    values = np.repeat(np.repeat(halves(1.0, 1.0), 8, axis=1), 4, axis=2)
    values = np.clip(values, 0, 1)
    found = segmentation_fitness(dataset, Store(values, "probabilities"), cfg)
    assert (found.information, found.accuracy) == (pytest.approx(1.0), 1.0)
    assert (found.pixels, found.images) == (64, 1)


def test_a_known_forecast(data):
    # .8 on the right class everywhere: NLL = −ln .8. The two classes are equally frequent: the prior's NLL is ln 2.
    dataset, cfg = data
    values = np.repeat(np.repeat(halves(0.8, 0.8), 8, axis=1), 4, axis=2)
    found = segmentation_fitness(dataset, Store(values, "probabilities"), cfg)
    assert found.nll == pytest.approx(-math.log(0.8), rel=1e-5)
    assert found.information == pytest.approx(1 + math.log(0.8) / math.log(2), rel=1e-5)


def test_the_thesis_target_misleads(data):
    # Scores 1 on class 1 in the right half, nothing in the left, softmax at T = .4: .3785 and 1/21.
    dataset, cfg = data
    cfg.DISTILL.SEGMENTATION.TARGET, cfg.DISTILL.SEGMENTATION.TEMPERATURE = "scores", 0.4
    values = np.zeros((21, 8, 8), np.float32)
    values[1, :, 4:] = 1
    found = segmentation_fitness(dataset, Store(values, "scores"), cfg)
    on_class = math.exp(2.5) / (math.exp(2.5) + 20)
    nll = -(math.log(on_class) + math.log(1 / 21)) / 2
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert found.information < -1.5


def test_pixels_count_by_the_confidence_of_the_loss(data):
    # .9 on background on the left, .5 on class 1 on the right, weighed by .9 and .5.
    dataset, cfg = data
    cfg.DISTILL.SEGMENTATION.CONFIDENCE = "max"
    values = np.repeat(np.repeat(halves(0.9, 0.5), 8, axis=1), 4, axis=2)
    found = segmentation_fitness(dataset, Store(values, "probabilities"), cfg)
    assert found.nll == pytest.approx(-(0.9 * math.log(0.9) + 0.5 * math.log(0.5)) / 1.4, rel=1e-5)
    share = 0.9 / 1.4
    prior = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert found.prior_nll == pytest.approx(prior, rel=1e-5)


def test_nothing_labelled(data):
    dataset, cfg = data
    dataset.records[0].sem_seg_file = None
    assert segmentation_fitness(dataset, Store(halves(1, 1), "probabilities"), cfg) is None


def test_forecast_of_a_line():
    # Gains 2 · fitness − 1 exactly: nothing is left over; the mean of the others errs.
    x = [-1.0, 0.0, 0.5, 1.0, 2.0]
    forecast = fit_forecast(x, [2 * v - 1 for v in x])
    assert (forecast.slope, forecast.intercept) == (pytest.approx(2), pytest.approx(-1))
    assert forecast.error == pytest.approx(0, abs=1e-9) and forecast.naive_error > 1
    assert forecast.predict(3.0) == pytest.approx(5)


def test_forecast_errors_by_hand():
    # Four rows at x = 0, 0, 1, 1 with y = −1, 1, 3, 5. Without row 0 the line goes through (0, 1) and (1, 4): 1, an
    # error of 2; likewise without row 1: −1 against 1; without row 2: 5 against 3; without row 3: 3 against 5.
    forecast = fit_forecast([0, 0, 1, 1], [-1, 1, 3, 5])
    assert forecast.error == pytest.approx(2)
    assert forecast.predicted == pytest.approx((1, -1, 5, 3))
    # Means of the others: 3, 7/3, 5/3, 1; errors 4, 4/3, 4/3, 4; their squares' mean is 80/9.
    assert forecast.naive_error == pytest.approx(math.sqrt(80 / 9))
    # Signs: 1 for −1 and −1 for 1 are wrong; the other two are right.
    assert forecast.right_sign == 0.5


@pytest.mark.parametrize(
    ("x", "y", "names"),
    [
        ([1, 2], [1, 2, 3], "equally long"),
        ([1, 2, 3], [1, 2, 3], "four"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "same fitness"),
        ([1, 2, 3, math.nan], [1, 2, 3, 4], "finite"),
    ],
)
def test_forecast_refuses(x, y, names):
    with pytest.raises(ValueError, match=names):
        fit_forecast(x, y)
