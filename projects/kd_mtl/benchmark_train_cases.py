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
    """A configuration and the number of steps that are timed."""

    name: str
    cfg: Any
    steps: int
    stride: int  # of the teacher's grid
    policies: tuple[str, ...] = ("combined",)


def cases(options: Options, device: str) -> list[Case]:
    """What is trained on a device."""
    if options.size != "tiny" and device == "cuda":
        return [large_case(options, device, images=32, steps=options.pick(30, 10, 0))]
    small = load_config(Path(__file__).with_name("quickstart.yaml")).clone()
    small.defrost()
    small.DATASETS.KEEP_SEM_SEG = 1.0
    small.DATASETS.ROOT = str(options.scenes(options.pick(160, 64, 8), (128, 160)))
    if options.size == "tiny":
        small.INPUT.SIZE, small.SOLVER.IMS_PER_BATCH, small.DATALOADER.NUM_WORKERS = 64, 2, 0
    steps = options.pick(20, 8, 1)
    found = [Case("quickstart's network, 128 px", _prepared(small), steps, 8, ("teacher", "combined"))]
    if options.size != "tiny":
        found.append(large_case(options, device, images=4, steps=options.pick(4, 2, 0)))
    return found


def large_case(options: Options, device: str, images: int, steps: int) -> Case:
    """The paper's network at 300 px, on scenes of VOC's size."""
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
