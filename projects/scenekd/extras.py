"""What a training run keeps beside network and optimizer, and how it is fed, whatever framework drives the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from .async_updates import AsyncUpdates
from .ema import WeightAverage
from .errors import UserError
from .finite import FiniteGuard


class Extras:
    """The guard against losses that are not finite, the averaged weights, the gradients that wait.

    It hears of every forward pass in training, ``net(images, targets)``, by a hook on the network.

    Args:
        net: the bare network, on its device.
        cfg: its ``SOLVER`` says what is switched on.
        state: the resume state to go on from, or nothing.
    """

    def __init__(self, net: nn.Module, cfg: CfgNode, state: Mapping[str, Any]) -> None:
        solver = cfg.SOLVER
        self.guard = FiniteGuard(net)
        self.average: WeightAverage | None = None
        self.async_updates: AsyncUpdates | None = None
        self._check_gradients = bool(solver.CHECK_GRADIENTS or solver.CLIP_GRADIENTS.ENABLED)
        if solver.EMA.ENABLED:
            try:
                self.average = WeightAverage(net, decay=solver.EMA.DECAY, warmup=solver.EMA.WARMUP)
            except ValueError as error:
                raise UserError(f"SOLVER.EMA: {error}") from None
            if state.get("ema"):
                self.average.load_state_dict(state["ema"])
        if solver.ASYNC_UPDATES.ENABLED:
            self.async_updates = AsyncUpdates.from_config(net, cfg)
            if state.get("async_updates"):
                self.async_updates.load_state_dict(state["async_updates"])
        self._logged: list[Any] = [m.log_values for m in net.modules() if hasattr(m, "log_values")]
        self._begin: list[Any] = [m.begin_step for m in net.modules() if hasattr(m, "begin_step")]
        self._end: list[Any] = [m.end_step for m in net.modules() if hasattr(m, "end_step")]
        net.register_forward_hook(self._after_forward)

    def _after_forward(self, net: nn.Module, args: tuple[Any, ...], losses: Any) -> None:
        if not net.training:
            return
        targets = args[1]
        if self.async_updates is not None:
            self.async_updates.observe(targets)
        self.guard.check_losses(losses, targets)

    @property
    def before_step(self) -> list[Callable[..., None]]:
        """Hooks before the optimizer's step, in their order; gradients are clipped after them."""
        hooks: list[Callable[..., None]] = []
        if self._check_gradients:
            hooks.append(self.guard.check_gradients)
        if self.async_updates is not None:
            hooks.append(self.async_updates.before_step)
        return hooks

    def begin_step(self, iteration: int) -> None:
        """Before the forward pass of step ``iteration`` (0-based); modules hear of it by ``begin_step``."""
        self.guard.iteration = iteration
        for tell in self._begin:
            tell(iteration)

    def after_step(self, iteration: int) -> None:
        """After the optimizer's step ``iteration`` (0-based); modules hear of it by ``end_step``."""
        for tell in self._end:
            tell(iteration)
        if self.average is not None:
            self.average.update(iteration)

    def log_values(self) -> dict[str, Tensor]:
        """Numbers of the last forward pass that are logged beside the losses: modules tell them by ``log_values``."""
        values: dict[str, Tensor] = {}
        for tell in self._logged:
            values.update(tell())
        return values

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the network holds its averaged weights, where they are kept."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "ema": {} if self.average is None else self.average.state_dict(),
            "async_updates": {} if self.async_updates is None else self.async_updates.state_dict(),
        }


class LogMeans:
    """Means of named scalars since the last line of the log; a name counts in the steps where it appears."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in one step's values."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """The means; then begin anew."""
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means
