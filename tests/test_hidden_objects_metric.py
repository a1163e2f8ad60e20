"""The metric of hidden objects: true ranks, intervals over pictures, groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score

from scenekd.evaluation.hidden_objects import HiddenObjectRecords, ratio_group
from scenekd.evaluation.ranking import top_n_accuracy
from scenekd.hidden import HiddenObject

CLASSES = tuple(f"class{k}" for k in range(12))


def _case(number: int, label: int, **options) -> HiddenObject:
    given = {"shape": "box", "ratio": 0.1, "visible": 2, "scene": ""} | options
    return HiddenObject(picture=f"p{number // 3}", place=number % 3, label=label, **given)


def _filled(scores: np.ndarray, labels: np.ndarray, **options) -> HiddenObjectRecords:
    records = HiddenObjectRecords(CLASSES[: scores.shape[1]])
    for number, (row, label) in enumerate(zip(scores, labels)):
        records.add(f"p{number // 3}#{number % 3}", row, _case(number, int(label), **options))
    return records


@pytest.fixture
def random_cases() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 12, 90)
    scores = rng.normal(size=(90, 12))
    scores[np.arange(90), labels] += 1.0
    return scores, labels


def test_against_independent_formulas(random_cases) -> None:
    scores, labels = random_cases
    found = _filled(scores, labels).summary()
    for n in (1, 5, 10):
        expected = top_k_accuracy_score(labels, scores, k=n, labels=np.arange(12))
        assert found[f"top{n}"] == pytest.approx(100 * expected)
    assert found["balanced_accuracy"] == pytest.approx(
        100 * balanced_accuracy_score(labels, scores.argmax(1))
    )
    assert found["top_n"] == pytest.approx(100 * top_n_accuracy(scores, labels))
    # The rank of the true class in a sorted list, without ties.
    ranks = [1 + list(np.argsort(-row)).index(label) for row, label in zip(scores, labels)]
    assert found["mean_rank"] == pytest.approx(np.mean(ranks))
    # A case of rank r is within n for C − r + 1 of the C values of n.
    assert found["area"] == pytest.approx(100 * np.mean([(12 - r + 1) / 12 for r in ranks]))
    expected = log_loss(labels, softmax(scores, axis=1), labels=np.arange(12))
    assert found["log_loss"] == pytest.approx(expected)
    assert (found["objects"], found["pictures"]) == (90, 30)


def test_constant_scores_give_the_diagonal() -> None:
    """n / C, mean rank (C + 1) / 2, area (C + 1) / 2C, log loss log C; the confidence 1 / C is right with chance 1 / C,
    so ECE 0."""
    found = _filled(np.zeros((9, 12)), np.arange(9)).summary()
    assert found["top_n"] == pytest.approx([100 * n / 12 for n in range(1, 13)], abs=1e-12)
    assert found["mean_rank"] == 6.5 and found["area"] == pytest.approx(100 * 13 / 24)
    assert found["ECE"] == pytest.approx(0, abs=1e-12) and found["log_loss"] == pytest.approx(np.log(12))


def test_ties_count_in_expectation() -> None:
    """Two classes tie at the top: the true one is first with chance ½, within two for sure."""
    found = _filled(np.array([[1.0, 1.0, 0.0]]), np.array([1])).summary()
    assert found["top_n"] == pytest.approx([50, 100, 100])
    assert found["mean_rank"] == 1.5


def test_a_perfect_scorer_has_the_ideal_curve() -> None:
    labels = np.arange(12)
    found = _filled(50 * np.eye(12), labels).summary(bootstrap=20)
    assert found["top_n"] == pytest.approx([100.0] * 12) and found["area"] == pytest.approx(100)
    assert found["top1_interval"] == pytest.approx([100, 100])


def test_pictures_are_resampled_not_objects() -> None:
    """Ten pictures of three equal objects each: as wide an interval as of ten objects, √3 wider than of thirty."""
    right = np.repeat(np.arange(10) % 2, 3)
    scores = np.stack([right, 1 - right], axis=1).astype(float)
    labels = np.zeros(30, int)
    low, high = _filled(scores, labels).summary(bootstrap=4000)["top1_interval"]
    # The share of right pictures among ten drawn is binomial(10, ½) / 10: its central 95 % is 0.2 … 0.8.
    assert (low, high) == (20.0, 80.0)


def test_groups_by_what_was_hidden(random_cases) -> None:
    scores, labels = random_cases
    records = HiddenObjectRecords(CLASSES)
    for number, (row, label) in enumerate(zip(scores, labels)):
        options = {
            "ratio": 0.03 if number < 30 else 0.3,
            "visible": number % 7,
            "scene": "sea" if number % 2 else "road",
        }
        records.add(f"p{number // 3}#{number % 3}", row, _case(number, int(label), **options))
    groups = records.summary()["groups"]
    assert list(groups) == ["ratio", "shape", "visible", "scene"]
    assert {name: row["objects"] for name, row in groups["ratio"].items()} == {
        "0.02-0.05": 30,
        "0.20-0.40": 60,
    }
    assert list(groups["visible"]) == ["0", "1", "2", "3", "4+"]
    own = scores[1::2].argmax(1) == labels[1::2]
    assert groups["scene"]["sea"]["top1"] == pytest.approx(100 * own.mean())
    total = sum(row["objects"] * row["top1"] for row in groups["visible"].values()) / 90
    assert total == pytest.approx(records.summary()["top1"])


def test_unknown_scenes_make_no_group() -> None:
    assert "scene" not in _filled(np.zeros((3, 12)), np.zeros(3, int)).summary()["groups"]


def test_the_first_word_counts_and_processes_merge(random_cases) -> None:
    scores, labels = random_cases
    whole, halves = _filled(scores, labels), [HiddenObjectRecords(CLASSES) for _ in range(2)]
    for number, (row, label) in enumerate(zip(scores, labels)):
        key = f"p{number // 3}#{number % 3}"
        halves[number % 2].add(key, row, _case(number, int(label)))
        whole.add(key, -row, _case(number, int(label)))  # is there already
    halves[0].merge(halves[1].state())
    halves[0].merge(halves[1].state())
    assert halves[0].summary(bootstrap=10) == whole.summary(bootstrap=10)


def test_bad_scores_are_refused() -> None:
    records = HiddenObjectRecords(CLASSES)
    with pytest.raises(ValueError, match="12 classes"):
        records.add("a#0", np.zeros(3), _case(0, 0))
    with pytest.raises(ValueError, match="finite"):
        records.add("a#0", np.full(12, np.nan), _case(0, 0))


def test_groups_of_mask_ratio_end_at_their_upper_bound() -> None:
    assert [ratio_group(r) for r in (0.001, 0.02, 0.021, 0.4, 1.0)] == [
        "0.00-0.02",
        "0.00-0.02",
        "0.02-0.05",
        "0.20-0.40",
        "0.40-1.00",
    ]
