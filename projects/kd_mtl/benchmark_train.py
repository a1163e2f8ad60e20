"""What distillation costs: a training step with cached teachers against one with ground truth alone.

The whole loop: reading, augmentation and the loader's workers, forward, backward, optimizer. The cached
teacher gives as many boxes an image as a cache keeps at most by default, and dense logits. Every image has
every label, so both sides see the same images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scenekd.benchmark.measure import Row, Times
from scenekd.benchmark.options import Options
from scenekd.benchmark.training import Training, alternate
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


def compare(options: Options, case: Case, device: str) -> Iterator[Row]:
    """Each policy of the case, for both tasks, against ground truth."""
    configs = [with_policy(case.cfg, policy) for policy in ("ground_truth", *case.policies)]
    clock, busy = alternate([Training(cfg) for cfg in configs], case.steps, options.repeats(case.repeats))
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
    times = Times(*alternate([Training(on), Training(off)], case.steps, options.repeats(case.repeats))[0])
    detail = f"batch 32, combined, loader included: {times.describe('float32')}"
    return Row(NAME, "BlitzNet300-R50, AMP against float32, cuda", *times.speedup, detail=detail)
