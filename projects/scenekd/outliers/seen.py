"""Scores that see outliers while they are fitted; they are tabled apart.

Both papers train whole networks. Here linear heads are trained on the features of one network, so that every score
judges the same student, and what differs is the rule alone.

N: images; D: channels of the features; C: classes that occur among the inliers; K: heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.ood import outlier_metrics
from .base import OutlierScore

Heads = Callable[[Tensor], Tensor]  # (N, D) → (K, N, C)


class SeesOutliers(OutlierScore):
    """A score whose heads are trained on inliers and outliers.

    Args:
        steps: of Adam on the whole set. learning_rate: its own. seed: of the heads' first weights.
    """

    sees_outliers = True

    def __init__(self, steps: int = 300, learning_rate: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        if steps < 1 or not learning_rate > 0:
            raise ValueError(f"steps and learning_rate must be positive, got {steps} and {learning_rate}")
        self.steps, self.learning_rate, self.seed = steps, learning_rate, seed

    def fit(
        self,
        features: Tensor,
        logits: Tensor,
        labels: Tensor | None = None,
        *,
        outliers: Tensor | None = None,
    ) -> None:
        """As :meth:`OutlierScore.fit`.

        Args:
            outliers: (M, D) features, or maps, of images that hold outliers; without labels.

        Raises:
            ValueError: there are none.
        """
        if outliers is None or not len(outliers):
            raise ValueError(f"{self.name} learns from outliers, too; give their features as outliers")
        self._outliers = (outliers if outliers.ndim == 2 else outliers.mean(dim=(2, 3))).detach().double()
        try:
            super().fit(features, logits, labels)
        finally:
            del self._outliers

    def _start(self, features: Tensor, heads: int, classes: int) -> dict[str, Tensor]:
        """Heads at small random weights, and by what features are brought to mean 0 and deviation 1."""
        draw = torch.Generator().manual_seed(self.seed)
        width = features.shape[1]
        weight = torch.randn(heads, classes, width, generator=draw, dtype=torch.float64) / width**0.5
        return {
            "mean": features.mean(dim=0),
            "deviation": features.std(dim=0, unbiased=False).clamp(min=1e-6),
            "weight": weight.to(features.device),
            "bias": features.new_zeros(heads, classes),
        }

    def _train(self, state: dict[str, Tensor], loss: Callable[[Heads], Tensor]) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            parameters = [state[name].requires_grad_() for name in ("weight", "bias")]
            optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
            for _ in range(self.steps):
                optimizer.zero_grad()
                loss(lambda features: heads_of(state, features)).backward()
                optimizer.step()
        for name in ("weight", "bias"):
            state[name] = state[name].detach()


class ClassifierDiscrepancy(SeesOutliers):
    """Σ_c |p₁ − p₂| of two heads (Yu and Aizawa, ICCV 2019): trained by cross-entropy first; then, beside it, driven
    apart on unlabelled images that hold outliers by max(0, m − mean(H(p₁) − H(p₂))).

    Args:
        margin: m, 1.2 in the paper. steps …: of each of the two stages, see :class:`SeesOutliers`.
    """

    name = "classifier_discrepancy"

    def __init__(
        self, margin: float = 1.2, steps: int = 300, learning_rate: float = 0.01, seed: int = 0
    ) -> None:
        super().__init__(steps, learning_rate, seed)
        self.margin = margin

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        classes, place = labels.unique(return_inverse=True)
        state, unlabelled = self._start(features, 2, len(classes)), self._outliers

        def supervised(heads: Heads) -> Tensor:
            return F.cross_entropy(heads(features).flatten(0, 1), place.repeat(2))

        def apart(heads: Heads) -> Tensor:
            first, second = entropy(heads(unlabelled))
            return supervised(heads) + (self.margin - (first - second).mean()).relu()

        self._train(state, supervised)
        self._train(state, apart)
        return state

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        first, second = heads_of(self.fitted, features).softmax(dim=-1)
        return (first - second).abs().sum(dim=1)


class LeaveOutEnsemble(SeesOutliers):
    """−Σ_k (max p_k − H(p_k)) of K heads (Vyas et al., ECCV 2018). Each leaves out its own part of the classes, whose
    images are outliers to it: cross-entropy on the others + β · max(0, m + mean H(inside) − mean H(left out)).

    Real outliers choose the temperature, as they do in the paper (which also moves the images by a step chosen so).

    Args:
        splits: K, at most one for each class. margin: m, .4 in the paper. beta: β, .2 in the paper.
        temperatures: to choose from, by AUROC. steps …: see :class:`SeesOutliers`.
    """

    name = "leave_out_ensemble"

    def __init__(
        self,
        splits: int = 5,
        margin: float = 0.4,
        beta: float = 0.2,
        temperatures: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0),
        steps: int = 300,
        learning_rate: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(steps, learning_rate, seed)
        if splits < 2 or not temperatures or min(temperatures) <= 0:
            raise ValueError(
                f"splits must be at least 2 and temperatures positive, got {splits}, {temperatures}"
            )
        self.splits, self.margin, self.beta, self.temperatures = splits, margin, beta, temperatures

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        classes, place = labels.unique(return_inverse=True)
        if len(classes) < 3:
            raise ValueError(f"{self.name} needs three classes of inliers or more, got {len(classes)}")
        splits = min(self.splits, len(classes))
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(self.seed))
        part = torch.empty_like(order)
        part[order] = torch.arange(len(classes)) % splits
        left_out = part.to(place.device) == torch.arange(splits, device=place.device)[:, None]  # (K, C)
        state = self._start(features, splits, len(classes)) | {"left_out": left_out}
        strange = left_out[:, place]  # (K, N)

        def loss(heads: Heads) -> Tensor:
            told = heads(features)
            unsure, wrong = (
                entropy(told),
                F.cross_entropy(told.transpose(1, 2), place.expand(splits, -1), reduction="none"),
            )
            inside, outside = _row_mean(unsure, ~strange), _row_mean(unsure, strange)
            margin = (self.margin + inside - outside).relu()
            # A left-out class has no probability: its cross-entropy is infinite, and does not count.
            return (_row_mean(wrong.masked_fill(strange, 0), ~strange) + self.beta * margin).sum()

        self._train(state, loss)
        state["temperature"] = features.new_tensor(self._best_temperature(state, features))
        return state

    def _best_temperature(self, state: dict[str, Tensor], features: Tensor) -> float:
        def auroc(temperature: float) -> float:
            return outlier_metrics(
                *(_unsureness(state, side, temperature) for side in (features, self._outliers))
            ).auroc

        return max(self.temperatures, key=auroc)

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return _unsureness(self.fitted, features, float(self.fitted["temperature"]))


def heads_of(state: dict[str, Tensor], features: Tensor) -> Tensor:
    """(K, N, C) logits of all heads; −∞ for classes that a head leaves out."""
    x = (features - state["mean"]) / state["deviation"]
    told = torch.einsum("nd,kcd->knc", x, state["weight"]) + state["bias"][:, None]
    return told.masked_fill(state["left_out"][:, None], -torch.inf) if "left_out" in state else told


def entropy(logits: Tensor) -> Tensor:
    """H of the softmax over the last axis, in nats; classes at −∞ have no part in it."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p.masked_fill(logits == -torch.inf, 0)).sum(dim=-1)


def _unsureness(state: dict[str, Tensor], features: Tensor, temperature: float) -> Tensor:
    told = heads_of(state, features) / temperature
    return (entropy(told) - told.softmax(dim=-1).amax(dim=-1)).sum(dim=0)


def _row_mean(values: Tensor, counted: Tensor) -> Tensor:
    return values.masked_fill(~counted, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
