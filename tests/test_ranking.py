"""Top-n accuracy with ties in expectation: closed forms, a simulation, and scikit-learn without ties."""

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from scenekd.evaluation.ranking import top_n_accuracy


@pytest.mark.parametrize("num_classes", [1, 3, 7, 80])
def test_constant_scores_give_exactly_n_over_c(num_classes):
    labels = np.arange(123) % num_classes
    result = top_n_accuracy(np.zeros((123, num_classes)), labels)
    assert (result == np.arange(1, num_classes + 1) / num_classes).all()


def test_closed_form():
    # Case 1: the true class (2) has the best score: ranks 1. Case 2: one class above, one tied: rank 2 or 3,
    # each with probability ½, so it counts 0, ½, 1, 1. Mean: ½, ¾, 1, 1.
    scores = torch.tensor([[0.1, 0.2, 0.9, 0.0], [0.8, 0.5, 0.5, 0.1]])
    assert top_n_accuracy(scores, torch.tensor([2, 1])).tolist() == [0.5, 0.75, 1.0, 1.0]


def test_against_scikit_learn_without_ties():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((200, 10)), rng.integers(0, 10, 200)
    oracle = [top_k_accuracy_score(labels, scores, k=n, labels=np.arange(10)) for n in range(1, 11)]
    np.testing.assert_allclose(top_n_accuracy(scores, labels), oracle, atol=1e-12)


def test_ties_are_the_mean_of_random_tie_breaking():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (40, 6)).astype(float), rng.integers(0, 6, 40)
    # Noise below the gap between scores breaks the ties at random.
    broken = [top_n_accuracy(scores + 0.1 * rng.random(scores.shape), labels) for _ in range(4000)]
    np.testing.assert_allclose(top_n_accuracy(scores, labels), np.mean(broken, axis=0), atol=5e-3)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (np.array([[np.nan, 1.0]]), [0]),
        (np.array([[np.inf, 1.0]]), [0]),
        (np.ones((2, 3)), [0, 3]),
        (np.ones((2, 3)), [-1, 0]),
        (np.ones((2, 3)), [0.0, 1.0]),
        (np.ones((2, 3)), [0]),
        (np.ones(3), [0, 0, 0]),
        (np.ones((0, 3)), np.zeros(0, int)),
    ],
)
def test_refuses(scores, labels):
    with pytest.raises(ValueError):
        top_n_accuracy(scores, np.array(labels))
