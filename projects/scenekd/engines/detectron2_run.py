"""A run driven by detectron2: its trainer, hooks, event writers and evaluation loop."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils.events import CommonMetricPrinter, TensorboardXWriter
from torch import nn
from torch.utils.data import DataLoader

from ..data.mapper import collate
from ..evaluation.evaluator import Evaluator
from ..experiment import Experiment
from ..recorder import Recorder
from .detectron2_evaluators import framework_evaluators
from .detectron2_model import SceneKDMetaArch
from .detectron2_parts import SceneKDEvaluator, SceneKDHook, SceneKDTrainer, wrap_for_processes

NAME = "detectron2"


def train(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Train to SOLVER.MAX_ITER and evaluate; returns the final results, empty without a test set."""
    cfg = experiment.cfg
    experiment.prepare_output()
    recorder = Recorder(experiment, NAME)
    model = _wrap(experiment)
    scaler = _grad_scaler(experiment)
    trainer = SceneKDTrainer(
        model,
        _loader(experiment.train_loader()),
        experiment.optimizer,
        accumulate=cfg.SOLVER.ACCUMULATE_STEPS,
        amp=experiment.amp,
        grad_scaler=scaler,
    )
    latest: dict[str, dict[str, Any]] = {}

    def run_evaluation() -> dict[str, Any]:
        latest.clear()
        with experiment.extras.averaged():
            latest.update(_evaluate(experiment, model))
        # At the end of training the trainer has counted its last step already.
        recorder.evaluated(min(trainer.iter + 1, cfg.SOLVER.MAX_ITER), latest)
        model.train()
        return {t: {k: v for k, v in m.items() if isinstance(v, float)} for t, m in latest.items()}

    registered = [hooks.IterationTimer(), SceneKDHook(recorder)]
    if cfg.DATASETS.TEST:
        registered.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, run_evaluation))
    if experiment.is_main:
        writers = [CommonMetricPrinter(cfg.SOLVER.MAX_ITER), TensorboardXWriter(str(experiment.output_dir))]
        registered.append(hooks.PeriodicWriter(writers, period=cfg.SOLVER.LOG_PERIOD))
    trainer.register_hooks(registered)
    trainer.train(experiment.start_iteration, cfg.SOLVER.MAX_ITER)
    if cfg.DATASETS.TEST and not latest:
        with experiment.extras.averaged():
            latest.update(_evaluate(experiment, model))
    return latest


def evaluate(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Evaluate the network on DATASETS.TEST."""
    return _evaluate(experiment, _wrap(experiment))


def _evaluate(experiment: Experiment, model: nn.Module) -> dict[str, dict[str, Any]]:
    experiment.sync_buffers()
    data, cfg, metrics = experiment.test_data, experiment.cfg, experiment.metrics
    evaluator: DatasetEvaluator
    if cfg.TEST.EVALUATOR == "framework":
        evaluator = framework_evaluators(data, cfg, metrics)
    else:
        evaluator = SceneKDEvaluator(Evaluator.from_config(data, cfg, metrics))
    return inference_on_dataset(model, _loader(experiment.test_loader()), evaluator)


def _collate(items: list[Any]) -> list[dict[str, Any]]:
    images, targets = collate(items)
    return [
        {
            "image": image,
            "target": target,
            "image_id": target.image_id,
            "file_name": target.file_name,
            "height": target.height,
            "width": target.width,
        }
        for image, target in zip(images, targets)
    ]


def _loader(loader: DataLoader[Any]) -> DataLoader[Any]:
    # The same loader under both engines; only the batch's container differs.
    loader.collate_fn = _collate
    return loader


def _wrap(experiment: Experiment) -> nn.Module:
    return wrap_for_processes(SceneKDMetaArch(experiment.net).to(experiment.device))


def _grad_scaler(experiment: Experiment) -> torch.amp.GradScaler | None:
    if experiment.amp != torch.float16:
        return None
    scaler = torch.amp.GradScaler("cuda")
    if experiment.state.get("scaler"):
        scaler.load_state_dict(experiment.state["scaler"])
    return scaler


def quiet_console() -> None:
    """Keep detectron2's lines off the console, where the progress bar is; the log file has them."""
    for handler in logging.getLogger("detectron2").handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.WARNING)
