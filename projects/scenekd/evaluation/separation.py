"""How far outliers lie from inliers among a network's features, and a view of it in two dimensions.

N: samples; D: channels of the features; K: groups.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist

from .arrays import to_numpy

_MOST = 2000  # samples of each side in the silhouette: all pairs are looked at
VIEWS = ("pca", "lda")


def separation(inliers: Any, outliers: Any) -> dict[str, float]:
    """Both measures of two groups of features.

    ``silhouette`` (Rousseeuw 1987): mean of (b − a) / max(a, b), a the mean distance to one's own group, b to the other
    one; −1…1; of evenly chosen 2000 of a larger group. ``fisher_ratio``: the scatter between the groups over that
    within, tr(S_b) / tr(S_w), ≥ 0; infinite where neither group varies, 0 where all is one point.

    Args:
        inliers, outliers: (N, D) finite, two samples or more.

    Raises:
        ValueError: shapes do not fit, too few samples, or features that are not finite.
    """
    groups = [_features(name, x) for name, x in (("inlier", inliers), ("outlier", outliers))]
    if groups[0].shape[1] != groups[1].shape[1]:
        raise ValueError(f"inliers and outliers have {groups[0].shape[1]} and {groups[1].shape[1]} features")
    between, within = _scatter(np.concatenate(groups), np.repeat([0, 1], [len(group) for group in groups]))
    apart, inside = float(np.trace(between)), float(np.trace(within))
    ratio = apart / inside if inside else math.inf if apart else 0.0
    return {"silhouette": _silhouette(*groups), "fisher_ratio": ratio}


def plane(features: Any, labels: Any = None, *, view: str = "pca", shrinkage: float = 0.01) -> np.ndarray:
    """(D + 1, 2): of x, its place on a plane is (x, 1) @ plane; the mean of ``features`` lies at (0, 0).

    ``pca``: the two directions of largest variance. ``lda``: those that part the classes best, with the covariance
    within them shrunk towards tr / D · 1 by ``shrinkage``. The largest entry of each direction is positive.

    Args:
        features: (N, D), N ≥ 2, D ≥ 2. labels: (N,) for ``lda``, with at least three classes.

    Raises:
        ValueError: shapes do not fit, or too few classes.
    """
    values = _features("the plane's", features)
    if view not in VIEWS:
        raise ValueError(f"view must be one of {VIEWS}, got {view!r}")
    if values.shape[1] < 2:
        raise ValueError("a plane needs two features or more")
    mean = values.mean(axis=0)
    if view == "pca":
        axes = np.linalg.eigh(np.cov(values.T))[1][:, :-3:-1]
    else:
        groups = to_numpy(labels)
        if groups.shape != (len(values),) or len(np.unique(groups)) < 3:
            raise ValueError("lda needs a label for each sample, of three classes or more")
        between, within = (scatter / len(values) for scatter in _scatter(values, groups))
        spread = np.trace(within) / len(within)
        axes = linalg.eigh(between, (1 - shrinkage) * within + shrinkage * spread * np.eye(len(within)))[1][
            :, :-3:-1
        ]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return np.concatenate([axes, -(mean @ axes)[None]])


def on_plane(features: Any, place: np.ndarray) -> np.ndarray:
    """(N, 2) of (N, D) features on a :func:`plane`."""
    values = to_numpy(features).astype(np.float64)
    return values @ place[:-1] + place[-1]


def _features(name: str, features: Any) -> np.ndarray:
    values = to_numpy(features).astype(np.float64)
    if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"{name} features must be finite and (N, D) with two samples or more, got {values.shape}"
        )
    return values


def _scatter(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, D) sums of squares between the groups' means and within the groups."""
    _, place, count = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.zeros((len(count), values.shape[1]))
    np.add.at(means, place, values)
    means /= count[:, None]
    apart, inside = means - values.mean(axis=0), values - means[place]
    return (apart * count[:, None]).T @ apart, inside.T @ inside


def _silhouette(*groups: np.ndarray) -> float:
    chosen = [g[np.arange(min(len(g), _MOST)) * len(g) // min(len(g), _MOST)] for g in groups]
    cross = cdist(*chosen)
    parts = []
    for group, to_other in zip(chosen, (cross.mean(axis=1), cross.mean(axis=0))):
        own = cdist(group, group).sum(axis=1) / (len(group) - 1)
        largest = np.maximum(own, to_other)
        # Where all points coincide the groups are neither apart nor mixed.
        parts.append(np.divide(to_other - own, largest, out=np.zeros_like(own), where=largest > 0))
    return float(np.concatenate(parts).mean())
