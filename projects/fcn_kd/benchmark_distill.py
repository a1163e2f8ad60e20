"""What distillation costs a student of fcn_kd: a step with a live teacher against the teacher's forward pass and a
plain step done apart, and a step with a cached teacher against a plain one.

The whole loop: reading, augmentation, forward, backward, optimizer. All sides see the same images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scenekd.benchmark.material import made_up_outputs, manifest
from scenekd.benchmark.measure import Row, Times
from scenekd.benchmark.options import VOC_SIZE, Options
from scenekd.benchmark.training import Training, alternate
from scenekd.config import load_config
from scenekd.data.catalog import load_dataset
from scenekd.data.scenes import SCENES_CLASSES
from scenekd.registry import register
from scenekd.teachers.cache_builder import write_cache
from scenekd.teachers.live_build import build_online

NAME = "distill"
_STRIDE = 8  # of the cached teacher's grid


@dataclass
class Case:
    """A configuration that learns from a live teacher, and how it is timed."""

    name: str
    cfg: Any
    steps: int
    repeats: int


class Apart(Training):
    """A plain step, and beside it the teacher's forward pass on the same images."""

    def __init__(self, cfg: Any, teacher_cfg: Any) -> None:
        self.teacher = build_online(teacher_cfg)
        super().__init__(cfg)
        self.experiment.net.register_forward_pre_hook(self._ask)

    def _ask(self, net: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.teacher.logits(args[0])


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """The paper's student and teacher, at a size that the device bears, and a small student on the CPU."""
    for device in options.devices:
        for case in _cases(options, device):
            yield from _compare(options, case, device)


def _cases(options: Options, device: str) -> list[Case]:
    tiny, cuda = options.size == "tiny", device == "cuda"
    root = options.scenes(options.pick(64, 16, 4), (96, 128) if tiny else VOC_SIZE)
    size, batch = (64, 2) if tiny else ((480, 8) if cuda else (240, 2))
    pair = "FCN-R18 from LR-ASPP" if tiny else "FCN-R50 from FCN-R101"
    cfg = _config(root, device, size, batch)
    if tiny:
        cfg.MODEL.FCN_KD.NETWORK, cfg.MODEL.FCN_KD.TRUNK_WIDTH = "fcn_resnet18", 16
        cfg.TEACHER.SEGMENTATION.NAME = "lraspp_mobilenet_v3_large"
    steps = options.pick(20, 5, 1) if cuda else 1
    return [Case(f"{pair}, {size} px, batch {batch}", cfg, steps, 7)]


def _config(root: Path, device: str, size: int, batch: int) -> Any:
    cfg = load_config(Path(__file__).with_name("fcn_kd.yaml")).clone()
    cfg.defrost()
    cfg.DATASETS.ROOT, cfg.DATASETS.CLASSES = str(root), SCENES_CLASSES
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("voc_seg_train",), ()
    cfg.INPUT.SIZE, cfg.INPUT.SHORT_SIDE = size, (size // 2, 2 * size)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    cfg.TEACHER.SEGMENTATION.WEIGHTS, cfg.TEACHER.SEGMENTATION.CLASSES = "random", SCENES_CLASSES
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = batch, 100_000
    cfg.DATALOADER.NUM_WORKERS = 8 if device == "cuda" else 0
    return cfg


def _compare(options: Options, case: Case, device: str) -> Iterator[Row]:
    live = case.cfg
    plain, cached = live.clone(), live.clone()
    plain.DISTILL.TEACHER, plain.DISTILL.LOSSES = "none", ()
    cached.DISTILL.TEACHER, cached.TEACHER.SEGMENTATION.TYPE = "cached", ""
    cached.TEACHER.SEGMENTATION.CACHE = str(_cache(live, options.workdir))
    trainings = [Training(live), Apart(plain, live), Training(cached), Training(plain)]
    clock, _ = alternate(trainings, case.steps, options.repeats(case.repeats))
    for ours, peer, name, against, bound in (
        (0, 1, "live teacher", "teacher forward + plain step", 1.05),
        (2, 3, "cached teacher", "plain step", 1.1),
    ):
        times = Times(clock[ours], clock[peer])
        detail = f"Hinton's loss, {case.steps} steps a sample, loader included: {times.describe(against)}"
        yield Row(
            NAME,
            f"{case.name}: {name} / {against}, {device}",
            *times.cost,
            target=("<=", bound),
            detail=detail,
        )


def _cache(cfg: Any, workdir: Path) -> Path:
    """A cache of made-up dense outputs for the case's images."""
    dataset = load_dataset("voc_seg_train", root=cfg.DATASETS.ROOT, classes=tuple(cfg.DATASETS.CLASSES))
    folder = workdir / f"{Path(cfg.DATASETS.ROOT).name}_{NAME}"
    if not folder.is_dir():
        made = manifest("segmentation", dataset.classes, "made up")
        write_cache(folder, made, made_up_outputs(dataset, 1, _STRIDE))
    return folder
