"""Asynchronous per-task updates, a baseline for missing labels (UberNet: Kokkinos, CVPR 2017, section 3.1).

A task's own parameters step once that task has seen enough labelled images, the shared ones once enough images
with any label were seen; until then their gradients are kept. So a task with few labels takes fewer steps, each
of its full effective mini-batch, instead of many noisy ones.

A *part* is the parameters of one task, or the shared ones. A step in which n images count for a part, after c that
wait already, makes its kept gradient (c · kept + n · gradient) / (c + n): the mean over the images of the losses'
gradients, where UberNet divides the sum of the images' own gradients by the mini-batch. The difference is in the
shared part alone: there a task's loss is the mean over its labelled images, not over all of them. Where a part is
due in its first step, the gradient stays as it is, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from .errors import UserError
from .losses.balance import GradNormBalance
from .sample import Target

SHARED = "shared"


class AsyncUpdates:
    """Holds gradients back inside the optimizer's step until their part is due.

    Args:
        net: declares ``task_parameters() -> {task: parameters}``; all others are shared.
        images: labelled images before a step of each part, for every task and :data:`SHARED`; ≥ 1.

    Raises:
        ValueError: a part has no number, or one below 1.
    """

    def __init__(self, net: nn.Module, images: Mapping[str, int]) -> None:
        own: dict[str, list[nn.Parameter]] = net.task_parameters()  # type: ignore[operator]
        parts = {id(parameter): task for task, parameters in own.items() for parameter in parameters}
        self.tasks = tuple(own)
        self._parameters: dict[str, dict[str, nn.Parameter]] = {part: {} for part in (*own, SHARED)}
        for name, parameter in net.named_parameters():
            self._parameters[parts.get(id(parameter), SHARED)][name] = parameter
        if set(images) != set(self._parameters) or min(images.values()) < 1:
            raise ValueError(
                f"every part ({', '.join(self._parameters)}) needs a number of images ≥ 1: {images}"
            )
        self.images = dict(images)
        self._seen = dict.fromkeys(self._parameters, 0)  # images of the step being taken
        self._waiting = dict.fromkeys(self._parameters, 0)  # images behind the kept gradients
        self._kept: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, net: nn.Module, cfg: CfgNode) -> AsyncUpdates:
        """From ``SOLVER.ASYNC_UPDATES``.

        Raises:
            UserError: the network declares no tasks, a task is unknown, or another option does not go with it.
        """
        key, node = "SOLVER.ASYNC_UPDATES", cfg.SOLVER.ASYNC_UPDATES
        if not hasattr(net, "task_parameters"):
            raise UserError(f"{key}: {type(net).__name__} does not tell its tasks' parameters; switch it off")
        if cfg.SOLVER.ACCUMULATE_STEPS > 1:
            raise UserError(f"{key}: keeps gradients itself; set SOLVER.ACCUMULATE_STEPS 1")
        if any(isinstance(module, GradNormBalance) for module in net.modules()):
            raise UserError(f"{key}: GradNorm balances the steps that this holds back; set BALANCE fixed")
        own, batch = dict.fromkeys(net.task_parameters()), cfg.SOLVER.IMS_PER_BATCH  # type: ignore[operator]
        images = dict.fromkeys(own, node.IMAGES or batch) | {SHARED: node.SHARED_IMAGES or batch}
        for pair in node.TASK_IMAGES:
            if len(pair) != 2 or pair[0] not in own or not isinstance(pair[1], int) or pair[1] < 1:
                raise UserError(
                    f"{key}.TASK_IMAGES: {pair!r} is no pair (task, images); tasks: {', '.join(own)}"
                )
            images[pair[0]] = pair[1]
        return cls(net, images)

    def observe(self, targets: Sequence[Target]) -> None:
        """Count the labelled images of the step being taken, over all processes; every process calls it."""
        labelled = [target.labelled_tasks() & set(self.tasks) for target in targets]
        counts = [sum(task in tasks for tasks in labelled) for task in self.tasks]
        counts = _sum_over_processes([*counts, sum(bool(tasks) for tasks in labelled)], self._device)
        self._seen = dict(zip((*self.tasks, SHARED), counts))

    @property
    def _device(self) -> torch.device:
        return next(iter(self._parameters[SHARED].values())).device

    def before_step(self, *_: Any) -> None:
        """Before the optimizer steps: leave the gradients of the parts that are due, take away the others."""
        for part, parameters in self._parameters.items():
            seen, waiting = self._seen[part], self._waiting[part]
            self._waiting[part] = total = waiting + seen
            due = total >= self.images[part]
            for name, parameter in parameters.items():
                gradient = parameter.grad
                parameter.grad = None
                if seen and gradient is not None:
                    gradient = self._mean(name, gradient, seen, total)
                    self._kept[name] = gradient
                if due:
                    parameter.grad = self._kept.pop(name, None)
            if due:
                self._waiting[part] = 0

    def _mean(self, name: str, gradient: Tensor, seen: int, total: int) -> Tensor:
        kept = self._kept.get(name)
        if kept is None:
            return gradient.detach().clone()
        return torch.lerp(kept, gradient.detach(), seen / total)

    def state_dict(self) -> dict[str, Any]:
        """What waits: gradients by the parameters' names, and the images behind them."""
        kept = {name: value.cpu() for name, value in self._kept.items()}
        return {"waiting": dict(self._waiting), "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            UserError: it is of other tasks.
        """
        if set(state["waiting"]) != set(self._waiting):
            raise UserError("last.pth: its waiting gradients are of other tasks; drop --resume")
        self._waiting = {part: int(count) for part, count in state["waiting"].items()}
        device = self._device
        self._kept = {name: value.to(device) for name, value in state["kept"].items()}


def _sum_over_processes(counts: Iterable[int], device: torch.device) -> list[int]:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(counts)
    total = torch.tensor(list(counts), device=device)
    dist.all_reduce(total)
    return [int(count) for count in total.tolist()]
