"""One process of a run: from configuration to ``results.json``."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ..config import import_system
from ..errors import UserError
from ..experiment import Experiment
from ..models import NO_FILE
from ..report import report_run, save_panels
from ..results import check_expected, describe_run, peak_memory, write_results
from ..teachers.score_run import score_run
from . import datasets  # noqa: F401 - the frameworks' data sets by name
from .select import engine_module, setup_logging
from .stream_run import train_on_stream


def train_once(
    rank: int, local_rank: int, world_size: int, cfg: CfgNode, engine: str, resume: bool = False
) -> dict[str, dict[str, Any]]:
    """Train, evaluate, write ``results.json``; returns the results. A system that learns from streams has no such
    iterations over ``DATASETS.TRAIN``: see :mod:`scenekd.streaming`."""
    setup_logging(cfg.OUTPUT_DIR, rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if open_stream := getattr(import_system(cfg.SYSTEM), "open_stream", None):
        if cfg.WANDB and rank == 0:
            start_wandb(cfg)
        results: dict[str, dict[str, Any]] = train_on_stream(
            open_stream, cfg, engine, resume=resume, world_size=world_size
        )
        print(summary_line(results))
        return results
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN: names no data set; give one, such as \"('voc2012_seg_train',)\"")
    experiment = Experiment(cfg, rank=rank, world_size=world_size, local_rank=local_rank, resume=resume)
    experiment.check_data(train=True)
    if experiment.is_main:
        score_run(cfg, experiment.stores, experiment.train_data)
    if cfg.WANDB and experiment.is_main:
        start_wandb(cfg)
    start = time.perf_counter()
    experiment.hooks.begin(experiment)
    results = engine_module(engine).train(experiment)
    with experiment.extras.averaged():
        _finish(experiment, engine, results, time.perf_counter() - start, trained=True)
    return results


def evaluate_once(
    rank: int,
    local_rank: int,
    world_size: int,
    cfg: CfgNode,
    engine: str,
    resume: bool = False,
    out: str = "",
    show_dir: str = "",
) -> dict[str, dict[str, Any]]:
    """Evaluate ``MODEL.WEIGHTS`` (with ``resume``: ``OUTPUT_DIR/last.pth``); returns the results."""
    setup_logging(cfg.OUTPUT_DIR, rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST: names no data set; give one, such as \"('voc2012_seg_val',)\"")
    if cfg.MODEL.WEIGHTS in NO_FILE and not resume:
        raise UserError("MODEL.WEIGHTS: --eval-only needs a checkpoint; add MODEL.WEIGHTS FILE")
    experiment = Experiment(
        cfg, rank=rank, world_size=world_size, local_rank=local_rank, resume=resume, whole=True
    )
    experiment.check_data(train=False)
    start = time.perf_counter()
    results = engine_module(engine).evaluate(experiment)
    _finish(experiment, engine, results, time.perf_counter() - start, trained=False, out=out)
    if show_dir and experiment.is_main:
        print(f"{save_panels(experiment, show_dir)} panels in {show_dir}")
    return results


def _finish(
    experiment: Experiment,
    engine: str,
    results: dict[str, dict[str, Any]],
    seconds: float,
    *,
    trained: bool,
    out: str = "",
) -> None:
    cfg = experiment.cfg
    skipped = experiment.skipped
    skipped.share()
    figures = experiment.hooks.complete(experiment, results) if experiment.is_main and results else {}
    data = {}
    if experiment.is_main and trained:
        data["train"] = skipped.describe("train", experiment.train_data, cfg.DATASETS.TRAIN)
    if experiment.is_main and cfg.DATASETS.TEST:
        data["test"] = skipped.describe("test", experiment.test_data, cfg.DATASETS.TEST)
    if experiment.is_main and results:
        more: dict[str, Any] = {"seconds": round(seconds, 1)}
        if trained:
            more["images_seen"] = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
            more["peak_memory_mib"] = round(peak_memory(), 1)
        path = Path(out) if out else experiment.output_dir / "results.json"
        write_results(path, results, describe_run(cfg, engine, **more, **data))
        print(summary_line(results))
    if trained:
        report_run(experiment, results, figures=figures)
    if experiment.is_main:
        check_expected(cfg, results)


def start_wandb(cfg: CfgNode) -> None:
    """Open a Weights & Biases run that mirrors the TensorBoard events of either engine."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("WANDB: wandb is not installed; pip install wandb, or set WANDB False")
    import wandb

    wandb.init(project="scenekd", dir=cfg.OUTPUT_DIR, config=cfg, sync_tensorboard=True)


_HEADLINES = {
    "sem_seg": ("mIoU", "pACC"),
    "bbox": ("mAP", "AP50"),
    "segm": ("AP", "AP50"),
    "classification": ("accuracy", "top5"),
    "hidden_object": ("top1", "top5", "mean_rank"),
    "multi_label": ("mAP",),
    "stream": ("agreement", "share_to_teacher", "accuracy", "gie"),
}


def summary_line(results: dict[str, dict[str, Any]]) -> str:
    """The headline numbers in one line."""
    parts = []
    for task, names in _HEADLINES.items():
        mark = "mask " if task == "segm" else ""
        found = results.get(task, {})
        parts += [f"{mark}{name} {found[name]:.2f}" for name in names if name in found]
    return "  ".join(parts) or "no results"
