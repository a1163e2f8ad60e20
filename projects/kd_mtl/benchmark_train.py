"""What distillation costs: a training step with cached teachers against one with ground truth alone.

The whole loop: reading, augmentation and the loader's workers, forward, backward, optimizer. The cached
teacher gives as many boxes an image as a cache keeps at most by default, and dense logits. Every image has
every label, so both sides see the same images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from scenekd.benchmark.measure import Row, Times, synchronise
from scenekd.benchmark.options import Options
from scenekd.experiment import Experiment
from scenekd.registry import register

from .benchmark_train_cases import BOXES, Case, cases, large_case, make_caches

NAME = "train"


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """Small and at 300 px on the CPU; at 300 px on CUDA, with AMP off and on."""
    for device in options.devices:
        for case in cases(options, device):
            make_caches(case, options.workdir)
            yield from compare(options, case, device)
    if "cuda" in options.devices:
        yield _amp(options)


def with_policy(cfg: Any, policy: str) -> Any:
    """The configuration with one policy for both tasks."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DISTILL.DETECTION.POLICY = cfg.DISTILL.SEGMENTATION.POLICY = policy
    cfg.freeze()
    return cfg


class Training:
    """A training that goes on in turns with others, which have loaders of their own."""

    def __init__(self, cfg: Any) -> None:
        self.experiment = Experiment(cfg)
        self.experiment.net.train()
        self.batches = iter(self.experiment.train_loader())
        self.scaler = torch.amp.GradScaler(enabled=self.experiment.amp)
        # What torch's workers fetch in advance, two batches each, while the others have their turn.
        self.fetched = 2 * cfg.DATALOADER.NUM_WORKERS
        self.step()

    def step(self) -> None:
        """Read a batch and learn from it."""
        experiment = self.experiment
        images, targets = next(self.batches)
        images = images.to(experiment.device, non_blocking=True)
        targets = [target.to(experiment.device, non_blocking=True) for target in targets]
        with torch.autocast(experiment.device.type, enabled=experiment.amp):
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
    configs: Sequence[Any], steps: int, repeats: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds a step of several configurations, trained in turn (A B C A B C …): clock, processor."""
    trainings = [Training(cfg) for cfg in configs]
    clock: list[list[float]] = [[] for _ in configs]
    busy: list[list[float]] = [[] for _ in configs]
    for _ in range(repeats):
        for training, own_clock, own_busy in zip(trainings, clock, busy):
            seconds = training.time(steps)
            own_clock.append(seconds[0])
            own_busy.append(seconds[1])
    return clock, busy


def compare(options: Options, case: Case, device: str) -> Iterator[Row]:
    """Each policy of the case, for both tasks, against ground truth."""
    configs = [with_policy(case.cfg, policy) for policy in ("ground_truth", *case.policies)]
    clock, busy = alternate(configs, case.steps, options.repeats(case.repeats))
    solver, workers = case.cfg.SOLVER, case.cfg.DATALOADER.NUM_WORKERS
    for i, policy in enumerate(case.policies, start=1):
        times = Times(clock[i], clock[0])
        detail = (
            f"batch {solver.IMS_PER_BATCH}, {workers} workers, {BOXES} teacher boxes an image, {case.steps} "
            f"steps a sample, {len(clock[i])} samples, loader included: {times.describe('ground truth')}; "
            f"processor time of the training process {Times(busy[i], busy[0]).cost[0]:.3f} x"
        )
        name = f"{case.name}, policy {policy} / ground truth, {device}"
        yield Row(NAME, name, *times.cost, target=("<=", 1.05), detail=detail)


def _amp(options: Options) -> Row:
    case = large_case(options, "cuda")
    make_caches(case, options.workdir)
    off = with_policy(case.cfg, "combined")
    on = off.clone()
    on.defrost()
    on.SOLVER.AMP.ENABLED = True
    times = Times(*alternate([on, off], case.steps, options.repeats(case.repeats))[0])
    detail = f"batch 32, combined, loader included: {times.describe('float32')}"
    return Row(NAME, "BlitzNet300-R50, AMP against float32, cuda", *times.speedup, detail=detail)
