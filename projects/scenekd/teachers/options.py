"""What ``cfg.TEACHER.<TASK>`` says: kinds of teachers, their classes, the place of their cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.voc import VOC_CLASSES
from ..errors import UserError
from .protocol import TASKS

NETWORKS = (
    "torchvision",
    "scenekd",
    "detectron2",
    "mmseg",
)  # teachers that are asked; their outputs are cached
FOLDERS = {"folder": (".npz",), "thesis": (".xml", ".npy")}  # teachers whose outputs are at hand
LIVE = ("timm",)  # classifiers that are only ever asked online
KINDS = (*NETWORKS, *LIVE, *FOLDERS)
# Keys of a teacher's node that shape what its network says.
SHAPING = ("TYPE", "NAME", "WEIGHTS", "CONFIG", "CLASSES", "MIN_SCORE", "MAX_BOXES", "NMS_THRESHOLD")


def teacher_node(cfg: Any, task: str) -> Any:
    """``cfg.TEACHER.<TASK>``."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    node = cfg.TEACHER[task.upper()]
    if node.TYPE not in ("", *KINDS):
        raise UserError(
            f"TEACHER.{task.upper()}.TYPE: {node.TYPE!r} is no teacher; choose {', '.join(KINDS)}"
        )
    return node


def our_classes(cfg: Any) -> tuple[str, ...]:
    """Names of the object classes of a configuration."""
    return tuple(cfg.DATASETS.CLASSES) or VOC_CLASSES


def cache_folder(cfg: Any, task: str) -> Path:
    """Where the cache of a task lies: ``TEACHER.<TASK>.CACHE``, or below ``OUTPUT_DIR``."""
    return Path(teacher_node(cfg, task).CACHE or Path(cfg.OUTPUT_DIR) / "teacher_cache" / task)
