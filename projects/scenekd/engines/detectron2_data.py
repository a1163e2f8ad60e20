"""Our data sets, augmentation and teachers behind detectron2's data loaders."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from fvcore.common.config import CfgNode
from torch import Tensor

from .. import registry
from ..data.catalog import assert_disjoint, load_datasets
from ..data.coco import is_coco_name
from ..data.mapper import Mapper
from ..data.policy import build_policy
from ..data.records import Dataset, Record
from ..data.voc import is_voc_name
from ..errors import UserError
from ..models import build_model
from ..sample import IGNORE_INDEX, TASKS, Target
from ..sampling import draw_rng
from ..teachers.build import check_teacher_overlap, open_store
from .datasets import register_in_detectron2
from .detectron2_masks import SceneKDMaskRCNNHead, add_masks
from .detectron2_matching import instances_of
from .detectron2_transforms import SceneKDAugmentation

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
    """From a dictionary of detectron2's data sets to what a model is told, with SceneKD's teachers.

    The labels are read through SceneKD's catalog, by the image's id, so that an image without boxes or without a
    mask is told apart from an empty one; teachers are asked by the same id. In training,
    DATALOADER.FILTER_EMPTY_ANNOTATIONS must be False: detectron2 would drop the images without boxes.

    A network of SceneKD's gets SceneKD's augmentation: {'image' (3, S, S) RGB, 'target', …}. Any other model gets
    detectron2's, of ``cfg.INPUT``, and its conventions:

    - image: (3, h, w) uint8, in INPUT.FORMAT.
    - instances: boxes of ground truth and teacher, see :func:`.detectron2_matching.instances_of`; with MODEL.MASK_ON
      their masks, see :func:`.detectron2_masks.add_masks`.
    - sem_seg: (h, w) int64, everywhere void (SEM_SEG_HEAD.IGNORE_VALUE) where the image has no mask that counts.
    - soft_sem_seg: (K, h, w) float32 and soft_sem_seg_valid: (h, w) bool, the pixels that count by
      ``DISTILL.SEGMENTATION.VOID``, of images that learn from a teacher.
    - has_boxes, has_sem_seg, has_teacher_boxes: which labels exist. weights: SourceWeights of the image.

    In testing there are no labels in it.

    Args:
        cfg: a detectron2 configuration with SceneKD's keys.
        is_train: augment, and ask the teachers of ``DISTILL``.
        augmentations: of detectron2, instead of the above; before a network of SceneKD's, a resize to S × S follows.

    Raises:
        UserError: FILTER_EMPTY_ANNOTATIONS is on; a policy per_batch, which needs SceneKD's own loader; keypoints or
            proposals are asked for, or masks for a head that needs one for every box; and what
            :func:`scenekd.data.catalog.load_datasets` raises.
    """

    def __init__(
        self,
        cfg: CfgNode,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform] | None = None,
    ) -> None:
        cfg = with_classes(cfg)
        self.is_train = is_train
        self.own = cfg.MODEL.META_ARCHITECTURE in _own_networks()
        data = load_datasets(cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST, cfg, train=is_train)
        self.records = {record.image_id: record for record in data.records}
        stores: dict[str, Any] = {}
        if is_train:
            _check_loader(cfg)
            if cfg.DATASETS.TEST and not cfg.DATASETS.ALLOW_OVERLAP:
                assert_disjoint(data, load_datasets(cfg.DATASETS.TEST, cfg, train=False))
            check_teacher_overlap(cfg)
            tasks = build_policy(cfg, data.image_ids).teacher_tasks
            stores = {task: open_store(cfg, task) for task in tasks}
        options: dict[str, Any] = {"train": is_train, "teachers": stores}
        if self.own and is_train:
            soft_size, masks = _needs(cfg)
            options["instance_masks"] = masks
            options["soft_size"] = soft_size if "segmentation" in stores or masks else None
        if self.own and augmentations is not None:
            augmentations = [*augmentations, T.Resize((cfg.INPUT.SIZE, cfg.INPUT.SIZE))]
        if augmentations is not None:
            options["transforms"] = SceneKDAugmentation(augmentations, cfg.INPUT.FORMAT)
        if not self.own:
            _check_theirs(cfg, is_train)
            options["instance_masks"] = is_train and cfg.MODEL.MASK_ON
            options.setdefault("transforms", SceneKDAugmentation.from_config(cfg, is_train))
        self.image_format, self.ignore_value = cfg.INPUT.FORMAT, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        self.void = cfg.DISTILL.SEGMENTATION.VOID
        self.mapper = _RecordMapper(data, cfg, **options)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """The dictionary that the model takes."""
        record = self.records[str(item["image_id"])]
        # detectron2 seeds this generator in every worker
        draw = int(np.random.randint(2**31)) if self.is_train else 0  # noqa: NPY002
        image, target = self.mapper.of_record(record, draw)
        known = {
            "image": image,
            "image_id": item["image_id"],
            "file_name": record.file_name,
            "height": target.height,
            "width": target.width,
        }
        if self.own:
            return {**known, "target": target}
        if self.image_format == "BGR":
            known["image"] = image.flip(0)
        return {**known, **self._labels(target, image.shape[-2:])} if self.is_train else known

    def _labels(self, target: Target, size: Sequence[int]) -> dict[str, Any]:
        height, width = size
        mask = torch.full((height, width), IGNORE_INDEX)
        if target.sem_seg is not None and target.weights.segmentation_gt > 0:
            mask = target.sem_seg
        labels = {
            "instances": add_masks(instances_of(target, (height, width)), target),
            "sem_seg": mask.masked_fill(mask == IGNORE_INDEX, self.ignore_value),
            "has_boxes": target.has_boxes,
            "has_sem_seg": target.has_sem_seg,
            "has_teacher_boxes": target.has_teacher_boxes,
            "weights": target.weights,
        }
        if target.soft_seg is not None:
            labels.update(soft_sem_seg=target.soft_seg, soft_sem_seg_valid=self._valid(target))
        return labels

    def _valid(self, target: Target) -> Tensor:
        """(h, w) bool, the teacher's pixels that count by ``DISTILL.SEGMENTATION.VOID``."""
        assert target.soft_valid is not None
        if self.void == "none":
            return torch.ones_like(target.soft_valid)
        if self.void == "labels" and target.sem_seg is not None:
            return target.soft_valid & (target.sem_seg != IGNORE_INDEX)
        return target.soft_valid


