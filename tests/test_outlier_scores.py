"""Outlier scores by hand, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import ShrunkCovariance
from sklearn.neighbors import NearestNeighbors
from torch import nn

from scenekd.errors import UserError
from scenekd.evaluation.ood import outlier_metrics
from scenekd.outliers import SCORES, build_outlier_score, check_threshold, fit_threshold

LN3 = math.log(3)
ANY = torch.zeros(1, 2)


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(weight, bias=None):
    head = nn.Linear(len(weight[0]), len(weight), bias=bias is not None).double()
    head.weight.data = torch.tensor(weight, dtype=torch.float64)
    if bias is not None:
        head.bias.data = torch.tensor(bias, dtype=torch.float64)
    return head


def clusters(seed=0, shift=0.0, count=40):
    """Three classes around the corners of a triangle, labels, and features ``shift`` outside of its plane."""
    corners = torch.tensor([[4.0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]], dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(count)
    features = corners[labels] + 0.5 * rand(3 * count, 4, seed=seed)
    features[:, 3] += shift
    return features, labels


HEAD = linear([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], [0.0, 0, 0])


@pytest.mark.parametrize(
    ("name", "options", "logits", "expected"),
    [
        ("max_softmax", {}, [LN3, 0], 1 / 4),  # softmax (3/4, 1/4)
        ("max_softmax", {}, [0, 0, 0, 0], 3 / 4),
        ("max_softmax", {}, [40, 0], math.exp(-40)),  # 1 − 1/(1 + e⁻⁴⁰), where 1 − p would be 0
        ("max_logit", {}, [LN3, 0], -LN3),
        ("energy", {}, [LN3, 0], -math.log(4)),  # −ln(3 + 1)
        ("energy", {"temperature": 2.0}, [2 * LN3, 0], -2 * math.log(4)),
        ("odin", {"temperature": 2.0}, [2 * LN3, 0], 1 / 4),  # softmax of (ln 3, 0)
    ],
)
def test_logit_scores(name, options, logits, expected):
    score = build_outlier_score(name, **options)
    score.fit(ANY, torch.tensor([logits]))  # nothing to learn, but it may be asked to
    found = score.score(ANY, torch.tensor([logits], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=0)


def test_odin_moves_images():
    # Logits (w·x, 0) with w·x > 0: the likeliest class is 0, and its log-probability rises with w·x:
    # each pixel moves by ε · range = .01 · 100 = 1 along the sign of its weight, where that is 0 not at all.
    weight = torch.tensor([2.0, -3.0, 0.0])
    net = lambda x: torch.stack([x @ weight, torch.zeros(len(x))], dim=1)  # noqa: E731
    score = build_outlier_score("odin", temperature=10.0, epsilon=0.01, pixel_range=100.0)
    with torch.inference_mode():
        images = torch.tensor([[10.0, 1, 1], [1, 10, 1]])
        moved = score.prepare(net, images)
    # The second image has w·x = −28: class 1, likelier the smaller w·x is.
    assert moved.tolist() == [[11, 0, 1], [0, 11, 1]]
    assert build_outlier_score("max_softmax").prepare(net, images) is images
    assert build_outlier_score("odin", epsilon=0.0).prepare(net, images) is images


def test_mahalanobis_by_hand():
    # Two classes with means (0, 0) and (10, 0); deviations ±1 along x and ±2 along y in turn.
    # Σ = diag(½ · 1, ½ · 4) = diag(.5, 2). Of (1, 2): 1/.5 + 4/2 = 4. Of (9, 0): 1/.5 = 2.
    offsets = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    features = torch.cat([offsets, offsets + torch.tensor([10.0, 0])])
    labels = torch.tensor([0] * 4 + [7] * 4)  # classes that do not occur have no mean
    score = build_outlier_score("mahalanobis", shrinkage=0.0)
    score.fit(features, torch.zeros(8, 9), labels)
    found = score.score(torch.tensor([[1.0, 2], [9, 0]]), torch.zeros(2, 9))
    assert found.tolist() == pytest.approx([4, 2])


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_mahalanobis_against_scikit_learn(shrinkage):
    features, labels = clusters()
    score = build_outlier_score("mahalanobis", shrinkage=shrinkage)
    # Without labels the network's own answers stand in: here they are the labels.
    score.fit(features, nn.functional.one_hot(labels, 3).double())
    means = torch.stack([features[labels == c].mean(dim=0) for c in range(3)])
    oracle = ShrunkCovariance(shrinkage=shrinkage, assume_centered=True).fit(
        (features - means[labels]).numpy()
    )
    test = rand(20, 4, seed=5)
    expected = np.min([oracle.mahalanobis((test - mean).numpy()) for mean in means], axis=0)
    np.testing.assert_allclose(score.score(test, torch.zeros(20, 3)), expected, rtol=1e-9)


def test_mahalanobis_refuses_singular_covariance():
    features = torch.zeros(6, 3)
    features[:, 0] = torch.arange(6)
    score = build_outlier_score("mahalanobis", shrinkage=0.0)
    with pytest.raises(ValueError, match="mahalanobis: the features' covariance is singular"):
        score.fit(features, torch.zeros(6, 2))


def test_vim_by_hand():
    # No bias: the origin is 0. The inliers' second moments are largest along x (9) against y (1): the rest is y.
    # Mean |y| = 1, mean of the largest logit = |x| = 3: a virtual logit is 3 · |y|. Of (2, 5): 15 − ln(e² + e⁻²).
    head = linear([[1.0, 0], [-1.0, 0]])
    features = torch.tensor([[3.0, 1], [-3, -1], [3, -1], [-3, 1]], dtype=torch.float64)
    score = build_outlier_score("vim", head=head, dimensions=1)
    score.fit(features, head(features))
    asked = torch.tensor([[2.0, 5]], dtype=torch.float64)
    expected = 15 - math.log(math.exp(2) + math.exp(-2))
    assert score.score(asked, head(asked)).item() == pytest.approx(expected)


def test_vim_measures_from_where_the_logits_are_zero():
    # A head with bias −W o has logits 0 at o: everything moved by o is scored the same.
    weight = [[1.0, 0.5, 0, 0.2], [0.3, 1, 0.2, 0]]
    origin, features = torch.tensor([1.0, -2, 0.5, 3], dtype=torch.float64), rand(30, 4)
    inside = torch.linalg.pinv(torch.tensor(weight, dtype=torch.float64)) @ (
        torch.tensor(weight, dtype=torch.float64) @ origin
    )
    found = []
    for moved in (torch.zeros(4, dtype=torch.float64), inside):
        head = linear(weight, (-torch.tensor(weight, dtype=torch.float64) @ moved).tolist())
        score = build_outlier_score("vim", head=head)
        score.fit(features + moved, head(features + moved))
        found.append(score.score(features + moved, head(features + moved)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["vim", "attention"])
def test_a_head_that_learns_on_after_the_score_was_made(name):
    """What counts is the head as it is when the score is fitted, not what it was when the score was made."""
    maps, found = rand(20, 4, 2, 2), []
    for late in (True, False):
        head = linear(rand(3, 4).tolist(), [0.0, 0, 0])
        score = build_outlier_score(name, head=head) if late else None
        head.weight.data, head.bias.data = rand(3, 4, seed=1), rand(3, seed=2)
        score = score or build_outlier_score(name, head=head)
        logits = head(maps.mean(dim=(2, 3)))
        score.fit(maps, logits)
        found.append(score.score(maps, logits))
    assert torch.equal(*found)


def test_knn_against_scikit_learn(monkeypatch):
    monkeypatch.setattr("scenekd.outliers.features._PAIRS_AT_ONCE", 100)  # several parts
    bank, asked = rand(50, 6), rand(17, 6, seed=1)
    score = build_outlier_score("knn", k=4)
    score.fit(bank, torch.zeros(50, 2))
    unit = [nn.functional.normalize(values, dim=1).numpy() for values in (bank, asked)]
    expected = NearestNeighbors(n_neighbors=4).fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    np.testing.assert_allclose(score.score(asked, torch.zeros(17, 2)), expected, rtol=1e-6, atol=1e-7)
    # A bank of 5 holds every tenth.
    small, tenth = (build_outlier_score("knn", k=4, **more) for more in ({"bank": 5}, {}))
    small.fit(bank, torch.zeros(50, 2))
    tenth.fit(bank[::10], torch.zeros(5, 2))
    assert torch.equal(small.score(asked, torch.zeros(17, 2)), tenth.score(asked, torch.zeros(17, 2)))


# Two channels on a row of four pixels; classes 0 and 1 look at one channel each, 2 at both.
LOOKS = linear([[1.0, 0], [0, 1.0], [1.0, 1.0]])


def test_attention_by_hand():
    # Channel 0 is active on the left, 1 on the right. Image 1: class 0 first, 1 second: maps without overlap, squared
    # distance 2. Image 2: class 0 first, 2 second; channel 1 is off, so both maps are channel 0: distance 0.
    maps = torch.tensor([[[[3.0, 3, 0, 0]], [[0, 0, 2, 2]]], [[[3.0, 3, 0, 0]], [[0, 0, 0, 0]]]])
    logits = torch.tensor([[3.0, 2, 0], [3, 0, 2]])
    score = build_outlier_score("attention", head=LOOKS)
    assert score.score(maps, logits).tolist() == pytest.approx([-2, 0])
    cosine = build_outlier_score("attention", head=LOOKS, distance="cosine")
    assert cosine.score(maps, logits).tolist() == pytest.approx([-1, 0])
    # No evidence for the answer anywhere: as if both maps were the same.
    assert score.score(-maps[:1], logits[:1]).item() == 0


def test_attention_against_class_mean():
    # Inliers of class 0 look left or right, (1, 0) and (0, 1): mean (½, ½), of length 1 (1, 1)/√2. A map (1, 0) is
    # ‖(1, 0) − (1, 1)/√2‖² = 2 − √2 away. Class 1 has no inlier, and the mean of all is the same one.
    inliers = torch.tensor([[[[1.0, 0]], [[0, 0]]], [[[0.0, 1]], [[0, 0]]]])
    score = build_outlier_score("attention", head=LOOKS, against="class_mean")
    score.fit(inliers, torch.tensor([[2.0, 1, 0], [2, 1, 0]]))
    asked = torch.tensor([[[[1.0, 0]], [[0, 1]]], [[[1.0, 0]], [[1, 0]]]])
    found = score.score(asked, torch.tensor([[2.0, 1, 0], [1, 2, 0]]))
    assert found.tolist() == pytest.approx([2 - math.sqrt(2)] * 2)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_finds_what_is_far(name):
    """Higher is more unfamiliar; what was learned can be saved and taken up; the same data give the same scores."""
    features, labels = clusters()
    strange = 0.3 * clusters(seed=1)[0] + torch.tensor([0.0, 0, 0, 3.0])
    options = {"steps": 150} if SCORES[name].sees_outliers else {}
    found = []
    sides = [
        (x, HEAD(x)) for x in (features, strange, 0.3 * clusters(seed=2)[0] + torch.tensor([0, 0, 0, 3.0]))
    ]
    if name == "attention":
        # One pixel for each class: an outlier shows its evidence for all in one place.
        sides = [(_spread(x, i), told) for i, (x, told) in enumerate(sides)]
    for _ in range(2):
        score = build_outlier_score(name, head=HEAD if name in ("vim", "attention") else None, **options)
        more = {"outliers": sides[2][0]} if score.sees_outliers else {}
        score.fit(*sides[0], labels, **more)
        found.append([score.score(*side) for side in sides[:2]])
    again = build_outlier_score(name, head=HEAD if name in ("vim", "attention") else None, **options)
    again.load_fitted({key: value.clone() for key, value in score.fitted.items()})
    assert outlier_metrics(*found[0]).auroc > 0.9
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][1], again.score(*sides[1]))
    assert found[0][0].dtype == torch.float64 and found[0][0].shape == (120,)


def _spread(features, outlier):
    maps = features.new_zeros(len(features), 4, 1, 4)
    for d in range(4):
        maps[:, d, 0, 0 if outlier else d] = 4 * features[:, d]
    return maps


def test_maps_are_averaged_where_vectors_are_wanted():
    maps, logits = rand(40, 4, 3, 2), rand(40, 3)
    found = []
    for features in (maps, maps.mean(dim=(2, 3))):
        score = build_outlier_score("knn", k=3)
        score.fit(features, logits)
        found.append(score.score(features, logits))
    assert torch.equal(*found)


def test_discrepancy_of_heads():
    # Heads at (0, 0) and (ln 3, 0): probabilities (½, ½) and (¾, ¼): the sum of differences is ½.
    score = build_outlier_score("classifier_discrepancy")
    one = torch.ones(1, dtype=torch.float64)
    weight = torch.tensor([[[0.0], [0.0]], [[LN3], [0.0]]], dtype=torch.float64)
    score.load_fitted({"mean": 0 * one, "deviation": one, "weight": weight, "bias": 0 * weight[..., 0]})
    assert score.score(torch.ones(1, 1), torch.zeros(1, 2)).item() == pytest.approx(0.5)


def test_score_of_the_ensemble():
    # Of three classes each head leaves one out. Equal logits: p = (½, ½), H = ln 2: Σ_k H − max p = 3 (ln 2 − ½).
    score = build_outlier_score("leave_out_ensemble")
    one = torch.ones(1, dtype=torch.float64)
    state = {"mean": 0 * one, "deviation": one, "weight": torch.zeros(3, 3, 1).double()}
    state |= {"bias": torch.zeros(3, 3).double(), "left_out": torch.eye(3).bool(), "temperature": one}
    score.load_fitted(state)
    assert score.score(torch.ones(1, 1), torch.zeros(1, 3)).item() == pytest.approx(3 * (math.log(2) - 0.5))


def test_those_that_see_outliers_are_told_apart():
    seen = {name for name, score in SCORES.items() if score.sees_outliers}
    assert seen == {"classifier_discrepancy", "leave_out_ensemble"}
    features, labels = clusters()
    for name in seen:
        with pytest.raises(ValueError, match=f"{name} learns from outliers"):
            build_outlier_score(name).fit(features, HEAD(features), labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_outlier_score("msp"), "outlier score 'msp' is not known; choose one of max_softmax"),
        (lambda: build_outlier_score("vim"), "vim needs the network's linear head"),
        (lambda: build_outlier_score("knn", n=3), "knn has no option 'n'; its options: bank, k"),
        (lambda: build_outlier_score("max_logit", n=3), "its options: none"),
        (lambda: build_outlier_score("energy", temperature=0), "temperature must be positive"),
        (lambda: build_outlier_score("odin", epsilon=-1), "epsilon"),
        (lambda: build_outlier_score("mahalanobis", shrinkage=2), "shrinkage"),
        (lambda: build_outlier_score("vim", head=HEAD, dimensions=4), "dimensions must lie in 1…3"),
        (lambda: build_outlier_score("attention", head=HEAD, against="all"), "against must be one of"),
        (lambda: build_outlier_score("leave_out_ensemble", splits=1), "splits"),
        (lambda: build_outlier_score("knn").score(rand(3, 2), rand(3, 2)), "must be fitted"),
        (lambda: build_outlier_score("knn").fit(rand(3, 2), rand(3, 2)), "3 inliers for k = 10"),
        (lambda: build_outlier_score("energy").score(rand(3, 2), rand(2, 2)), "features must be"),
        (lambda: build_outlier_score("energy").score(rand(0, 2), rand(0, 2)), "there are no images"),
        (lambda: build_outlier_score("energy").score(rand(1, 2), rand(1, 2) * math.nan), "must be finite"),
        (
            lambda: build_outlier_score("attention", head=HEAD).score(rand(1, 4), rand(1, 3)),
            "needs feature maps",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# The threshold -----------------------------------------------------------------------------------------------


def test_threshold_from_inliers():
    # Of 0 … 99 the 95th smallest is 94: 95 of 100 do not exceed it. Of 20, .95 · 20 = 19: the value 18.
    assert fit_threshold(torch.arange(100.0).flip(0), tpr=0.95) == 94
    assert fit_threshold(range(20), tpr=0.95) == 18
    assert fit_threshold(np.arange(10), tpr=0.5) == 4
    scores = rand(999)
    kept = (scores <= fit_threshold(scores, tpr=0.9)).double().mean().item()
    assert 0.9 <= kept < 0.9 + 1 / 999


@pytest.mark.parametrize("scores", [[1.0] * 100, list(range(19))])
def test_a_threshold_that_no_inlier_exceeds(scores):
    with pytest.raises(UserError, match="which no sample exceeds"):
        fit_threshold(scores, tpr=0.95)


def test_threshold_refuses():
    with pytest.raises(
        UserError, match="the outlier threshold is 3, which no sample exceeds .the highest is 2"
    ):
        check_threshold(3.0, torch.tensor([1.0, 2.0]))
    for scores, tpr in (([], 0.95), ([math.nan], 0.5), (range(9), 1.0), (range(9), 0.0)):
        with pytest.raises(ValueError):
            fit_threshold(scores, tpr=tpr)
