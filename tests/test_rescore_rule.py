"""The rule that puts a detector's score and its context together, and dealing regions to passes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.special import expit, logit

from blindnet.hole_groups import also_hidden, group_holes
from blindnet.rescore_rule import TERMS, Cases, Rule, fit_rule
from scenekd.errors import UserError
from scenekd.evaluation.detection import voc_ap
from scenekd.evaluation.statistics import paired_bootstrap

CLASSES = ("a", "b", "c")


def cases(count: int, probabilities, seed: int = 0) -> Cases:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    return Cases(
        image=np.arange(count) // 4,
        labels=labels,
        scores=rng.uniform(0.01, 0.99, count),
        probabilities=np.broadcast_to(np.asarray(probabilities, float), (count, 3)).copy(),
        share=rng.uniform(0.01, 0.4, count),
        others=rng.integers(0, 4, count).astype(float),
    )


def simulated(count: int, strength: float) -> tuple[Cases, np.ndarray]:
    """Detections that are right with logit = logit(score) + strength · log(p / mean of p)."""
    rng = np.random.default_rng(5)
    own = cases(count, rng.dirichlet(np.ones(3), count))
    ratio = np.log(own.probabilities / own.probabilities.mean(axis=0))[np.arange(count), own.labels]
    return own, rng.random(count) < expit(logit(own.scores) + strength * ratio)


@pytest.mark.parametrize("probabilities", [[1 / 3] * 3, [0.7, 0.2, 0.1]])
def test_a_context_that_knows_nothing_changes_no_score(probabilities) -> None:
    """Whatever the terms, whatever was fitted, to the last bit: also scores that are nearly equal, 0 and 1."""
    seen, right = simulated(200, 1.0)
    for rule in (
        fit_rule(cases(80, probabilities), np.arange(80) % 3 == 0, CLASSES, TERMS),
        dataclasses.replace(fit_rule(seen, right, CLASSES, TERMS), marginal=tuple(probabilities)),
    ):
        test = cases(50, probabilities, seed=1)
        test.scores[:4] = 0, 1, 1 - 1e-16, 0.3
        assert rule.rescore(test).tolist() == test.scores.tolist()


def test_the_weights_are_found() -> None:
    """The simulation's own: 1 for the score's logit, 0.8 for the context's logarithm. With 20,000 cases their standard
    errors are about 0.02; the regularisation pulls a little to 1 and 0."""
    rule = fit_rule(*simulated(20_000, 0.8), CLASSES)
    assert rule.score == pytest.approx(1, abs=0.08) and rule.weights[0] == pytest.approx(0.8, abs=0.08)
    assert rule.fitted_on[0] == 20_000 and rule.fitted_on[2] == 5_000


def test_a_context_that_misleads_is_not_turned_round() -> None:
    rule = fit_rule(*simulated(2000, -1.0), CLASSES)
    assert rule.weights == (0.0,)
    test = cases(20, [0.9, 0.05, 0.05], seed=2)
    assert rule.rescore(test).tolist() == test.scores.tolist()


def test_the_new_score_is_what_the_detector_alone_would_need() -> None:
    # a = 2, b = 3, p / m = 0.6 / 0.3 = 2 for class 0: logit 0.5 = 0, so 0 + 3 · log 2 / 2 = log 2^1.5
    rule = Rule(CLASSES, 2.0, (3.0,), (), (0.3, 0.3, 0.4), (0, 0), (1, 1), 0.1, (1, 1, 1))
    one = dataclasses.replace(cases(1, [0.6, 0.3, 0.1]), labels=np.array([0]), scores=np.array([0.5]))
    assert rule.rescore(one)[0] == pytest.approx(2**1.5 / (1 + 2**1.5))
    # Where nothing is known, nothing changes.
    silent = dataclasses.replace(one, probabilities=np.full((1, 3), np.nan))
    assert rule.rescore(silent)[0] == 0.5


def test_the_rank_of_a_class() -> None:
    # p / m = 2, 1, 0.25: class 0 is above both, class 1 above one and below one, class 2 below both: 1, 0, −1.
    rule = Rule(CLASSES, 1.0, (0.0, 1.0), ("rank",), (0.3, 0.3, 0.4), (0, 0), (1, 1), 0.1, (1, 1, 1))
    three = dataclasses.replace(cases(3, [0.6, 0.3, 0.1]), labels=np.arange(3), scores=np.full(3, 0.5))
    assert rule.rescore(three) == pytest.approx(expit([1.0, 0.0, -1.0]))


def test_the_truth_as_context_raises_ap() -> None:
    """Ten images with one object of class 0 or 1, found twice at the same place, once as either class; the wrong class
    scores higher in half of them. Alone: AP is below 1. With the true one-hot the right ones come first: AP 1."""
    truth = np.arange(10) % 2
    image, labels = np.repeat(np.arange(10), 2), np.tile([0, 1], 10)
    right = labels == truth[image]
    scores = np.where(right, 0.6, np.where(image < 5, 0.8, 0.4)) + 0.001 * image
    own = Cases(image, labels, scores, np.eye(2)[truth[image]], np.full(20, 0.1), np.ones(20))

    def ap(values: np.ndarray) -> np.ndarray:
        box = np.array([[0.0, 0, 10, 10]])
        found = [
            {"boxes": box.repeat(2, 0), "labels": labels[image == i], "scores": values[image == i]}
            for i in range(10)
        ]
        return voc_ap(found, [{"boxes": box, "labels": truth[i : i + 1]} for i in range(10)], num_classes=2)

    rule = fit_rule(own, right, ("a", "b"))
    assert (ap(scores) < 0.8).all() and ap(rule.rescore(own)) == pytest.approx([1, 1])


def test_a_rule_survives_its_file() -> None:
    rule = fit_rule(*simulated(300, 1.0), CLASSES, ("size",))
    assert Rule.from_dict(json.loads(json.dumps(rule.as_dict())), "rule.json") == rule
    for content in ([], {}, {**rule.as_dict(), "weights": [1.0]}, {**rule.as_dict(), "score": "much"}):
        with pytest.raises(UserError, match=r"rule\.json: no rule"):
            Rule.from_dict(content, "rule.json")


def test_what_no_rule_can_be_fitted_on() -> None:
    own, right = simulated(40, 1.0)
    for flags in (np.zeros(40, bool), np.ones(40, bool)):
        with pytest.raises(UserError, match="right and wrong ones"):
            fit_rule(own, flags, CLASSES)
    with pytest.raises(UserError, match="0 of 0 detections"):
        fit_rule(own.take(np.zeros(40, bool)), right[:0], CLASSES)
    with pytest.raises(UserError, match="TERMS: 'colour' is none of"):
        fit_rule(own, right, CLASSES, ("colour",))
    own.scores[3] = 7.5
    with pytest.raises(UserError, match=r"a score of 7\.5"):
        fit_rule(own, right, CLASSES)


def test_a_paired_interval() -> None:
    """Means of the records: whatever is drawn, the second system is better by exactly 0.5."""
    values = np.random.default_rng(0).normal(size=30)

    def mean(weights: np.ndarray, more: float = 0.0) -> np.ndarray:
        return np.asarray(weights @ values / weights.sum(axis=1) + more)

    low, high = paired_bootstrap(mean, lambda weights: mean(weights, 0.5), 30, resamples=50)
    assert float(low) == pytest.approx(0.5) == pytest.approx(float(high))


def _holes(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    holes = np.zeros((len(boxes), 48, 48), bool)
    for hole, (x1, y1, x2, y2) in zip(holes, boxes):
        hole[y1:y2, x1:x2] = True
    return holes


def test_what_overlaps_is_hidden_together() -> None:
    """Two objects, three detections of each: in two passes each loses nothing but its duplicates' rims."""
    first, second = (2, 2, 20, 20), (26, 26, 46, 46)
    holes = _holes(first, second, (3, 2, 21, 20), (25, 26, 46, 46), (2, 3, 20, 21), (26, 25, 46, 46))
    group = group_holes(holes, np.array([0.9, 0.8, 0.5, 0.4, 0.3, 0.2]), 2)
    assert group[0] == group[2] == group[4] != group[1] == group[3] == group[5]