class _RecordMapper(Mapper):
    """A mapper whose records are chosen from outside."""

    def of_record(self, record: Record, draw: int) -> tuple[Tensor, Target]:
        sample = self.transforms(self._read(record, draw), draw_rng(self.seed, draw))
        return torch.from_numpy(sample.image).permute(2, 0, 1).contiguous(), self._target(sample)


def check_format(cfg: CfgNode) -> None:
    """Refuse an INPUT.FORMAT that is neither RGB nor BGR.

    Raises:
        UserError: it is.
    """
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT: {cfg.INPUT.FORMAT!r}; choose RGB or BGR")


def _check_theirs(cfg: CfgNode, train: bool) -> None:
    check_format(cfg)
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        if train and cfg.MODEL[key]:
            raise UserError(
                f"MODEL.{key}: SceneKDDatasetMapper gives boxes and masks alone; set it to False, or take "
                "detectron2's DatasetMapper"
            )
    head = cfg.MODEL.ROI_MASK_HEAD.NAME
    if train and cfg.MODEL.MASK_ON and not issubclass(_mask_head(head), SceneKDMaskRCNNHead):
        raise UserError(
            f"MODEL.MASK_ON: {head} would take boxes without a mask for empty objects; set MODEL.ROI_MASK_HEAD.NAME to "
            "SceneKDMaskRCNNHead, or to a class derived from it"
        )


def _mask_head(name: str) -> type:
    found = ROI_MASK_HEAD_REGISTRY.get(name) if name in ROI_MASK_HEAD_REGISTRY else None
    return found if isinstance(found, type) else object


def _own_networks() -> set[str]:
    return {name for kind, name, _ in registry.records() if kind == "model"}


def _check_loader(cfg: CfgNode) -> None:
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        raise UserError(
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS: True drops the images without boxes; set it to False"
        )
    for task in (task.upper() for task in TASKS):
        if cfg.DISTILL[task].POLICY == "per_batch":
            raise UserError(f"DISTILL.{task}.POLICY: per_batch needs SceneKD's own loader; use combined")


def _needs(cfg: CfgNode) -> tuple[tuple[int, int] | None, bool]:
    """Size at which the network compares dense labels, and whether it learns masks of boxes."""
    net = build_model(cfg, pretrained=False)
    return getattr(net, "segmentation_size", None), "instance_segmentation" in getattr(net, "tasks", ())
