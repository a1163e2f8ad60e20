"""What the doctor's checks look at: data sets, policy and stores of a configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .config import import_system
from .data.catalog import load_datasets
from .data.policy import SourcePolicy, build_policy
from .data.records import Dataset
from .doctor_findings import Finding, error
from .errors import UserError
from .teachers.build import open_store
from .teachers.options import NETWORKS
from .teachers.protocol import TASKS

T = TypeVar("T")


class Facts:
    """Data sets, policy and stores of a configuration, each loaded once; ``problems`` says what was not to
    be had."""

    def __init__(self, cfg: Any, config_file: str = "CONFIG") -> None:
        self.cfg, self.config_file = cfg, config_file
        self.classes = len(cfg.DATASETS.CLASSES) or 20
        self.problems: dict[str, list[Finding]] = {}

    @functools.cached_property
    def train(self) -> Dataset | None:
        return self._try("train", lambda: load_datasets(self.cfg.DATASETS.TRAIN, self.cfg, train=True))

    @functools.cached_property
    def test(self) -> Dataset | None:
        return self._try("test", lambda: load_datasets(self.cfg.DATASETS.TEST, self.cfg, train=False))

    @functools.cached_property
    def policy(self) -> SourcePolicy | None:
        if self.train is None:
            return None
        ids = self.train.image_ids
        return self._try("policy", lambda: build_policy(self.cfg, ids, teachers=TASKS))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of the network, where its system tells them (``tasks_of``); else detection and segmentation, and the
        tasks beside them that a network of the configuration names."""
        tasks_of = getattr(import_system(self.cfg.SYSTEM), "tasks_of", None)
        if tasks_of is not None:
            return tuple(tasks_of(self.cfg))
        nodes = [node for node in self.cfg.MODEL.values() if isinstance(node, Mapping)]
        named = {task for node in nodes for task in node.get("TASKS", ())}
        return tuple(task for task in TASKS if task in named | {"detection", "segmentation"})

    def store(self, task: str) -> Any:
        """The teacher's saved outputs, where the policy asks for them."""
        return self._stores.get(task)

    @functools.cached_property
    def _stores(self) -> dict[str, Any]:
        stores: dict[str, Any] = {}
        for task in self.policy.teacher_tasks if self.policy else ():
            node = self.cfg.TEACHER[task.upper()]
            fix = ""
            if node.TYPE in NETWORKS:
                fix = f"python tools/cache_teacher.py --config-file {self.config_file} --task {task}"
            if node.TYPE or node.CACHE:  # else the policies' check has said so
                records = self.train.records if self.train else []
                stores[task] = self._try(task, functools.partial(open_store, self.cfg, task, records), fix)
        return stores

    def needed(self, task: str) -> list[str]:
        """Ids of the training images for which the policy would take the teacher's word."""
        if self.train is None or self.policy is None:
            return []
        kind, needed = self.policy[task], []
        for record in self.train.records:
            if kind.kind == "per_batch" or kind.weights(record.image_id, 0, record.has(task), True)[1] > 0:
                needed.append(record.image_id)
        return needed

    def _try(self, name: str, load: Callable[[], T], fix: str = "") -> T | None:
        try:
            return load()
        except UserError as reason:
            problem = str(reason)
            self.problems[name] = [error(problem, fix if "cache_teacher" in problem else "")]
            return None
