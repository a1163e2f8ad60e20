"""Accuracy and calibration of classification against scikit-learn and torchmetrics, and through the evaluator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from scenekd.data.records import Dataset, Record
from scenekd.errors import UserError
from scenekd.evaluation.classification import ClassificationRecords
from scenekd.evaluation.evaluator import Evaluator, trivial_baseline
from scenekd.sample import Prediction
from scenekd.teachers.build import open_store

CLASSES = tuple("abcdefgh")


def _draw(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right about half of the time, labels of unequal frequency, none of class h."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.35, count) - 1, 6)
    logits = rng.normal(0, 1.5, (count, len(CLASSES)))
    logits[np.arange(count), labels] += 2
    return logits, labels


def _records(
    logits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...] = CLASSES
) -> ClassificationRecords:
    records = ClassificationRecords(classes)
    for i, (row, label) in enumerate(zip(logits, labels)):
        records.add(f"{i:04d}", row, int(label))
    return records


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_numbers_are_those_of_scikit_learn() -> None:
    logits, labels = _draw()
    found = _records(logits, labels).summary()
    predicted = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5, labels=range(8)))
    recall = recall_score(labels, predicted, labels=range(8), average=None, zero_division=0)
    for k, name in enumerate(CLASSES[:-1]):
        assert found[f"ACC-{name}"] == pytest.approx(100 * recall[k])
    assert math.isnan(found["ACC-h"])  # no image of it
    assert not any(key.endswith("_interval") for key in found)


def test_calibration_error_is_that_of_torchmetrics() -> None:
    logits, labels = _draw(500, seed=1)
    wanted = multiclass_calibration_error(
        torch.from_numpy(logits).softmax(1), torch.from_numpy(labels), num_classes=8, n_bins=15, norm="l1"
    )
    assert _records(logits, labels).summary()["ECE"] == pytest.approx(100 * float(wanted), abs=1e-5)


def test_calibration_error_by_hand() -> None:
    # Two classes, logits (log 3, 0): confidence 3/4, all four images in one bin; three of four are right: ECE 0.
    # With two right it is |1/2 − 3/4| = 1/4. Two classes have no top five.
    logits = np.tile([math.log(3), 0.0], (4, 1))
    for labels, wanted in (([0, 0, 0, 1], 0.0), ([0, 0, 1, 1], 25.0)):
        found = _records(logits, np.array(labels), ("a", "b")).summary()
        assert found["ECE"] == pytest.approx(wanted) and "top5" not in found


def test_ties_count_by_chance() -> None:
    # Constant scores put the true class among the first five of eight with probability 5/8.
    found = _records(np.zeros((3, 8)), np.array([0, 3, 7])).summary()
    assert found["top5"] == pytest.approx(62.5)


def test_intervals_are_those_of_resampled_images() -> None:
    logits, labels = _draw(120)
    found = _records(logits, labels).summary(bootstrap=400, seed=3)
    low, high = found["accuracy_interval"]
    # The share p of n independent images has standard deviation sqrt(p (1 − p) / n); a 95 % interval is ± 1.96 of it.
    p = found["accuracy"] / 100
    assert (high - low) / 2 == pytest.approx(196 * math.sqrt(p * (1 - p) / 120), rel=0.15)
    assert low < found["accuracy"] < high
    for key in ("top5", "balanced_accuracy", "ECE", "ACC-a"):
        assert found[f"{key}_interval"][0] <= found[f"{key}_interval"][1]
    assert all(map(math.isnan, found["ACC-h_interval"]))
    assert str(found) == str(_records(logits, labels).summary(bootstrap=400, seed=3))


def test_one_record_an_image_and_bad_scores() -> None:
    records = _records(np.eye(8)[:2], np.array([0, 0]))
    records.add("0000", np.eye(8)[5], 5)  # the first record stays
    assert records.summary()["accuracy"] == 50.0
    with pytest.raises(ValueError, match=r"\(7,\), there are 8 classes"):
        records.add("x", np.zeros(7), 0)
    with pytest.raises(ValueError, match="finite"):
        records.add("x", np.full(8, np.nan), 0)


def _dataset(labels: list[int | None]) -> Dataset:
    return Dataset(
        "toy", CLASSES, [Record(f"{i:04d}", f"{i}.png", 4, 4, class_label=k) for i, k in enumerate(labels)]
    )


def test_the_evaluator_scores_images_with_a_class() -> None:
    dataset = _dataset([0, 1, None, 3])
    evaluator = Evaluator(dataset, tasks=("sem_seg", "bbox", "segm", "classification"))
    for record, said in zip(dataset.records, (0, 1, 2, 2)):
        scores = torch.nn.functional.one_hot(torch.tensor(said), 8).float()
        evaluator.add(record.image_id, Prediction((4, 4), class_scores=scores).resize(4, 4))
    other = Evaluator(dataset, tasks=("classification",))
    other.merge([{"classification": evaluator.state()["classification"]}])
    result = other.summarize()
    assert set(result) == {"classification"}
    assert result["classification"]["accuracy"] == pytest.approx(100 * 2 / 3)  # the third image has no class
    with pytest.raises(UserError, match="prediction for image 0000: scores must be finite"):
        Evaluator(dataset, tasks=("classification",)).add_arrays("0000", class_scores=np.full(8, np.inf))


def test_the_trivial_predictor_knows_the_frequent_class() -> None:
    result = trivial_baseline(
        _dataset([2, 2, 2, 0, None]),
        test := _dataset([2, 0, 1, 2]),
        Evaluator(test, tasks=("classification",)),
    )
    assert result["classification"]["accuracy"] == 50.0  # always class c


def test_a_teacher_of_classification_is_not_cached() -> None:
    with pytest.raises(UserError, match=r"DISTILL.CLASSIFICATION.POLICY: .*not saved"):
        open_store(None, "classification")
