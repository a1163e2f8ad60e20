"""How the terms of a multi-task loss weigh against each other: as they are, by uncertainty, by gradient norms.

T: terms, such as loss_seg, loss_cls and loss_box; P: numbers in the parameters that all terms share.

A balance takes the terms by name and gives them back weighted; their sum is what is trained on. A term that is 0
in every process has nothing in this batch: it takes no part, and what is known of it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .reduce import Reduce, mean_over_processes, safe_count

BALANCES = ("fixed", "uncertainty", "gradnorm")

# Gradients of a loss that mixed precision has not scaled yet would vanish in float16. A power of two is exact.
_SCALE = 2.0**10


class FixedBalance(nn.Module):
    """The terms as they are."""

    def forward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """``losses`` itself."""
        return losses


class _NamedBalance(nn.Module):
    """A balance that keeps one number for each of ``names``, and tells the weights it used last."""

    def __init__(self, names: Sequence[str], reduce: Reduce) -> None:
        super().__init__()
        self.names, self.reduce = tuple(names), reduce
        self._used: Tensor | None = None

    def _values(self, losses: dict[str, Tensor]) -> Tensor:
        if set(losses) != set(self.names):
            raise ValueError(f"the balance is of {', '.join(self.names)}; the losses are {', '.join(losses)}")
        return torch.stack([losses[name] for name in self.names])

    def log_values(self) -> dict[str, Tensor]:
        """``balance/<term>``: the weight that each term had in the last batch."""
        if self._used is None:
            return {}
        return {f"balance/{name}": weight for name, weight in zip(self.names, self._used)}


class UncertaintyBalance(_NamedBalance):
    """Weighting by learned homoscedastic uncertainty (Kendall et al., CVPR 2018, section 3.2).

    Σ_i exp(−s_i) · L_i + s_i, with s_i = log σ_i² learned: twice the Gaussian form, L / 2σ² + log σ, so that it
    begins (s = 0) with the terms as they are. For a given L_i the best s_i is log L_i, where the term is worth 1.
    The s_i of a term without anything in the batch has no gradient and no part in the sum.

    Args:
        names: of the terms. reduce: averages over processes.

    Attributes:
        log_variance: (T,), starts at 0. It is stepped without momentum and decay (``momentum_free``), so that a
            gradient of 0 leaves it untouched under Adam too.
    """

    momentum_free = True

    def __init__(self, names: Sequence[str], *, reduce: Reduce = mean_over_processes) -> None:
        super().__init__(names, reduce)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms, and ``loss_balance``: Σ s_i of those that are present."""
        present = self.reduce(self._values(losses)) != 0
        weights = torch.exp(-self.log_variance)
        self._used = weights.detach()
        balanced = {name: weight * losses[name] for name, weight in zip(self.names, weights)}
        balanced["loss_balance"] = (present * self.log_variance).sum()
        return balanced


class GradNormBalance(_NamedBalance):
    """Weights that equalise how fast the terms train (GradNorm: Chen et al., ICML 2018, section 3, algorithm 1).

    With G_i = w_i · ‖∇_W L_i‖, W the last parameters that all terms share, Ḡ its mean, and r_i the inverse training
    rate, L_i / L_i(0) over its mean: one step downhill on Σ_i |G_i − Ḡ · r_i^α|, the targets held constant, after
    every batch. The step is taken in log w, and relative to Ḡ,

        w_i ← w_i · exp(−lr · sign(G_i − Ḡ · r_i^α) · G_i / Ḡ),

    so that weights stay positive and lr does not depend on the scale of the losses. Then the weights of the terms
    that are present are scaled to the sum that they had: all T always sum to T. L_i(0) is a term's first loss that
    is not 0. Gradients are averaged over processes before their norm is taken.

    Args:
        names: of the terms. alpha: how strongly slow terms are pulled, ≥ 0; 0 equalises the norms. lr: > 0.
        reduce: averages over processes.

    Attributes:
        weights: (T,), start at 1. first: (T,), L_i(0), 0 where not known yet. Both are saved with the network.

    Raises:
        ValueError: an argument is outside its range.
    """

    weights: Tensor
    first: Tensor

    def __init__(
        self,
        names: Sequence[str],
        *,
        alpha: float = 1.5,
        lr: float = 0.025,
        reduce: Reduce = mean_over_processes,
    ) -> None:
        super().__init__(names, reduce)
        if not alpha >= 0:
            raise ValueError(f"BALANCE_ALPHA must not be negative, got {alpha}")
        if not lr > 0:
            raise ValueError(f"BALANCE_LR must be positive, got {lr}")
        self.alpha, self.lr = alpha, lr
        self._shared: tuple[nn.Parameter, ...] = ()
        self.register_buffer("weights", torch.ones(len(self.names)))
        self.register_buffer("first", torch.zeros(len(self.names)))

    def share(self, parameters: Iterable[nn.Parameter]) -> None:
        """Tell W: where the gradient norms are taken."""
        self._shared = tuple(parameters)

    def forward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms, weighted; in training mode the weights of the next batch follow."""
        self._used = used = self.weights.clone()
        if self.training and torch.is_grad_enabled():
            self._update(self._values(losses))
        return {name: weight * losses[name] for name, weight in zip(self.names, used)}

    def _update(self, values: Tensor) -> None:
        if not self._shared:
            raise ValueError("GradNorm needs the shared parameters; call share")
        norms = self.reduce(self._gradients(values)).norm(dim=1).to(self.weights)
        losses = self.reduce(values).to(self.weights)
        present = (losses > 0) & (norms > 0)
        count = safe_count(present.sum())

        def mean(numbers: Tensor) -> Tensor:
            return torch.where(present, numbers, 0).sum() / count

        self.first.copy_(torch.where(present & (self.first == 0), losses, self.first))
        rate = losses / safe_count(self.first)
        rate = rate / safe_count(mean(rate))
        gradient = self.weights * norms
        average = safe_count(mean(gradient))
        step = torch.sign(gradient - average * rate**self.alpha) * gradient / average
        moved = torch.where(present, self.weights * torch.exp(-self.lr * step), 0)
        before = torch.where(present, self.weights, 0).sum()
        moved = moved * before / safe_count(moved.sum())
        self.weights.copy_(torch.where(present, moved, self.weights))

    def _gradients(self, values: Tensor) -> Tensor:
        """(T, P): the gradient of every term for W, without a trace in ``.grad``."""
        rows = []
        for value in values:
            found = torch.autograd.grad(value * _SCALE, self._shared, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self._shared)]
            rows.append(torch.cat([part.flatten() for part in parts]) / _SCALE)
        return torch.stack(rows)


def build_balance(
    kind: str,
    names: Sequence[str],
    *,
    alpha: float = 1.5,
    lr: float = 0.025,
    reduce: Reduce = mean_over_processes,
) -> nn.Module:
    """A balance of ``names`` by its kind, one of :data:`BALANCES`; ``alpha`` and ``lr`` are GradNorm's.

    Raises:
        ValueError: an unknown kind, or an argument outside its range.
    """
    if kind not in BALANCES:
        raise ValueError(f"BALANCE must be one of {', '.join(BALANCES)}, got {kind!r}")
    if kind == "uncertainty":
        return UncertaintyBalance(names, reduce=reduce)
    if kind == "gradnorm":
        return GradNormBalance(names, alpha=alpha, lr=lr, reduce=reduce)
    return FixedBalance()
