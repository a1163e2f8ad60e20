"""What distillation costs: a training step with cached teachers against one with ground truth alone.

The whole loop: reading, augmentation and the loader's workers, forward, backward, optimizer. The cached
teacher gives as many boxes an image as a cache keeps at most by default, and dense logits. Every image has
every label, so both sides see the same images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scenekd.benchmark.material import made_up_outputs, manifest
from scenekd.benchmark.measure import Row, Times, synchronise
from scenekd.benchmark.options import VOC_SIZE, Options
from scenekd.config import get_cfg, load_config
from scenekd.data.catalog import load_dataset
from scenekd.data.scenes import SCENES_CLASSES
from scenekd.experiment import Experiment
from scenekd.registry import register
from scenekd.teachers.cache_builder import write_cache

NAME = "train"
BOXES = 100  # TEACHER.DETECTION.MAX_BOXES


@dataclass
class Case:
    """A configuration and the number of steps that are timed."""

    name: str
    cfg: Any
    steps: int
    stride: int  # of the teacher's grid
    policies: tuple[str, ...] = ("combined",)


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


def cases(options: Options, device: str) -> list[Case]:
    """What is trained on a device."""
    found = []
    if options.size != "tiny" and device == "cuda":
        return [_large(options, device, images=32, steps=options.pick(30, 10, 0))]
    small = load_config(Path(__file__).with_name("quickstart.yaml")).clone()
    small.defrost()
    small.DATASETS.KEEP_SEM_SEG = 1.0
    small.DATASETS.ROOT = str(options.scenes(options.pick(160, 64, 8), (128, 160)))
    if options.size == "tiny":
        small.INPUT.SIZE, small.SOLVER.IMS_PER_BATCH, small.DATALOADER.NUM_WORKERS = 64, 2, 0
    found.append(
        Case(
            "quickstart's network, 128 px",
            _prepared(small),
            options.pick(20, 8, 1),
            8,
            ("teacher", "combined"),
        )
    )
    if options.size != "tiny":
        found.append(_large(options, device, images=4, steps=options.pick(4, 2, 0)))
    return found


def _large(options: Options, device: str, images: int, steps: int) -> Case:
    cfg = get_cfg()
    cfg.DATASETS.ROOT = str(options.scenes(options.pick(64, 16, 2), VOC_SIZE))
    cfg.DATASETS.CLASSES = SCENES_CLASSES
    cfg.MODEL.BLITZNET.PRETRAINED = ""
    cfg.MODEL.DEVICE = device
    cfg.SOLVER.IMS_PER_BATCH = images
    cfg.DATALOADER.NUM_WORKERS = 1 if device == "cpu" else 8
    return Case("BlitzNet300-R50", _prepared(cfg), steps, 4)


def _prepared(cfg: Any) -> Any:
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("voc_seg_train",), ()
    cfg.SOLVER.MAX_ITER = 100_000
    for node in (cfg.TEACHER.DETECTION, cfg.TEACHER.SEGMENTATION):
        node.TYPE, node.TRAINED_ON = "", ()
    return cfg


def make_caches(case: Case, workdir: Path) -> None:
    """Teacher caches for the case's images; their folders go into its configuration."""
    cfg = case.cfg
    dataset = load_dataset("voc_seg_train", root=cfg.DATASETS.ROOT, classes=tuple(cfg.DATASETS.CLASSES))
    for task in ("detection", "segmentation"):
        folder = workdir / f"{Path(cfg.DATASETS.ROOT).name}_{task}"
        if not folder.is_dir():
            write_cache(
                folder,
                manifest(task, dataset.classes, "made up"),
                made_up_outputs(dataset, BOXES, case.stride),
            )
        cfg.TEACHER[task.upper()].CACHE = str(folder)


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


def compare(options: Options, case: Case, policy: str, device: str) -> Row:
    """One policy for both tasks against ground truth, in turn."""
    times = Times([], [])
    for _ in range(options.repeats(5)):
        times.ours.append(seconds_per_step(with_policy(case.cfg, policy), case.steps))
        times.peer.append(seconds_per_step(with_policy(case.cfg, "ground_truth"), case.steps))
    detail = (
        f"batch {case.cfg.SOLVER.IMS_PER_BATCH}, {case.cfg.DATALOADER.NUM_WORKERS} workers, {BOXES} teacher "
    )
    detail += (
        f"boxes an image, {case.steps} steps a sample, loader included: {times.describe('ground truth')}"
    )
    return Row(
        NAME,
        f"{case.name}, policy {policy} / ground truth, {device}",
        *times.cost,
        target=("<=", 1.05),
        detail=detail,
    )


def _amp(options: Options) -> Row:
    case = _large(options, "cuda", images=32, steps=options.pick(30, 10, 1))
    make_caches(case, options.workdir)
    off = with_policy(case.cfg, "combined")
    on = off.clone()
    on.defrost()
    on.SOLVER.AMP.ENABLED = True
    times = Times([], [])
    for _ in range(options.repeats(3)):
        times.ours.append(seconds_per_step(on, case.steps))
        times.peer.append(seconds_per_step(off, case.steps))
    detail = f"batch 32, combined, loader included: {times.describe('float32')}"
    return Row(NAME, "BlitzNet300-R50, AMP against float32, cuda", *times.speedup, detail=detail)
