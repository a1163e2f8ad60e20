"""A native detectron2 configuration, run by detectron2's DefaultTrainer."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from .. import checkpoint
from ..array_pickle import read_weight_file
from ..config import apply_overrides, native_text, read_config
from ..data.catalog import load_dataset
from ..errors import UserError
from ..evaluation.evaluator import METRIC_OF
from ..models import NO_FILE, average_buffers
from ..report_panels import PanelFolder
from .detectron2 import SceneKDDatasetMapper, add_scenekd_config, register_datasets
from .detectron2_data import with_classes
from .detectron2_evaluators import PanelEvaluator, framework_evaluators
from .detectron2_parts import wrap_for_processes
from .keys import BareKeys
from .native import NativeRun


class Session:
    """One process of a native run."""

    def __init__(self, run: NativeRun) -> None:
        self.run, self.cfg = run, load_native(run)
        self.output_dir: str = self.cfg.OUTPUT_DIR

    def train(self) -> dict[str, Any]:
        """Train, and evaluate on DATASETS.TEST."""
        if not self.cfg.DATASETS.TRAIN:
            raise UserError("DATASETS.TRAIN: names no data set; give one, such as \"('voc2012_seg_train',)\"")
        register_datasets(self.cfg)
        if self.cfg.SEED >= 0:
            seed_all_rng(self.cfg.SEED + comm.get_rank())
        trainer = NativeTrainer(self.cfg)
        trainer.resume_or_load(resume=self.run.resume)
        trainer.train()
        return dict(getattr(trainer, "_last_eval_results", {}))  # what train() returns with EXPECTED_RESULTS

    def evaluate(self) -> dict[str, Any]:
        """Evaluate MODEL.WEIGHTS."""
        if not self.cfg.MODEL.WEIGHTS:
            raise UserError("MODEL.WEIGHTS: --eval-only needs a checkpoint; add MODEL.WEIGHTS FILE")
        model = NativeTrainer.build_model(self.cfg)
        checkpoint.load_weights(model, self.cfg.MODEL.WEIGHTS)
        return NativeTrainer.test(self.cfg, model, show_dir=self.run.show_dir)


class _ReadByUs(CfgNode):
    """detectron2's configuration, but files are read as :func:`scenekd.config.read_config` reads them."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Any:
        """What the file and its ``_BASE_`` say; never unsafe YAML."""
        return read_config(filename)


def load_native(run: NativeRun) -> CfgNode:
    """The configuration of a run: detectron2's defaults, SceneKD's, the file, the command line.

    In both a teacher may stand as a URI, as in SceneKD's own configurations.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    cfg = _ReadByUs(get_cfg())
    add_scenekd_config(cfg)
    try:
        cfg.merge_from_file(run.config_file)
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"{run.config_file}: {error.args[0] if error.args else error}") from None
    apply_overrides(cfg, run.overrides)
    if run.output_dir:
        cfg.OUTPUT_DIR = run.output_dir
    if run.weights:
        cfg.MODEL.WEIGHTS = run.weights
    if cfg.MODEL.DEVICE == "auto" or (cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available()):
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.freeze()
    return cfg


class NativeCheckpointer(DetectionCheckpointer):
    """detectron2's, whose files are also SceneKD's and MMEngine's: see :mod:`scenekd.checkpoint`."""

    text = ""  # of the configuration

    def save(self, name: str, **more: Any) -> None:
        """Write OUTPUT_DIR/name.pth."""
        weights = self.model.state_dict()
        super().save(name, state_dict=weights, config=self.text, format=checkpoint.FORMAT, **more)

    def load(self, path: str, *args: Any, **options: Any) -> dict[str, Any]:
        """As detectron2's; ``torchvision`` is no file: the network has loaded its trunk's weights already."""
        found: dict[str, Any] = super().load("" if path in NO_FILE else path, *args, **options)
        return found

    def _load_file(self, filename: str) -> dict[str, Any]:
        # detectron2 unpickles whatever a .pkl holds; a zoo's files are arrays and nothing else.
        return read_weight_file(filename) if filename.endswith(".pkl") else super()._load_file(filename)


class NativeTrainer(DefaultTrainer):
    """detectron2's trainer on SceneKD's data, scored by detectron2's own evaluators."""

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own constructor wraps the network for CUDA devices only.
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        net = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, net)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        loop = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = loop(wrap_for_processes(net), self.build_train_loader(cfg), optimizer)
        self.checkpointer = NativeCheckpointer(net, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.text = native_text("detectron2", cfg.dump())
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[Any]:
        """The default hooks; before a checkpoint and an evaluation the step is ended, and all processes agree on batch
        statistics."""
        cfg = self.cfg
        periods = [p for p in (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) if p > 0]

        def agree(trainer: Any) -> None:
            if hasattr(trainer.checkpointer.model, "end_step"):
                trainer.checkpointer.model.end_step()
            done = trainer.iter + 1
            if done == trainer.max_iter or any(done % period == 0 for period in periods):
                average_buffers(trainer.checkpointer.model)

        return [hooks.CallbackHook(after_step=agree), *super().build_hooks()]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Our mapper; the images without one kind of label stay."""
        return build_detection_train_loader(cfg, mapper=SceneKDDatasetMapper(cfg, is_train=True))

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None, show_dir: str = ""
    ) -> dict[str, Any]:
        """The results of DATASETS.TEST, for the tasks that the model has; several sets are kept apart by name.

        Args:
            show_dir: where a panel of every image is drawn.
        """
        tasks = _tasks(model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model)
        mapper = SceneKDDatasetMapper(cfg, is_train=False) if cfg.DATASETS.TEST else None
        full, results = with_classes(cfg), {}
        for name in cfg.DATASETS.TEST:
            loader = build_detection_test_loader(cfg, name, mapper=mapper)
            data = load_dataset(name, full)
            scorer = framework_evaluators(data, cfg, tasks)
            if show_dir:
                scorer = DatasetEvaluators([scorer, PanelEvaluator(PanelFolder(show_dir, data))])
            results[name] = inference_on_dataset(model, loader, scorer)
        return next(iter(results.values())) if len(results) == 1 else results


def _tasks(model: nn.Module) -> tuple[str, ...]:
    """What a model is scored for."""
    if isinstance(model, BareKeys):
        return tuple(METRIC_OF[task] for task in getattr(model.net, "tasks", METRIC_OF))
    dense = ("sem_seg",) if hasattr(model, "sem_seg_head") else ()
    masks = ("segm",) if getattr(getattr(model, "roi_heads", None), "mask_on", False) else ()
    detects = isinstance(model, (GeneralizedRCNN, DenseDetector)) or not dense
    return ("bbox", *masks, *dense) if detects else dense
