"""envise's rules without a network: convergence, threshold, gate, drift; the replay buffer; what ONLINE refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from envise_parts import envise_config

from envise.options import OnlineOptions
from envise.phases import ANSWER, CALIBRATE, LEARN, Phases
from envise.replay import ReplayBuffer
from envise.scores import gate_threshold
from scenekd.errors import UserError


def _phases(classes=3, **online):
    return Phases(OnlineOptions.from_config(envise_config(ONLINE=online)), classes)


def _learn(phases, agreed, start=0):
    agreed = np.array(agreed, bool)
    phases.learnt(start + len(agreed) - 1, agreed, np.arange(len(agreed)) % 2)


def test_convergence_needs_successive_windows():
    """Windows of 4 at .75, two in a row: 3/4, 2/4 and 3/4 are not enough, 4/4 after it is; batches and windows need not
    fit."""
    phases = _phases(WINDOW=4, WINDOWS=2, AGREEMENT=0.75)
    _learn(phases, [1, 1, 1, 0, 1, 0])  # the second window is open
    assert phases.windows == [0.75]
    _learn(phases, [0, 1, 0, 1], 6)  # 1 0 | 0 1 → 2/4; then 0 1 …
    assert phases.windows == [0.75, 0.5]
    _learn(phases, [1, 1], 10)  # … 1 1 → 3/4
    assert phases.windows == [0.75, 0.5, 0.75]
    assert phases.phase == LEARN
    _learn(phases, [1, 1, 1, 1], 12)
    assert phases.phase == CALIBRATE
    assert phases.changes == [(15, CALIBRATE, "agreement 1.000")]


def test_threshold_of_inliers():
    """The lowest of the scores 1 … 20 that a share of .9, 18 of 20, does not exceed is 18; .95 of them are 19, although
    the product .95 · 20 need not be 19 in floating point; .91 need 18.2, so 19."""
    scores = np.arange(20.0, 0.0, -1.0)
    for tpr, expected in ((0.9, 18), (0.95, 19), (0.91, 19)):
        assert gate_threshold(scores, _phases(TPR=tpr)._options) == expected


def test_calibration_takes_inlier_classes_alone():
    """Class 2 makes 1 of 20 of the answers, below INLIER_MIN_SHARE .1: its high scores move no threshold."""
    phases = _phases(WINDOW=20, AGREEMENT=0.5, CALIBRATION=12, TPR=0.8, INLIER_MIN_SHARE=0.1)
    labels = np.array([0] * 10 + [1] * 9 + [2])
    phases.learnt(19, np.ones(20, bool), labels)
    assert phases.inlier_classes().tolist() == [True, True, False]
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 5.0, 6.0])
    labels = np.array([0] * 5 + [1] * 5 + [2] * 2)
    phases.calibrated(31, scores, labels, labels)
    # Ten inlier scores, 8 of which lie at or below .8
    assert phases.phase == ANSWER
    assert phases.threshold == 0.8
    gate = np.array([0.8, 0.81, np.nan]), np.array([0, 0, 0])
    assert phases.is_unfamiliar(*gate).tolist() == [False, True, True]
    assert phases.is_unfamiliar(np.array([0.1]), np.array([2])).tolist() == [False]  # unless HAND_ON_RARE


def test_what_the_student_takes_for_rare_is_handed_on():
    """With HAND_ON_RARE an answer of class 2 goes to the teacher, whatever its score, and such samples of the
    calibration move no threshold: of .1 … .8 four fifths are .7, the seventh."""
    online = {"WINDOW": 20, "AGREEMENT": 0.5, "CALIBRATION": 10, "TPR": 0.8, "INLIER_MIN_SHARE": 0.1}
    phases = _phases(**online, HAND_ON_RARE=True)
    phases.learnt(19, np.ones(20, bool), np.array([0] * 10 + [1] * 9 + [2]))
    answers = np.array([0] * 4 + [1] * 4 + [2] * 2)
    phases.calibrated(29, np.arange(1, 11) / 10, np.array([0] * 4 + [1] * 6), answers)
    assert phases.threshold == 0.7
    scores = np.array([0.7, 0.71, 0.0])
    assert phases.is_unfamiliar(scores, np.array([0, 0, 2])).tolist() == [False, True, True]


def test_disagreement_lowers_the_threshold():
    """Of scores 1 … 10 the student is wrong at 5 and 9: below TPR's 9, a share of 2 of 9. A fifth allows up to 8 (1 of
    8), a tenth up to 4; one half changes nothing; without any disagreement allowed 4 as well. Scores that are no number
    and their samples do not count, and a given threshold is what it is."""
    scores, agreed = np.arange(1.0, 11), ~np.isin(np.arange(1, 11), (5, 9))
    for allowed, expected in ((1.0, 9), (0.5, 9), (0.2, 8), (0.1, 4), (0.0, 4)):
        options = _phases(TPR=0.9, MAX_DISAGREEMENT=allowed)._options
        assert gate_threshold(scores, options, agreed) == expected
        more = np.append(scores, np.nan), np.append(agreed, False)
        assert gate_threshold(more[0], options, more[1]) == expected
    assert gate_threshold(scores, _phases(THRESHOLD=(6.0,), MAX_DISAGREEMENT=0.1)._options, agreed) == 6
    with pytest.raises(UserError, match="ONLINE.MAX_DISAGREEMENT: of the 10 inliers .* more than 10.0%"):
        gate_threshold(scores, _phases(TPR=0.9, MAX_DISAGREEMENT=0.1)._options, np.arange(10) > 1)


@pytest.mark.parametrize(
    ("scores", "online", "match"),
    [
        ([0.0] * 50, {}, "ONLINE.TPR: .* is 0, which no sample exceeds"),
        (
            [0.1, 0.2],
            {"THRESHOLD": (0.5,)},
            "ONLINE.THRESHOLD: the outlier threshold is 0.5, which no sample exceeds .the highest is 0.2.",
        ),
        (
            [0.1, 0.2],
            {"THRESHOLD": (0.05,)},
            "every sample exceeds 0.05, the student would never answer; raise it",
        ),
        ([], {}, "no sample of an inlier class with a finite score"),
        ([np.nan], {}, "no sample of an inlier class with a finite score"),
    ],
)
def test_thresholds_that_are_refused(scores, online, match):
    with pytest.raises(UserError, match=match) as caught:
        gate_threshold(np.array(scores), _phases(**online)._options)
    assert "\n" not in str(caught.value)


def test_given_threshold():
    assert gate_threshold(np.array([0.1, 0.2]), _phases(THRESHOLD=(0.15,))._options) == 0.15


def test_drift():
    """Only full windows speak: 2 of 4 audits right is below .6, 3 of 4 is not; 3 of 5 gated exceed .5."""
    online = {"AUDIT_WINDOW": 4, "AUDIT_AGREEMENT": 0.6, "GATE_WINDOW": 5, "GATE_SHARE": 0.5}
    familiar = np.zeros(2, bool)
    phases = _phases(**online)
    assert not phases.answered(1, familiar, [False, False])  # two audits of four: too early
    assert phases.answered(3, familiar, [True, True])
    assert phases.changes == [(3, LEARN, "audit agreement 0.500")]
    phases = _phases(**online)
    assert not phases.answered(3, familiar, [False, True, True, True])
    phases = _phases(**online)
    assert not phases.answered(3, np.array([1, 1, 1, 1], bool), [])
    assert phases.answered(4, np.array([0], bool), [])
    assert phases.changes == [(4, LEARN, "share unfamiliar 0.800")]


def test_state_of_phases():
    """Half a window, the counts and the queues go on."""
    online = {"WINDOW": 4, "AGREEMENT": 0.75, "AUDIT_WINDOW": 2}
    first, second = _phases(**online), _phases(**online)
    _learn(first, [1, 1])
    first.answered(2, np.array([True]), [True])
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["audits"] == [True]
    for phases in (first, second):
        _learn(phases, [1, 0], 2)
    assert first.changes == second.changes == [(3, CALIBRATE, "agreement 0.750")]


def test_reservoir_is_uniform():
    """200 buffers of 10 from 40 samples: each sample is kept with probability 1/4; the mean over 200 has standard
    deviation sqrt(.25 · .75 / 200) = .031, so that 40 of them stay within four of it."""
    kept = torch.zeros(40)
    for seed in range(200):
        buffer = ReplayBuffer(10, seed)
        for start in range(0, 40, 8):
            numbers = torch.arange(start, start + 8)
            buffer.add(numbers.view(8, 1, 1, 1).to(torch.uint8), numbers.view(8, 1).float())
        images, logits = buffer.draw(10, 0)
        assert (images.flatten() == logits.flatten()).all()  # the answer stays with its image
        assert len(images.unique()) == 10
        kept[images.flatten().long()] += 1
    assert ((kept / 200 - 0.25).abs() < 0.124).all()


def test_replay_draws():
    """Different samples, as many as there are at most; equal steps draw equally, others differ; an empty one gives
    none."""
    buffer = ReplayBuffer(20, 3)
    assert buffer.draw(5, 0) is None
    buffer.add(torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1), torch.zeros(20, 2))
    first, again, other = (buffer.draw(8, step)[0].flatten().tolist() for step in (1, 1, 2))
    assert len(set(first)) == 8
    assert first == again != other
    assert sorted(buffer.draw(99, 0)[0].flatten().tolist()) == list(range(20))
    nothing = ReplayBuffer(0, 3)
    nothing.add(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.zeros(2, 2))
    assert nothing.draw(5, 0) is None


def test_renewed_reservoir():
    """After 10,000 samples one of a hundred new ones would hardly enter a buffer of 10 (each 1/1000); renewed, the
    expected number of new ones kept is 10 · (1 − 10/110) = 9.1."""
    buffer = ReplayBuffer(10, 0)
    buffer.add(torch.zeros(10000, 1, 1, 1, dtype=torch.uint8), torch.zeros(10000, 1))
    buffer.renew()
    buffer.add(torch.ones(100, 1, 1, 1, dtype=torch.uint8), torch.ones(100, 1))
    assert buffer.draw(10, 0)[0].sum() >= 6


@pytest.mark.parametrize(
    ("online", "match"),
    [
        ({"BATCH_SIZE": 0}, "ONLINE.BATCH_SIZE: 0 must be at least 1"),
        ({"KD_WEIGHT": -1.0}, "ONLINE.KD_WEIGHT: -1.0 must be at least 0"),
        ({"AGREEMENT": 1.5}, "ONLINE.AGREEMENT: 1.5 is no share between 0 and 1"),
        ({"MAX_DISAGREEMENT": 2.0}, "ONLINE.MAX_DISAGREEMENT: 2.0 is no share between 0 and 1"),
        ({"TPR": 1.0}, "ONLINE.TPR: 1.0 must lie between 0 and 1: at 1 no sample is unfamiliar"),
        ({"KD_TEMPERATURE": 0.0}, "ONLINE.KD_TEMPERATURE: 0.0 must be above 0"),
        ({"CE_WEIGHT": 0.0}, "CE_WEIGHT and KD_WEIGHT are both 0"),
        ({"THRESHOLD": (1.0, 2.0)}, "ONLINE.THRESHOLD: .* holds several"),
        ({"THRESHOLD": ("a",)}, "ONLINE.THRESHOLD: .* is no"),
    ],
)
def test_options_that_are_refused(online, match):
    with pytest.raises(UserError, match=match):
        OnlineOptions.from_config(envise_config(ONLINE=online))
