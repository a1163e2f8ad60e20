"""What every outlier score is, and the threshold drawn from inliers.

N: images; D: channels of the last features; C: classes; h, w: size of the last map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

TPR = 0.95

Net = Callable[[Tensor], Tensor]


class OutlierScore:
    """How unfamiliar an image is to a network, by what that network says of it.

    A score is made with its settings, fitted once on inlier data (their own labels are not needed), and asked as often
    as wanted, each image by itself. What it has learned is in :attr:`fitted`, tensors by name, to be
    saved with a run's state.

    Attributes:
        name: by which a config asks for it. sees_outliers: it learns from outliers, too, and is tabled apart.
        needs_maps: it wants the last feature maps (N, D, h, w); the others take vectors (N, D) as well.
        fitted: see above; empty before :meth:`fit`, and for scores that need none.
    """

    name: str
    sees_outliers = False
    needs_maps = False
    needs_fit = True

    def __init__(self) -> None:
        self.fitted: dict[str, Tensor] = {}

    def prepare(self, net: Net, images: Tensor) -> Tensor:
        """The images of which the network is to be asked for ``features`` and ``logits``: themselves, but for scores
        that move them first by the gradient of ``net``, images → logits (N, C). So no score keeps a network."""
        return images

    def fit(self, features: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        """Learn what is familiar.

        Args:
            features: (N, D), or maps (N, D, h, w), of which all but :attr:`needs_maps` take the spatial mean.
            logits: (N, C). labels: (N,) int64, pseudo-labels of a teacher; None: the network's own likeliest classes.

        Raises:
            ValueError: shapes do not fit, or too few inliers for the score.
        """
        if not self.needs_fit:
            return
        features, logits = self._read(features, logits)
        labels = logits.argmax(dim=1) if labels is None else labels.to(logits.device)
        if labels.shape != logits.shape[:1]:
            raise ValueError(
                f"labels must be (N,) for logits {tuple(logits.shape)}, got {tuple(labels.shape)}"
            )
        self.fitted = self._fit(features, logits, labels)

    @torch.no_grad()
    def score(self, features: Tensor, logits: Tensor) -> Tensor:
        """(N,) float64: higher = more unfamiliar. Arguments as of :meth:`fit`.

        Raises:
            ValueError: shapes do not fit, what is told is not finite, or the score was not fitted.
        """
        features, logits = self._read(features, logits)
        if self.needs_fit and not self.fitted:
            raise ValueError(f"{self.name} must be fitted on inliers before it can score")
        return self._score(features, logits)

    def load_fitted(self, fitted: Mapping[str, Tensor]) -> None:
        """Take up what :attr:`fitted` of another instance with the same settings held."""
        self.fitted = dict(fitted)

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        raise NotImplementedError

    def _read(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Both in float64, in which sure networks do not tie, without gradient."""
        if logits.ndim != 2 or features.ndim not in (2, 4) or len(features) != len(logits):
            raise ValueError(
                f"features must be (N, D) or (N, D, h, w) and logits (N, C), got {tuple(features.shape)} and "
                f"{tuple(logits.shape)}"
            )
        if self.needs_maps and features.ndim != 4:
            raise ValueError(f"{self.name} needs feature maps (N, D, h, w), got {tuple(features.shape)}")
        if not len(logits):
            raise ValueError(f"{self.name}: there are no images")
        features, logits = features.detach().double(), logits.detach().double()
        if not (bool(features.isfinite().all()) and bool(logits.isfinite().all())):
            raise ValueError(f"{self.name}: features and logits must be finite")
        return features if self.needs_maps or features.ndim == 2 else features.mean(dim=(2, 3)), logits


def head_weights(head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weights (C, D) and bias (C,) of a linear head as they are now, float64 copies without gradient."""
    weight = head.weight.detach().double().clone()
    bias = head.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().double().clone()


def fit_threshold(inlier_scores: Any, *, tpr: float = TPR) -> float:
    """The smallest of the inliers' scores up to which a share of at least ``tpr`` of them lies. What scores **above**
    it is taken for an outlier; no outlier is looked at.

    Args:
        inlier_scores: (N,) finite, of samples that the score was not fitted on: on its own it is too sure, and the
            threshold so low that far fewer of the others are kept.

    Raises:
        ValueError: ``tpr`` not strictly between 0 and 1, no scores, or one that is not finite.
        UserError: no inlier lies above the threshold, so that it does not hold what it promises: there are fewer than
            1 / (1 − tpr), or too many equal ones.
    """
    if not 0 < tpr < 1:
        raise ValueError(f"tpr must lie strictly between 0 and 1, got {tpr}")
    scores = torch.as_tensor(inlier_scores).detach().double()
    if scores.ndim != 1 or not len(scores) or not bool(scores.isfinite().all()):
        raise ValueError(f"inlier scores must be finite and (N,) with N > 0, got {tuple(scores.shape)}")
    rank = math.ceil(tpr * len(scores) - 1e-9)  # .95 · 20 is 19, whatever the product is rounded to
    threshold = float(scores.sort().values[rank - 1])
    check_threshold(threshold, scores, f"a threshold at {tpr:.0%} of {len(scores)} inlier scores")
    return threshold


def check_threshold(threshold: float, scores: Tensor, what: str = "the outlier threshold") -> None:
    """Refuse a threshold above which none of ``scores`` (N,) lies: nothing would ever be handed on.

    Raises:
        UserError: it is so.
    """
    if not math.isfinite(threshold) or not bool((scores > threshold).any()):
        raise UserError(
            f"{what} is {threshold:g}, which no sample exceeds (the highest is {float(scores.max()):g}); give more "
            "samples, or a lower threshold or rate"
        )
