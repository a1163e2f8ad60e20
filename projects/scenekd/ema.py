"""An exponential moving average of the weights, evaluated and saved in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .errors import UserError


class WeightAverage:
    """a ← d · a + (1 − d) · w after every optimizer step t = 0, 1, …, d = min(decay, (1 + t) / (1 + t + warmup)).

    The warm-up forgets the first weights: until the decay is reached, the average is over about the last
    t / warmup steps. Buffers (batch statistics) are not averaged: the network's own stay in place.

    Args:
        net: its parameters are followed; the average begins with them.
        decay: in [0, 1). warmup: ≥ 0; 0 takes ``decay`` from the first step on.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, net: nn.Module, *, decay: float, warmup: int = 0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"DECAY must be in [0, 1), got {decay}")
        if warmup < 0:
            raise ValueError(f"WARMUP must not be negative, got {warmup}")
        self.decay, self.warmup = decay, warmup
        self._parameters = dict(net.named_parameters())
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._applied = False

    def decay_at(self, iteration: int) -> float:
        """d of step ``iteration`` (0-based)."""
        return min(self.decay, (1 + iteration) / (1 + iteration + self.warmup))

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take in the weights that step ``iteration`` (0-based) has left."""
        weights = [p.detach() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - self.decay_at(iteration))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network holds the average; its own weights come back after. Nesting changes nothing."""
        if self._applied:
            yield
            return
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._applied = True
        _copy(self._average, self._parameters)
        try:
            yield
        finally:
            _copy(own, self._parameters)
            self._applied = False

    def state_dict(self) -> dict[str, Tensor]:
        """The average, by the parameters' names."""
        return {name: value.cpu() for name, value in self._average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved average.

        Raises:
            UserError: it is of other parameters.
        """
        if state.keys() != self._average.keys():
            raise UserError("last.pth: its averaged weights are of another network; drop --resume")
        _copy(state, self._average)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
