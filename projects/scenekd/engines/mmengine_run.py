"""A run driven by MMEngine: its Runner, loops, hooks, AMP wrapper and visualisation back ends."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from mmseg.utils import register_all_modules
from torch.utils.data import DataLoader

from ..data.mapper import collate
from ..evaluation.evaluator import Evaluator
from ..experiment import Experiment
from ..recorder import Recorder
from .mmengine_model import SceneKDModel
from .mmengine_parts import Bfloat16OptimWrapper, SceneKDHook, SceneKDMetric

NAME = "mmengine"


def train(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Train to SOLVER.MAX_ITER and evaluate; returns the final results, empty without a test set."""
    cfg = experiment.cfg
    experiment.prepare_output()
    recorder = Recorder(experiment, NAME)
    register_mmseg()
    metric = _metric(experiment) if cfg.DATASETS.TEST else None
    optim_wrapper = _optim_wrapper(experiment)
    options: dict[str, Any] = {}
    if metric is not None:
        options.update(
            val_dataloader=_loader(experiment.test_loader()),
            val_cfg={"type": "ValLoop"},
            val_evaluator=[metric],
        )
    runner = make_runner(
        experiment.cfg,
        _wrap(experiment),
        train_dataloader=_loader(experiment.train_loader()),
        train_cfg={
            "type": "SceneKDTrainLoop",
            "max_iters": cfg.SOLVER.MAX_ITER,
            "val_interval": cfg.TEST.EVAL_PERIOD or cfg.SOLVER.MAX_ITER,
            "accumulate": cfg.SOLVER.ACCUMULATE_STEPS,
            "start": experiment.start_iteration,
        },
        optim_wrapper=optim_wrapper,
        custom_hooks=[SceneKDHook(recorder, metric)],
        **options,
    )
    runner.train()
    if metric is None:
        return {}
    if not metric.latest:
        # A finished run that is resumed takes no step, so the loop evaluates nothing.
        runner.val()
    return metric.latest


def evaluate(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Evaluate the network on DATASETS.TEST."""
    register_mmseg()
    metric = _metric(experiment)
    runner = make_runner(
        experiment.cfg,
        _wrap(experiment),
        test_dataloader=_loader(experiment.test_loader()),
        test_cfg={"type": "TestLoop"},
        test_evaluator=[metric],
    )
    runner.test()
    return metric.latest


def _collate(items: list[Any]) -> dict[str, Any]:
    inputs, targets = collate(items)
    return {"inputs": inputs, "data_samples": targets}


def _loader(loader: DataLoader[Any]) -> DataLoader[Any]:
    # The same loader under both engines; only the batch's container differs.
    loader.collate_fn = _collate
    return loader


def _metric(experiment: Experiment) -> SceneKDMetric:
    metrics = experiment.metrics
    framework: dict[str, BaseMetric] = {}
    # MMSegmentation scores dense labels alone; the other tasks stay with ours.
    if experiment.cfg.TEST.EVALUATOR == "framework" and "sem_seg" in metrics:
        from mmseg.evaluation import IoUMetric  # its import prints, see register_mmseg

        framework["sem_seg"] = IoUMetric(iou_metrics=["mIoU"])
        metrics = tuple(metric for metric in metrics if metric != "sem_seg")
    evaluator = Evaluator.from_config(experiment.test_data, experiment.cfg, metrics)
    metric = SceneKDMetric(evaluator, framework)
    for each in (metric, *framework.values()):
        each.dataset_meta = {"classes": ("background", *experiment.test_data.classes)}
    return metric


def _wrap(experiment: Experiment) -> BaseModel | MMDistributedDataParallel:
    model = SceneKDModel(experiment.net).to(experiment.device)
    if experiment.world_size == 1:
        return model
    # The Runner's own wrapper assumes CUDA devices.
    devices = [experiment.device.index] if experiment.device.type == "cuda" else None
    return MMDistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def _optim_wrapper(experiment: Experiment) -> OptimWrapper:
    parts = experiment.cfg.SOLVER.ACCUMULATE_STEPS
    if experiment.amp is None:
        return OptimWrapper(experiment.optimizer, accumulative_counts=parts)
    if experiment.amp == torch.bfloat16:
        return Bfloat16OptimWrapper(experiment.optimizer, accumulative_counts=parts)
    wrapper = AmpOptimWrapper(optimizer=experiment.optimizer, accumulative_counts=parts)
    if experiment.state.get("scaler"):
        wrapper.loss_scaler.load_state_dict(experiment.state["scaler"])
    return wrapper


class QuietRunner(Runner):
    """A Runner whose lines go to its log file; the console is the progress bar's."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.ERROR)
        return logger


def register_mmseg() -> None:
    """Import MMSegmentation's modules, which its scope needs, without what they print about absent packages."""
    with contextlib.redirect_stdout(io.StringIO()):
        register_all_modules(init_default_scope=False)


def make_runner(
    cfg: CfgNode,
    model: Any,
    *,
    kind: type[QuietRunner] = QuietRunner,
    default_hooks: Mapping[str, Any] | None = None,
    **options: Any,
) -> Runner:
    """A Runner of ``cfg.OUTPUT_DIR``, ``SEED`` and ``SOLVER.LOG_PERIOD``; what schedules rates and keeps state is ours.

    Args:
        model: on its device. default_hooks, options: of MMEngine's Runner, beside these.
    """
    output = Path(cfg.OUTPUT_DIR)
    return kind(
        model=model,
        work_dir=str(output),
        default_scope="mmseg",
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": cfg.SOLVER.LOG_PERIOD},
            "param_scheduler": None,
            "checkpoint": None,
            "sampler_seed": None,
            **(default_hooks or {}),
        },
        visualizer={
            "type": "mmengine.Visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
            "save_dir": str(output),
        },
        launcher="pytorch" if dist.is_available() and dist.is_initialized() else "none",
        randomness={"seed": cfg.SEED},
        # Runners are kept by name; several in one process need several names.
        experiment_name=f"{output.name}_{time.time_ns()}",
        cfg={"output": str(output)},
        **options,
    )
