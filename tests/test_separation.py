"""Separation of features by hand and against scikit-learn, and its pictures."""

import math

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import calinski_harabasz_score, silhouette_score

from scenekd.evaluation.separation import on_plane, plane, separation
from scenekd.visualize_outliers import score_chart, separation_chart


def groups(shift):
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (60, 5)), rng.normal(0, 2, (40, 5)) + shift


@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0])
def test_against_scikit_learn(shift):
    inliers, outliers = groups(shift)
    both, side = np.concatenate([inliers, outliers]), np.repeat([0, 1], [60, 40])
    found = separation(inliers, outliers)
    assert found["silhouette"] == pytest.approx(silhouette_score(both, side))
    # Calinski and Harabasz's index is (tr B / (2 − 1)) / (tr W / (N − 2)).
    assert found["fisher_ratio"] == pytest.approx(calinski_harabasz_score(both, side) / 98)


def test_by_hand():
    # On a line: inliers 0, 2; outliers 10, 12. Own distance 2 each; to the other group 11, 9, 9, 11.
    # Silhouettes 9/11, 7/9, 7/9, 9/11. Means 1 and 11 around 6: between 2 · 25 + 2 · 25, within 4 · 1.
    found = separation([[0.0], [2.0]], [[10.0], [12.0]])
    assert found == pytest.approx({"silhouette": (9 / 11 + 7 / 9) / 2, "fisher_ratio": 25})
    assert separation([[0.0]] * 2, [[1.0]] * 2) == {"silhouette": 1, "fisher_ratio": math.inf}
    assert separation([[0.0]] * 2, [[0.0]] * 2) == {"silhouette": 0, "fisher_ratio": 0}


def test_large_groups_are_thinned(monkeypatch):
    monkeypatch.setattr("scenekd.evaluation.separation._MOST", 20)
    inliers, outliers = groups(2.0)
    thin = silhouette_score(np.concatenate([inliers[::3], outliers[::2]]), np.repeat([0, 1], 20))
    assert separation(inliers, outliers)["silhouette"] == pytest.approx(thin)


def test_pca_against_scikit_learn():
    values = groups(1.0)[0] * np.arange(1, 6)
    found = on_plane(values, plane(values))
    wanted = PCA(2).fit_transform(values)
    np.testing.assert_allclose(found * np.sign((found * wanted).sum(axis=0)), wanted, atol=1e-9)


def test_lda_against_scikit_learn():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 25)
    values = rng.normal(0, 1, (100, 6)) + 3 * rng.normal(0, 1, (4, 6))[labels]
    oracle = LinearDiscriminantAnalysis(solver="eigen", shrinkage=None, n_components=2).fit(values, labels)
    found, wanted = (
        on_plane(values, plane(values, labels, view="lda", shrinkage=0.0)),
        oracle.transform(values),
    )
    # Each direction's sign and length are free.
    for one, other in zip(found.T, wanted.T):
        assert abs(np.corrcoef(one, other)[0, 1]) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize(
    "call",
    [
        lambda: separation([[0.0]], [[1.0], [2.0]]),
        lambda: separation([[0.0], [1]], [[1.0, 2], [2, 1]]),
        lambda: separation([[0.0], [math.nan]], [[1.0], [2.0]]),
        lambda: plane([[0.0], [1]]),
        lambda: plane(np.eye(3), view="tsne"),
        lambda: plane(np.eye(3), [0, 0, 1], view="lda"),
    ],
)
def test_refuses(call):
    with pytest.raises(ValueError):
        call()


def test_charts():
    inliers, outliers = groups(3.0)
    labels = np.arange(60) % 3
    place = plane(inliers)
    views = on_plane(inliers, place), labels, on_plane(outliers, place)
    named, plain = (
        separation_chart({"student": views, "without triplet": views}, ["fox", "bear", "lion"]),
        separation_chart({"student": (views[0], None, views[2])}),
    )
    histogram = score_chart(
        {"energy": (inliers[:, 0], outliers[:, 0], 1.0), "knn": (inliers[:, 1], outliers[:, 1], None)}
    )
    assert all(picture.startswith(b"\x89PNG") for picture in (named, plain, histogram))
    assert len({named, plain, histogram}) == 3
