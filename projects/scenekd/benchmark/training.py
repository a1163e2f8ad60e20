"""Whole training steps, loader included, of several configurations in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ..experiment import Experiment
from .measure import synchronise


class Training:
    """A training that goes on in turns with others, which have loaders of their own."""

    def __init__(self, cfg: Any) -> None:
        self.experiment = Experiment(cfg)
        self.experiment.net.train()
        self.batches = iter(self.experiment.train_loader())
        self.scaler = torch.amp.GradScaler(enabled=self.experiment.amp == torch.float16)
        # What torch's workers fetch in advance, two batches each, while the others have their turn.
        self.fetched = 2 * cfg.DATALOADER.NUM_WORKERS
        self.step()

    def step(self) -> None:
        """Read a batch and learn from it."""
        experiment = self.experiment
        images, targets = next(self.batches)
        images = images.to(experiment.device, non_blocking=True)
        targets = [target.to(experiment.device, non_blocking=True) for target in targets]
        with torch.autocast(experiment.device.type, dtype=experiment.amp, enabled=experiment.amp is not None):
            losses = experiment.net(images, targets)
        experiment.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(sum(losses.values())).backward()
        self.scaler.step(experiment.optimizer)
        self.scaler.update()

    def time(self, steps: int) -> tuple[float, float]:
        """Seconds a step on the clock, and of this process's processor time."""
        for _ in range(self.fetched):
            self.step()
        synchronise()
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.step()
        synchronise()
        return (time.perf_counter() - start) / steps, (time.process_time() - busy) / steps


def alternate(
    trainings: Sequence[Training], steps: int, repeats: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds a step of several trainings, taken in turn (A B C A B C …): clock, processor."""
    clock: list[list[float]] = [[] for _ in trainings]
    busy: list[list[float]] = [[] for _ in trainings]
    for _ in range(repeats):
        for training, own_clock, own_busy in zip(trainings, clock, busy):
            seconds = training.time(steps)
            own_clock.append(seconds[0])
            own_busy.append(seconds[1])
    return clock, busy
