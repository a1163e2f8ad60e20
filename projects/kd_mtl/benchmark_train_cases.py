"""What the benchmark of training trains: networks, scenes, and caches of made-up teacher outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenekd.benchmark.material import made_up_outputs, manifest
from scenekd.benchmark.options import VOC_SIZE, Options
from scenekd.config import get_cfg, load_config
from scenekd.data.catalog import load_dataset
from scenekd.data.scenes import SCENES_CLASSES
from scenekd.teachers.cache_builder import write_cache

BOXES = 100  # TEACHER.DETECTION.MAX_BOXES


@dataclass
class Case:
    """A configuration, the steps that are timed in one sample, and the number of samples."""

    name: str
    cfg: Any
    steps: int
    stride: int  # of the teacher's grid
    policies: tuple[str, ...] = ("combined",)
    repeats: int = 5


def cases(options: Options, device: str) -> list[Case]:
    """What is trained on a device."""
    if options.size != "tiny" and device == "cuda":
        return [large_case(options, device)]
    small = load_config(Path(__file__).with_name("quickstart.yaml")).clone()
    small.defrost()
    small.DATASETS.KEEP_SEM_SEG = 1.0
    small.DATASETS.ROOT = str(options.scenes(options.pick(160, 64, 8), (128, 160)))
    if options.size == "tiny":
        small.INPUT.SIZE, small.SOLVER.IMS_PER_BATCH, small.DATALOADER.NUM_WORKERS = 64, 2, 0
    policies = ("teacher", "combined")
    found = [Case("quickstart's network, 128 px", _prepared(small), options.pick(4, 4, 1), 8, policies, 15)]
    if options.size != "tiny":
        found.append(large_case(options, device))
    return found


def large_case(options: Options, device: str) -> Case:
    """The paper's network at 300 px, on scenes of VOC's size; on a CPU, where a step of the paper's 32 images
    takes half a minute, with two images and few steps."""
    cfg = get_cfg()
    cfg.DATASETS.ROOT = str(options.scenes(options.pick(64, 16, 2), VOC_SIZE))
    cfg.DATASETS.CLASSES = SCENES_CLASSES
    cfg.MODEL.BLITZNET.PRETRAINED = ""
    cfg.MODEL.DEVICE = device
    if device == "cpu":
        cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
        return Case("BlitzNet300-R50, two images", _prepared(cfg), 1, 4, repeats=9)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 32, 8
    return Case("BlitzNet300-R50", _prepared(cfg), options.pick(30, 10, 1), 4)


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
