"""Multi-label classification: average precision against scikit-learn's, labels from boxes and masks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from blindnet_parts import CLASSES, dataset, picture
from sklearn.metrics import average_precision_score

from scenekd.data.presence import presence_of
from scenekd.errors import UserError
from scenekd.evaluation.evaluator import Evaluator
from scenekd.evaluation.multi_label import MultiLabelRecords
from scenekd.sample import Prediction


def _records(scores: np.ndarray, presence: np.ndarray) -> MultiLabelRecords:
    records = MultiLabelRecords([f"c{k}" for k in range(scores.shape[1])])
    for i, (row, shown) in enumerate(zip(scores, presence)):
        records.add(f"{i:03d}", row, shown)
    return records


@pytest.mark.parametrize("decimals", [3, 0])  # 0: scores of which many are equal
def test_average_precision_is_scikit_learns(decimals) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(80, 6)).round(decimals)
    presence = (rng.random((80, 6)) < [0.5, 0.2, 0.9, 0.05, 1.0, 0.0]).astype(np.int8)
    presence[rng.random((80, 6)) < 0.1] = -1
    presence[:, 5][presence[:, 5] == 1] = 0
    found = _records(scores, presence).summary()
    expected = []
    for k in range(5):
        counted = presence[:, k] >= 0
        expected.append(average_precision_score(presence[counted, k], scores[counted, k]))
        assert found[f"AP-c{k}"] == pytest.approx(100 * expected[k], abs=1e-9)
    assert np.isnan(found["AP-c5"]) and found["images"] == 80
    assert found["mAP"] == pytest.approx(100 * np.mean(expected), abs=1e-9)


def test_constant_scores_have_the_share_of_images() -> None:
    presence = np.array([[1, 0], [0, 0], [0, 1], [1, -1]], np.int8)
    found = _records(np.zeros((4, 2)), presence).summary()
    # c0: 2 of 4 images; c1: 1 of the 3 that count.
    assert found["AP-c0"] == pytest.approx(50) and found["AP-c1"] == pytest.approx(100 / 3)
    assert found["mAP"] == found["chance"] == pytest.approx((50 + 100 / 3) / 2)


def test_weights_are_repeated_images() -> None:
    """The bootstrap's statistic of an image that stands twice is that of two images of equal score."""
    from scenekd.evaluation.multi_label import _Statistic

    rng = np.random.default_rng(1)
    scores, presence = rng.normal(size=(12, 3)), rng.integers(0, 2, (12, 3)).astype(np.int8)
    weights = rng.integers(0, 3, (1, 12))
    drawn = np.repeat(np.arange(12), weights[0])
    got = _Statistic(_records(scores, presence)._sorted(), 3)(weights)[0]
    for k in range(3):
        assert got[2 + k] == pytest.approx(average_precision_score(presence[drawn, k], scores[drawn, k]))
    summary = _records(scores, presence).summary(bootstrap=50)
    low, high = summary["mAP_interval"]
    assert low < summary["mAP"] < high


def test_bad_scores_are_refused() -> None:
    records = MultiLabelRecords(["a", "b"])
    with pytest.raises(ValueError, match="not finite"):
        records.add("x", np.array([0.0, np.nan]), np.zeros(2))
    with pytest.raises(ValueError, match="presence is"):
        records.add("x", np.zeros(2), np.zeros(3))


def test_presence_from_boxes_and_masks() -> None:
    objects = [(0, (0, 0, 9, 9)), (2, (0, 0, 9, 9)), (2, (5, 5, 9, 9)), (3, (5, 5, 9, 9))]
    record = picture("a", objects, difficult=np.array([False, True, False, True]))
    data = dataset(record)
    # Of class 2 one object is not difficult; of class 3 the only one is, so it counts neither way.
    assert presence_of(data, record, "boxes").tolist() == [1, 0, 1, -1, 0, 0, 0, 0, 0, 0]
    assert presence_of(data, record, "masks") is None
    mask = np.array([[0, 1, 255], [4, 4, 0]], np.uint8)
    masked = dataclasses.replace(record, boxes=None, labels=None, segmentation=lambda: mask)
    assert presence_of(data, masked, "masks").tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert presence_of(data, masked, "boxes") is None
    assert presence_of(data, picture("b", []), "boxes").tolist() == [0] * len(CLASSES)
    with pytest.raises(ValueError, match="source must be"):
        presence_of(data, record, "words")


def test_evaluator_scores_the_pictures_that_have_labels() -> None:
    import torch

    labelled = [
        dataclasses.replace(picture(n, []), presence=np.eye(10, dtype=np.int8)[i]) for i, n in enumerate("ab")
    ]
    evaluator = Evaluator(dataset(*labelled, picture("c", [])), tasks=("multi_label",))
    for i, name in enumerate("abc"):
        evaluator.add(name, Prediction(size=(4, 4), class_scores=torch.eye(10)[min(i, 1)]))
    assert evaluator.summarize()["multi_label"]["mAP"] == pytest.approx(100)
    with pytest.raises(UserError, match="prediction for image b"):
        evaluator.reset()
        evaluator.add("b", Prediction(size=(4, 4), class_scores=torch.zeros(3)))
