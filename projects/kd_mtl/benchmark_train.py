"""What distillation costs: a training step with cached teachers against one with ground truth alone.

The whole loop: reading, augmentation and the loader's workers, forward, backward, optimizer. The cached
teacher gives as many boxes an image as a cache keeps at most by default, and dense logits. Every image has
every label, so both sides see the same images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
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
            for policy in case.policies:
                yield compare(options, case, policy, device)
    if "cuda" in options.devices:
        yield _amp(options)


def with_policy(cfg: Any, policy: str) -> Any:
    """The configuration with one policy for both tasks."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DISTILL.DETECTION.POLICY = cfg.DISTILL.SEGMENTATION.POLICY = policy
    cfg.freeze()
    return cfg


def seconds_per_step(cfg: Any, steps: int) -> float:
    """A training from the start: workers and two steps untimed, then ``steps`` timed."""
    experiment = Experiment(cfg)
    net, optimizer = experiment.net.train(), experiment.optimizer
    scaler = torch.amp.GradScaler(enabled=experiment.amp)
    start = 0.0
    for done, (images, targets) in enumerate(experiment.train_loader()):
        if done == min(steps, 2):
            synchronise()
            start = time.perf_counter()
        images = images.to(experiment.device, non_blocking=True)
        targets = [target.to(experiment.device, non_blocking=True) for target in targets]
        with torch.autocast(experiment.device.type, enabled=experiment.amp):
            losses = net(images, targets)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(sum(losses.values())).backward()
        scaler.step(optimizer)
        scaler.update()
        if done + 1 == min(steps, 2) + steps:
            break
    synchronise()
    return (time.perf_counter() - start) / steps


def alternate(ours: Any, peer: Any, steps: int, repeats: int) -> Times:
    """Two configurations in turn."""
    times = Times([], [])
    for _ in range(repeats):
        times.ours.append(seconds_per_step(ours, steps))
        times.peer.append(seconds_per_step(peer, steps))
    return times


def compare(options: Options, case: Case, policy: str, device: str) -> Row:
    """One policy for both tasks against ground truth."""
    ours, peer = with_policy(case.cfg, policy), with_policy(case.cfg, "ground_truth")
    times = alternate(ours, peer, case.steps, options.repeats(5))
    batch, workers = ours.SOLVER.IMS_PER_BATCH, ours.DATALOADER.NUM_WORKERS
    detail = (
        f"batch {batch}, {workers} workers, {BOXES} teacher boxes an image, {case.steps} steps a sample, "
    )
    detail += f"loader included: {times.describe('ground truth')}"
    name = f"{case.name}, policy {policy} / ground truth, {device}"
    return Row(NAME, name, *times.cost, target=("<=", 1.05), detail=detail)


def _amp(options: Options) -> Row:
    case = large_case(options, "cuda", images=32, steps=options.pick(30, 10, 1))
    make_caches(case, options.workdir)
    off = with_policy(case.cfg, "combined")
    on = off.clone()
    on.defrost()
    on.SOLVER.AMP.ENABLED = True
    times = alternate(on, off, case.steps, options.repeats(5))
    detail = f"batch 32, combined, loader included: {times.describe('float32')}"
    return Row(NAME, "BlitzNet300-R50, AMP against float32, cuda", *times.speedup, detail=detail)
