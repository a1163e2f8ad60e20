"""Teachers and their stores from ``cfg.TEACHER.<TASK>``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch

from ..data.records import Record
from ..errors import UserError
from ..models import choose_device
from .cache import CacheStore
from .codec import DEFAULT_SETTINGS
from .context import check_cached, check_context, context_note
from .folder import FolderStore
from .images import file_sha256
from .label_map import ClassMap, build_class_map
from .manifest import REBUILD, Manifest
from .more import each_teacher, merge_stores, set_nms
from .options import FOLDERS, KINDS, LIVE, NETWORKS, cache_folder, our_classes, teacher_node
from .overlap import check_teacher_overlap
from .protocol import SAVED_TASKS, Teacher, TeacherInfo, TeacherStore
from .sparse import SparseStore

__all__ = [
    "build_manifest",
    "build_teacher",
    "check_teacher_overlap",
    "open_saved",
    "open_store",
    "teacher_amp",
    "teacher_class_map",
]


_WITH_MASKS = "torchvision, scenekd or detectron2"  # kinds that know masks of objects

logger = logging.getLogger(__name__)


def build_teacher(cfg: Any, task: str) -> Teacher:
    """The network that ``cfg.TEACHER.<TASK>`` describes.

    Raises:
        UserError: no teacher, one of another kind or for another task, weights that cannot be had.
    """
    node, key, device = teacher_node(cfg, task), f"TEACHER.{task.upper()}", choose_device(cfg)
    if node.TYPE in FOLDERS:
        raise UserError(f"{key}.TYPE: {node.TYPE} holds saved outputs; there is nothing to ask or to cache")
    if node.TYPE in LIVE:
        raise UserError(
            f"{key}.TYPE: {node.TYPE} is asked while a student trains; set DISTILL.TEACHER online"
        )
    if not node.TYPE:
        raise UserError(f"{key}.TYPE: set it to one of {', '.join(NETWORKS)}")
    options: dict[str, Any] = {"classes": node.CLASSES, "trained_on": node.TRAINED_ON, "device": device}
    options["amp"] = teacher_amp(cfg, device)
    limits = {"min_score": node.MIN_SCORE, "max_boxes": node.MAX_BOXES, "seed": cfg.SEED}
    try:
        teacher = _network(cfg, node, task, options, limits)
    except UserError as error:
        raise UserError(str(error).replace("TEACHER.<TASK>", key)) from None
    if task not in teacher.tasks:
        raise UserError(f"{key}: {node.NAME or node.WEIGHTS} does {' and '.join(teacher.tasks)}, not {task}")
    if task == "detection" and node.NMS_THRESHOLD:
        set_nms(teacher, node.NMS_THRESHOLD, node.MAX_BOXES)
    return cast(Teacher, teacher)


def _network(cfg: Any, node: Any, task: str, options: dict[str, Any], limits: dict[str, Any]) -> Any:
    """The teacher of a type; frameworks are imported only here."""
    dense = cfg.TEACHER.SEGMENTATION
    if task == "segmentation" and dense.GRID != "own" and node.TYPE not in ("detectron2", "mmseg"):
        raise UserError(f"TEACHER.<TASK>.GRID: {node.TYPE} teachers keep their own grid; set it to own")
    if node.TYPE == "torchvision":
        from .zoo_torchvision import build_torchvision

        return build_torchvision(node.NAME, node.WEIGHTS, **options, **limits)
    if node.TYPE == "detectron2":
        from .zoo_detectron2 import Detectron2Teacher

        options |= {"task": task, "head": dense.HEAD, "grid": dense.GRID, **limits}
        return Detectron2Teacher(node.NAME, node.WEIGHTS, **options)
    if node.TYPE == "mmseg":
        if task == "instance_segmentation":
            raise UserError(
                f"TEACHER.<TASK>: MMSegmentation has no instance segmentation; choose {_WITH_MASKS}"
            )
        from .zoo_mmseg import MMSegTeacher

        return MMSegTeacher(node.NAME, node.WEIGHTS, grid=dense.GRID, seed=cfg.SEED, **options)
    from .scenekd_teacher import SceneKDTeacher

    return SceneKDTeacher(node.WEIGHTS, node.CONFIG, **options)


def teacher_amp(cfg: Any, device: torch.device) -> bool:
    """Whether teachers run in mixed precision: asked for, and on CUDA."""
    if cfg.TEACHER.AMP and device.type != "cuda":
        logger.warning("TEACHER.AMP: no CUDA device, teachers run in float32")
        return False
    return bool(cfg.TEACHER.AMP)


def teacher_class_map(cfg: Any, task: str, source: Iterable[str]) -> ClassMap:
    """From the teacher's classes to ours, by the configuration's pairs."""
    node = teacher_node(cfg, task)
    return build_class_map(
        tuple(source),
        our_classes(cfg),
        node.CLASS_MAP,
        allow_unmapped=node.ALLOW_UNMAPPED,
        key=f"TEACHER.{task.upper()}",
    )


def build_manifest(cfg: Any, task: str, teacher: Teacher, class_map: ClassMap) -> Manifest:
    """The manifest of a cache that is to be made."""
    node = teacher_node(cfg, task)
    detection = task != "segmentation"  # boxes, with or without masks
    info = teacher.info() | {"source": _source(node)}
    if detection:
        info["form"] = ""
    if task == "detection":
        info |= context_note(cfg)
    return Manifest(
        task=task,
        classes=our_classes(cfg),
        teacher=info,
        class_map=class_map.as_dict(),
        codec={} if detection else dataclasses.asdict(DEFAULT_SETTINGS),
        min_score=float(node.MIN_SCORE) if detection else 0.0,
        max_boxes=int(node.MAX_BOXES) if detection else 0,
    )


def open_store(cfg: Any, task: str, records: Iterable[Record] = ()) -> TeacherStore:
    """The saved outputs of the teacher of a task, as a run learns from them: a dense teacher's made sparse where
    ``SPARSE`` asks for it, detection teachers' with those of ``MORE``, and merged by ``MERGE``.

    Args:
        records: the images that will be read; the store must fit them.

    Raises:
        UserError: nothing there, or it was made for other classes, by another teacher, or from other images.
    """
    if task not in SAVED_TASKS:
        raise UserError(
            f"DISTILL.{task.upper()}.POLICY: what a teacher of {task} says is not saved; set it to ground_truth"
        )
    records = list(records)
    if task == "segmentation":
        store = open_saved(cfg, task, records)
        return SparseStore(store) if cfg.TEACHER.SEGMENTATION.SPARSE else store
    if task != "detection":
        return open_saved(cfg, task, records)
    stores, teachers = [], each_teacher(cfg, task)
    check_cached(cfg, [one.node.TYPE for one in teachers])
    for one in teachers:
        with one.naming():
            stores.append(open_saved(one.cfg, task, records))
    return merge_stores(cfg, stores)


def open_saved(cfg: Any, task: str, records: Iterable[Record] = ()) -> TeacherStore:
    """The saved outputs of one teacher, ``TEACHER.<TASK>``, as they were saved: a folder of them, or the cache.

    Raises:
        UserError: as :func:`open_store`.
    """
    node, key = teacher_node(cfg, task), f"TEACHER.{task.upper()}"
    if node.TYPE in FOLDERS:
        if task == "instance_segmentation":
            raise UserError(f"{key}.TYPE: {node.TYPE} holds no masks of objects; choose {_WITH_MASKS}")
        class_map = teacher_class_map(cfg, task, node.CLASSES or our_classes(cfg))
        name = node.NAME or Path(node.WEIGHTS).name
        info = TeacherInfo(node.TYPE, name, trained_on=tuple(node.TRAINED_ON))
        if not node.WEIGHTS:
            raise UserError(f"{key}.WEIGHTS: set it to the folder of the saved outputs")
        suffixes = {"detection": (".xml",), "segmentation": FOLDERS[node.TYPE][-1:]}[task]
        return FolderStore(node.WEIGHTS, task, class_map, info, suffixes)
    if not (node.TYPE or node.CACHE):
        raise UserError(f"{key}.TYPE: set it to one of {', '.join(KINDS)}")
    store = CacheStore(cache_folder(cfg, task), task=task, classes=our_classes(cfg))
    if node.TYPE:
        _check_teacher(store, node, key)
        if task == "detection":
            check_context(store.folder, store.info, cfg)
    store.check_images(records)
    return store


def _source(node: Any) -> dict[str, str]:
    """What a configuration says of a teacher: kept in the manifest, compared when the cache is opened."""
    weights = str(node.WEIGHTS)
    is_file = Path(weights).is_file()
    return {
        "type": node.TYPE,
        "name": node.NAME,
        "weights": Path(weights).name,
        "file_sha256": file_sha256(weights) if is_file else "",
    }


def _check_teacher(store: CacheStore, node: Any, key: str) -> None:
    made, wanted = store.info.get("source", {}), _source(node)
    if not wanted["file_sha256"]:  # the weights may have gone since
        wanted["file_sha256"] = made.get("file_sha256", "")
    if wanted["file_sha256"]:  # equal content under another name is the same teacher
        wanted["weights"] = made.get("weights", "")
    for field, value in wanted.items():
        if made.get(field) != value:
            raise UserError(
                f"{store.folder}: another teacher's ({field} {made.get(field)!r}, {key} says {value!r}); "
                f"{REBUILD}, with --rebuild"
            )
