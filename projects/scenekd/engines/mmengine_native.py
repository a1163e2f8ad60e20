"""A native MMEngine or MMSegmentation configuration, run by MMEngine's Runner."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .. import checkpoint
from ..errors import UserError
from .mmengine_weights import mmengine_types
from .native import NativeRun


class Session:
    """One process of a native run."""

    def __init__(self, run: NativeRun) -> None:
        self.run, self.cfg = run, load_native(run)
        self.output_dir: str = self.cfg.work_dir
        self.weights = run.weights or self.cfg.get("load_from") or ""
        # Loaded here, as MMEngine would unpickle anything, and takes no checkpoint of detectron2's.
        self.cfg.load_from = None
        self.cfg.launcher = "pytorch" if dist.is_available() and dist.is_initialized() else "none"
        if self.cfg.get("experiment_name") is None:
            # Runners are kept by name; several in one process need several names.
            self.cfg.experiment_name = f"{Path(self.output_dir).name}_{time.time_ns()}"

    def train(self) -> dict[str, Any]:
        """Train; the results are those of the last validation."""
        self.cfg.resume = self.run.resume
        runner = self._runner()
        if runner._train_loop is None:
            raise UserError(
                f"{self.run.config_file}: train_cfg, train_dataloader or optim_wrapper is missing"
            )
        last: dict[str, Any] = {}
        if runner._val_loop is not None:
            runner.register_hook(_Last(last))
        if self.weights and not self.run.resume:
            runner.register_hook(_Weights(self.weights))
        runner.train()
        if is_main_process():
            net = runner.model.module if is_model_wrapper(runner.model) else runner.model
            checkpoint.save_model(net, "", Path(self.output_dir) / checkpoint.MODEL_FINAL)
        return _by_task(last)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the weights on the test set, or, where the file names none, on the validation set."""
        if not self.weights:
            raise UserError("load_from: --eval-only needs a checkpoint; add load_from FILE")
        runner = self._runner()
        _load_weights(runner, self.weights)
        if runner._test_loop is not None:
            return _by_task(runner.test())
        if runner._val_loop is None:
            raise UserError(f"{self.run.config_file}: test_cfg, test_dataloader or test_evaluator is missing")
        return _by_task(runner.val())

    def _runner(self) -> Runner:
        return RUNNERS.build(self.cfg) if self.cfg.get("runner_type") else Runner.from_cfg(self.cfg)


class _Weights(Hook):
    """Loads a checkpoint once MMEngine has initialised the model, which would undo it."""

    priority = "VERY_HIGH"

    def __init__(self, path: str) -> None:
        self.path = path

    def before_train(self, runner: Runner) -> None:
        """Load it."""
        _load_weights(runner, self.path)


class _Last(Hook):
    """Keeps the numbers of the last validation."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results = results

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Replace what is kept."""
        self.results.clear()
        self.results.update(metrics or {})


def _load_weights(runner: Runner, path: str) -> None:
    net = runner.model.module if is_model_wrapper(runner.model) else runner.model
    with mmengine_types():
        checkpoint.load_weights(net, path)


def _by_task(metrics: dict[str, Any]) -> dict[str, Any]:
    """``bbox/AP50`` → {'bbox': {'AP50': …}}; MMSegmentation's own names stand alone, and are of sem_seg."""
    results: dict[str, Any] = {}
    for key, value in metrics.items():
        task, _, name = key.rpartition("/")
        results.setdefault(task or "sem_seg", {})[name] = value
    return results


def load_native(run: NativeRun) -> Config:
    """The configuration of a run: the file, then ``KEY VALUE`` pairs in MMEngine's keys (``train_cfg.max_iters``).

    Raises:
        UserError: the file cannot be read, or has no model.
    """
    try:
        cfg = Config.fromfile(run.config_file)
        cfg.merge_from_dict({k: _value(v) for k, v in zip(run.overrides[::2], run.overrides[1::2])})
    except (OSError, SyntaxError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise UserError(f"{run.config_file}: {error}") from None
    if "model" not in cfg:
        raise UserError(f"{run.config_file}: names no model, so it is no MMEngine configuration")
    cfg.work_dir = run.output_dir or cfg.get("work_dir") or f"./output/{Path(run.config_file).stem}"
    return cfg


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
