"""What a teacher has seen of the images on which the student is trained and tested."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ..data.catalog import load_dataset, load_datasets
from ..errors import UserError
from .cache import CacheStore
from .more import each_teacher
from .options import FOLDERS, cache_folder, teacher_node
from .protocol import TASKS

logger = logging.getLogger(__name__)


def check_teacher_overlap(cfg: Any) -> list[str]:
    """Refuse a teacher that was trained on images of ``DATASETS.TEST``; unless ``DATASETS.ALLOW_OVERLAP``.

    Data sets are compared by image ids where ``TEACHER.<TASK>.TRAINED_ON`` (or the manifest of the cache)
    names sets that can be loaded, else by their names.

    Returns:
        One line a teacher and training set: what it shares with the student's training and test sets.
    """
    return [line for task in TASKS for line in check_overlap(cfg, task, _trained_on(cfg, task))]


def check_overlap(cfg: Any, task: str, trained_on: Iterable[str]) -> list[str]:
    """:func:`check_teacher_overlap` of one task's teacher, which was trained on these data sets."""
    lines: list[str] = []
    for name in trained_on:
        test, train = (shared_images(cfg, name, which) for which in ("TEST", "TRAIN"))
        shared = f"{_count(test)} of DATASETS.TEST and {_count(train)} of DATASETS.TRAIN"
        lines.append(f"{task} teacher, trained on {name}: shares {shared}")
        if test and not cfg.DATASETS.ALLOW_OVERLAP:
            raise UserError(
                f"TEACHER.{task.upper()}: trained on {name}, which shares {shared}; "
                "choose another teacher or test set, or set DATASETS.ALLOW_OVERLAP True"
            )
    for line in lines:
        logger.info("%s", line)
    return lines


def _count(images: int | None) -> str:
    return "an unknown number of images" if images is None else f"{images} images"


def _trained_on(cfg: Any, task: str) -> tuple[str, ...]:
    """Of the teacher and of the further ones of ``MORE``."""
    return tuple(dict.fromkeys(name for one in each_teacher(cfg, task) for name in _of_one(one.cfg, task)))


def _of_one(cfg: Any, task: str) -> tuple[str, ...]:
    node = teacher_node(cfg, task)
    if node.TRAINED_ON or node.TYPE in FOLDERS or not (node.TYPE or node.CACHE):
        return tuple(node.TRAINED_ON)
    try:
        return tuple(CacheStore(cache_folder(cfg, task)).info.get("trained_on", ()))
    except UserError:
        return ()


def shared_images(cfg: Any, name: str, which: str) -> int | None:
    """How many images of ``DATASETS.<which>`` the data set ``name`` holds; None where that cannot be told."""
    names = tuple(cfg.DATASETS[which])
    if not names:
        return 0
    ours = load_datasets(names, cfg, train=False)
    if name in names:
        return len(load_dataset(name, cfg))
    try:
        theirs = load_dataset(name, cfg, on_error="skip")
    except UserError:
        return None
    return len(set(theirs.image_ids) & set(ours.image_ids))
