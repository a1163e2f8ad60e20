"""Our data sets, augmentation and teachers behind detectron2's data loaders."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from fvcore.common.config import CfgNode
from torch import Tensor

from ..data.catalog import assert_disjoint, load_datasets
from ..data.coco import is_coco_name
from ..data.mapper import Mapper
from ..data.policy import build_policy
from ..data.records import Dataset, Record
from ..data.voc import is_voc_name
from ..errors import UserError
from ..models import build_model
from ..sample import Target
from ..sampling import draw_rng
from ..teachers.build import check_teacher_overlap, open_store
from .datasets import register_in_detectron2

_registered: set[str] = set()


def register_datasets(cfg: CfgNode) -> None:
    """Make the names of ``DATASETS`` that are ours known to detectron2, read from ``DATASETS.ROOT`` when used.

    Building a model of ours does this too. Names that detectron2 knows already stay its own.
    """
    for train, names in ((True, cfg.DATASETS.TRAIN), (False, cfg.DATASETS.TEST)):
        for name in names:
            theirs = name in DatasetCatalog.list() and name not in _registered
            if theirs or not (is_voc_name(name) or is_coco_name(name, cfg.DATASETS.ROOT)):
                continue
            _registered.add(name)
            register_in_detectron2(functools.partial(_load, name, cfg.clone(), train), name)


def _load(name: str, cfg: CfgNode, train: bool) -> Dataset:
    return load_datasets((name,), cfg, train=train)


def with_classes(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` whose DATASETS.CLASSES, where empty, are those of its first data set's metadata."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = max(cfg.SEED, 0)  # detectron2's −1 stands for any seed
    for name in () if cfg.DATASETS.CLASSES else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if is_voc_name(name) or name not in DatasetCatalog.list():
            continue
        if name in _registered:
            DatasetCatalog.get(name)  # sets the metadata
        meta = MetadataCatalog.get(name)
        names = meta.get("thing_classes") or [n for n in meta.get("stuff_classes", ()) if n != "background"]
        if names:
            cfg.DATASETS.CLASSES = tuple(names)
            break
    return cfg


class SceneKDDatasetMapper:
    """From a dictionary of detectron2's to {'image' (3, S, S) RGB, 'target', …}: our augmentation and teachers.

    The labels are read through SceneKD's catalog, by the image's id, so that an image without boxes or without a
    mask is told apart from an empty one. detectron2's own DatasetMapper works too, without teachers and difficult
    boxes. In training, DATALOADER.FILTER_EMPTY_ANNOTATIONS must be False: detectron2 would drop the images without
    boxes.

    Args:
        cfg: a detectron2 configuration with SceneKD's keys.
        is_train: augment, and ask the teachers of ``DISTILL``.

    Raises:
        UserError: FILTER_EMPTY_ANNOTATIONS is on; a policy per_batch, which needs SceneKD's own loader; and what
            :func:`scenekd.data.catalog.load_datasets` raises.
    """

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        cfg = with_classes(cfg)
        self.is_train = is_train
        data = load_datasets(cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST, cfg, train=is_train)
        self.records = {record.image_id: record for record in data.records}
        stores: dict[str, Any] = {}
        soft_size = None
        if is_train:
            _check_loader(cfg)
            if cfg.DATASETS.TEST and not cfg.DATASETS.ALLOW_OVERLAP:
                assert_disjoint(data, load_datasets(cfg.DATASETS.TEST, cfg, train=False))
            check_teacher_overlap(cfg)
            tasks = build_policy(cfg, data.image_ids).teacher_tasks
            stores = {task: open_store(cfg, task) for task in tasks}
            soft_size = _soft_size(cfg) if "segmentation" in stores else None
        self.mapper = _RecordMapper(data, cfg, train=is_train, teachers=stores, soft_size=soft_size)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """The dictionary that SceneKDMetaArch takes."""
        record = self.records[str(item["image_id"])]
        # detectron2 seeds this generator in every worker
        draw = int(np.random.randint(2**31)) if self.is_train else 0  # noqa: NPY002
        image, target = self.mapper.of_record(record, draw)
        return {
            "image": image,
            "target": target,
            "image_id": item["image_id"],
            "file_name": record.file_name,
            "height": target.height,
            "width": target.width,
        }


class _RecordMapper(Mapper):
    """A mapper whose records are chosen from outside."""

    def of_record(self, record: Record, draw: int) -> tuple[Tensor, Target]:
        sample = self.transforms(self._read(record, draw), draw_rng(self.seed, draw))
        return torch.from_numpy(sample.image).permute(2, 0, 1).contiguous(), self._target(sample)


def _check_loader(cfg: CfgNode) -> None:
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        raise UserError(
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS: True drops the images without boxes; set it to False"
        )
    for task, node in cfg.DISTILL.items():
        if node.POLICY == "per_batch":
            raise UserError(f"DISTILL.{task}.POLICY: per_batch needs SceneKD's own loader; use combined")


def _soft_size(cfg: CfgNode) -> tuple[int, int] | None:
    return getattr(build_model(cfg, pretrained=False), "segmentation_size", None)