def test_the_heavy_stand_alone() -> None:
    # Three regions of one size apart from one another: together the two light ones lose least.
    holes = _holes((0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30))
    group = group_holes(holes, np.array([0.01, 1.0, 0.02]), 2)
    assert group[0] == group[2] != group[1]


def test_few_regions_have_a_pass_each() -> None:
    assert group_holes(_holes((0, 0, 5, 5), (0, 0, 5, 5)), np.ones(2), 3).tolist() == [0, 1]
    assert group_holes(np.zeros((0, 8, 8), bool), np.zeros(0), 2).tolist() == []
    for groups, weights in ((0, np.ones(1)), (1, np.ones(2))):
        with pytest.raises(ValueError, match="groups for 1 regions"):
            group_holes(_holes((0, 0, 5, 5)), weights, groups)


def test_training_hides_more_only_where_it_is_asked_to() -> None:
    boxes = np.array([[10.0, 10, 20, 20], [30, 30, 44, 40]])
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert also_hidden(boxes, 0, "box", (48, 48), rng, most=0) is None
    assert rng.bit_generator.state == before
    found = [also_hidden(boxes, 0, "box", (48, 48), rng, most=2) for _ in range(60)]
    counts = [0 if one is None else int(one.sum()) for one in found]
    assert counts.count(0) > 5 and max(counts) > 140  # 0, 1 or 2 as likely; one box has 100 or 140 pixels
    assert any(one is not None and one[30:40, 30:44].all() for one in found)  # the other object
