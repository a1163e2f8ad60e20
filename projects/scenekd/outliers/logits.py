"""Scores of the logits alone: nothing is fitted.

N: images; C: classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Net, OutlierScore


class MaxSoftmax(OutlierScore):
    """1 − the largest probability (Hendrycks and Gimpel, ICLR 2017), in 0…1 − 1/C."""

    name = "max_softmax"
    needs_fit = False

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return one_minus_confidence(logits)


class MaxLogit(OutlierScore):
    """−the largest logit (Hendrycks et al., ICML 2022)."""

    name = "max_logit"
    needs_fit = False

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return -logits.amax(dim=1)


class Energy(OutlierScore):
    """−T · log Σ exp(z / T) (Liu et al., NeurIPS 2020).

    Args:
        temperature: T > 0.
    """

    name = "energy"
    needs_fit = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = _positive("temperature", temperature)

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return -self.temperature * (logits / self.temperature).logsumexp(dim=1)


class ODIN(OutlierScore):
    """Max softmax at a high temperature, of images moved one small step towards their likeliest class (Liang et al.,
    ICLR 2018). Defaults are the paper's; ε was chosen there on outliers, here it is fixed.

    :meth:`prepare` moves the images; features and logits are to be those of the moved ones. It needs a network with a
    gradient for its input: a binary student in its float simulation, not in bits.

    Args:
        temperature: T > 0. epsilon: step in units of the pixels' whole range, ≥ 0; 0 leaves the images alone.
        pixel_range: the pixels' whole range, 255 for networks that normalise by themselves.
    """

    name = "odin"
    needs_fit = False

    def __init__(
        self, temperature: float = 1000.0, epsilon: float = 0.0014, pixel_range: float = 255.0
    ) -> None:
        super().__init__()
        self.temperature = _positive("temperature", temperature)
        if not epsilon >= 0:
            raise ValueError(f"epsilon must not be negative, got {epsilon}")
        self.step = epsilon * _positive("pixel_range", pixel_range)

    def prepare(self, net: Net, images: Tensor) -> Tensor:
        """x + ε · sign(∇ log of the likeliest class's probability at T)."""
        if not self.step:
            return images
        with torch.inference_mode(False), torch.enable_grad():
            # A clone: pictures made in inference mode take no gradient.
            moved = images.detach().clone().requires_grad_()
            confidence = (net(moved) / self.temperature).log_softmax(dim=1).amax(dim=1).sum()
            (gradient,) = torch.autograd.grad(confidence, moved)
        return images + self.step * gradient.sign()

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return one_minus_confidence(logits / self.temperature)


def one_minus_confidence(logits: Tensor) -> Tensor:
    """(N,) 1 − the largest probability of (N, C) logits, exact where that is next to 1."""
    # The sum of the others' probabilities: 1 − p itself would be 0 of every sure network.
    others = logits.scatter(1, logits.argmax(dim=1, keepdim=True), -torch.inf)
    return (others.logsumexp(dim=1) - logits.logsumexp(dim=1)).exp()


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value
