"""A native MMEngine or MMSegmentation configuration, run by MMEngine's Runner."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .. import checkpoint
from ..config import native_text
from ..errors import UserError, first_line
from ..models import average_buffers
from ..report_panels import PanelFolder
from ..visualize import View
from .datasets import from_mmseg
from .mmengine_data import SceneKDDataset
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
        if not torch.cuda.is_available() and self.cfg.get("model_wrapper_cfg") is None:
            # Of several processes; the Runner's default assumes CUDA devices.
            unused = self.cfg.get("find_unused_parameters", False)
            self.cfg.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
            self.cfg.model_wrapper_cfg.update(broadcast_buffers=False, find_unused_parameters=unused)
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
        net = _bare(runner)
        average_buffers(net)
        if is_main_process():
            text = native_text("mmengine", self.cfg.pretty_text)
            checkpoint.save_model(net, text, Path(self.output_dir) / checkpoint.MODEL_FINAL)
        return _by_task(last)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the weights on the test set, or, where the file names none, on the validation set."""
        if not self.weights:
            raise UserError("load_from: --eval-only needs a checkpoint; add load_from FILE")
        runner = self._runner()
        _load_weights(runner, self.weights)
        loop = runner.test_loop if runner._test_loop is not None else None
        if loop is None and runner._val_loop is not None:
            loop = runner.val_loop
        if loop is None:
            raise UserError(f"{self.run.config_file}: test_cfg, test_dataloader or test_evaluator is missing")
        if self.run.show_dir:
            runner.register_hook(_Panels(self.run.show_dir, loop.dataloader.dataset))
        return _by_task(runner.test() if runner._test_loop is not None else runner.val())

    def _runner(self) -> Runner:
        try:
            runner = RUNNERS.build(self.cfg) if self.cfg.get("runner_type") else Runner.from_cfg(self.cfg)
        except (KeyError, TypeError, ValueError) as error:  # an unknown name or option, or one out of range
            raise UserError(
                f"{self.run.config_file}: what it describes cannot be built ({first_line(error)})"
            ) from error
        runner.register_hook(_OneNetwork())
        return runner


class _Weights(Hook):
    """Loads a checkpoint once MMEngine has initialised the model, which would undo it."""

    priority = "VERY_HIGH"

    def __init__(self, path: str) -> None:
        self.path = path

    def before_train(self, runner: Runner) -> None:
        """Load it."""
        _load_weights(runner, self.path)


def _bare(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


class _OneNetwork(Hook):
    """Several processes evaluate one network, not each its own batch statistics, and end each step before it is saved:
    their wrapper takes it itself, and does not ask the model."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """A critic's own step, where there is one."""
        if hasattr(_bare(runner), "end_step"):
            _bare(runner).end_step()

    def before_val_epoch(self, runner: Runner) -> None:
        """Average them."""
        average_buffers(_bare(runner))


class _Panels(Hook):
    """Draws every image that is evaluated."""

    def __init__(self, folder: str, dataset: Any) -> None:
        own = isinstance(dataset, SceneKDDataset)  # it knows the boxes too
        data = dataset.dataset if own else from_mmseg(dataset, type(dataset).__name__)
        self.panels = PanelFolder(folder, data)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the images of a batch."""
        for sample in outputs:
            view = View("network")
            if "pred_sem_seg" in sample:
                view.sem_seg = sample.pred_sem_seg.data[0].cpu().numpy().astype("uint8")
            if "pred_instances" in sample:
                found = sample.pred_instances
                view.boxes, view.labels, view.scores = (
                    found[name].float().cpu().numpy() for name in ("bboxes", "labels", "scores")
                )
                view.masks = found.masks.cpu().numpy() if "masks" in found else None
            self.panels.write(sample.img_path, view)

    after_val_iter = after_test_iter


class _Last(Hook):
    """Keeps the numbers of the last validation."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results = results

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Replace what is kept."""
        self.results.clear()
        self.results.update(metrics or {})


def _load_weights(runner: Runner, path: str) -> None:
    checkpoint.load_weights(_bare(runner), path)


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
