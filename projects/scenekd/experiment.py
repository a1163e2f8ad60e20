"""One run, apart from the framework that drives it: data, network, optimizer, resume state, output folder."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.utils.data import DataLoader

from . import checkpoint, optim
from .data.catalog import Dataset, assert_disjoint, load_datasets, with_class_names
from .data.loader import make_loader
from .data.policy import SourcePolicy, build_policy
from .errors import UserError
from .evaluation.evaluator import METRIC_OF
from .extras import Extras
from .files import write_text
from .hooks import hooks_of
from .models import average_buffers, build_model, choose_device, load_initial_weights
from .resume import resume_state
from .sampling import DrawSampler, ShareSampler
from .skipped import SkippedImages
from .teachers.build import check_teacher_overlap, open_store
from .teachers.protocol import TeacherStore

logger = logging.getLogger(__name__)


class Experiment:
    """Everything that both engines share for one configuration and one process.

    Args:
        cfg: a frozen configuration.
        rank, world_size, local_rank: this process.
        resume: go on from ``OUTPUT_DIR/last.pth`` where it exists.
        whole: ``MODEL.WEIGHTS`` must hold the whole network, as an evaluation needs it.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        resume: bool = False,
        whole: bool = False,
    ) -> None:
        cfg = with_class_names(cfg)
        self.cfg, self.rank, self.world_size = cfg, rank, world_size
        self.whole = whole
        self.output_dir = Path(cfg.OUTPUT_DIR)
        self.device = choose_device(cfg)
        if self.device.type == "cuda" and world_size > 1:
            self.device = torch.device("cuda", local_rank)
        self.state = resume_state(cfg) if resume else {}
        self.start_iteration: int = int(self.state.get("iteration", 0))
        self.best: float | None = self.state.get("best")
        self.skipped = SkippedImages()
        self.hooks = hooks_of(cfg)

    # Data ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def test_images(self) -> Dataset:
        """The images of ``DATASETS.TEST``."""
        return load_datasets(self.cfg.DATASETS.TEST, self.cfg, train=False)

    @functools.cached_property
    def test_data(self) -> Dataset:
        """What is evaluated: :attr:`test_images`, or the cases that the system makes of them."""
        return self.hooks.prepare_data(self.test_images, self.cfg, train=False)

    @functools.cached_property
    def train_data(self) -> Dataset:
        """The images of ``DATASETS.TRAIN``; none of them stands in the test set, unless allowed."""
        data = load_datasets(self.cfg.DATASETS.TRAIN, self.cfg, train=True)
        if self.cfg.DATASETS.TEST and not self.cfg.DATASETS.ALLOW_OVERLAP:
            assert_disjoint(data, self.test_images)
        return self.hooks.prepare_data(data, self.cfg, train=True)

    @functools.cached_property
    def policy(self) -> SourcePolicy:
        """Which source each image takes, for each task."""
        return build_policy(self.cfg, self.train_data.image_ids)

    @functools.cached_property
    def stores(self) -> dict[str, TeacherStore]:
        """The teachers' outputs that the policy needs."""
        records = self.train_data.records
        return {task: open_store(self.cfg, task, records=records) for task in self.policy.teacher_tasks}

    def check_data(self, *, train: bool) -> None:
        """Find the data, and for training the teachers' outputs: what is missing is told before any work."""
        if self.cfg.DATASETS.TEST:
            self.test_data  # noqa: B018 - read, and kept
        if train:
            self.train_data  # noqa: B018
            check_teacher_overlap(self.cfg)
            self.stores  # noqa: B018

    @property
    def images_per_process(self) -> int:
        """Images of one iteration in this process."""
        images, parts = self.cfg.SOLVER.IMS_PER_BATCH, self.world_size * self.cfg.SOLVER.ACCUMULATE_STEPS
        if images % parts:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH: {images} images do not divide among {self.world_size} processes × "
                f"{self.cfg.SOLVER.ACCUMULATE_STEPS} SOLVER.ACCUMULATE_STEPS"
            )
        return images // self.world_size

    def train_loader(self) -> DataLoader[Any]:
        """Batches from ``start_iteration`` to ``SOLVER.MAX_ITER`` for this process."""
        cfg = self.cfg
        mapper = self.hooks.build_mapper(
            self.train_data,
            cfg,
            train=True,
            teachers=self.stores,
            policy=self.policy,
            soft_size=self.soft_size(),
            instance_masks="instance_segmentation" in getattr(self.net, "tasks", ()),
        )
        self.skipped.watch("train", mapper, self.state.get("skipped", ()))
        sampler = DrawSampler(
            self.images_per_process,
            start=self.start_iteration,
            stop=cfg.SOLVER.MAX_ITER,
            rank=self.rank,
            world_size=self.world_size,
        )
        return make_loader(mapper, cfg, self.device, batch_sampler=sampler)

    def test_loader(self) -> DataLoader[Any]:
        """The test images, each in exactly one process."""
        mapper = self.hooks.build_mapper(self.test_data, self.cfg, train=False)
        sampler = ShareSampler(len(mapper), self.rank, self.world_size)
        size = self.cfg.TEST.BATCH_SIZE
        return make_loader(mapper, self.cfg, self.device, sampler=sampler, batch_size=size)

    # Network ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def net(self) -> nn.Module:
        """The network on its device, with ``MODEL.WEIGHTS`` or the resumed weights."""
        net = build_model(self.cfg, pretrained=not (self.state or self.whole))
        observe = getattr(net, "observe_data", None)
        if observe is not None and not self.whole:
            observe(self.train_data)  # what it takes of the labels' statistics, which its checkpoint keeps
        prepare = getattr(net, "prepare_training", None)
        if prepare is not None and not self.whole:
            prepare(self.cfg)  # what it learns by, which an evaluation does not need
        if self.state:
            weights = self.state["model"]
            if self.whole and self.cfg.SOLVER.EMA.ENABLED:  # an evaluation is of the averaged weights
                weights = weights | self.state.get("ema", {})
            checkpoint.load_state(net, weights, str(self.output_dir / checkpoint.LAST), strict=True)
        elif self.whole:
            checkpoint.load_weights(net, self.cfg.MODEL.WEIGHTS, strict=True)
        else:
            load_initial_weights(net, self.cfg.MODEL.WEIGHTS)
        return net.to(self.device)

    @property
    def metrics(self) -> tuple[str, ...]:
        """``TEST.METRICS`` of the tasks that the network has."""
        tasks = {METRIC_OF[task] for task in getattr(self.net, "tasks", METRIC_OF)}
        return tuple(metric for metric in self.cfg.TEST.METRICS if metric in tasks)

    def soft_size(self) -> tuple[int, int] | None:
        """(h, w) at which the network compares dense soft labels, where it has such a task."""
        return getattr(self.net, "segmentation_size", None)

    @functools.cached_property
    def extras(self) -> Extras:
        """What training keeps beside network and optimizer, with its resumed state."""
        return Extras(self.net, self.cfg, self.state)

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, with its resumed state."""
        optimizer = optim.build_optimizer(self.net, self.cfg, self.extras.before_step)
        if self.state:
            given = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
            optimizer.load_state_dict(self.state["optimizer"])
            # A rate or decay that was changed for the rest of the run counts.
            for group, (lr, decay) in zip(optimizer.param_groups, given):
                group.update(initial_lr=lr, weight_decay=decay)
        return optimizer

    @functools.cached_property
    def amp(self) -> torch.dtype | None:
        """What mixed precision computes in, or None where it is off.

        Raises:
            UserError: ``SOLVER.AMP.DTYPE`` is unknown.
        """
        return optim.mixed_precision(self.cfg, self.device)

    # Output -------------------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def config_text(self) -> str:
        """The configuration as YAML."""
        return self.cfg.dump()

    def prepare_output(self) -> None:
        """Make ``OUTPUT_DIR`` and write ``config.yaml`` there."""
        if self.is_main:
            write_text(self.output_dir / "config.yaml", self.config_text())

    def save_resume(self, iteration: int, engine: str, scaler: dict[str, Any] | None = None) -> None:
        """Write ``last.pth``: all that is needed to go on at ``iteration``. Random numbers need no state."""
        state = checkpoint.model_state(self.net, self.config_text())
        state.update(
            optimizer=self.optimizer.state_dict(),
            scaler=scaler or {},
            iteration=iteration,
            engine=engine,
            best=self.best,
            skipped=self.skipped.ids("train"),
            **self.extras.state_dict(),
        )
        state.update({"SEED": self.cfg.SEED, "SOLVER.IMS_PER_BATCH": self.cfg.SOLVER.IMS_PER_BATCH})
        checkpoint.atomic_save(state, self.output_dir / checkpoint.LAST)

    def sync_buffers(self) -> None:
        """Average batch statistics over processes, so that all evaluate, and rank 0 saves, one network."""
        average_buffers(self.net)

    def save_model(self, name: str = checkpoint.MODEL_FINAL) -> None:
        """Write the network as a model checkpoint, with its averaged weights where they are kept."""
        with self.extras.averaged():
            checkpoint.save_model(self.net, self.config_text(), self.output_dir / name)
