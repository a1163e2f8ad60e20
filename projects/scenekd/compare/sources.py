"""What is compared: checkpoints of students, results of runs, and the teacher of a configuration.

H, W: size of an image.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from .. import checkpoint
from ..data.records import Dataset, Record
from ..errors import UserError
from ..predictor import open_config, open_predictor
from ..report_panels import TeacherViews
from ..teachers.options import our_classes, teacher_node
from ..teachers.overlap import check_overlap
from ..view import View

TASK = "segmentation"
TEACHER = "teacher"  # its name on pictures and in tables
METRICS = ("mIoU", "pACC", "mACC", "fwIoU")
PREFIX = "IoU-"  # of the per-class numbers in results.json

LabelMap = Callable[[Record, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Source:
    """One network, or what one has said.

    Attributes:
        name: of its column. file: where it is from.
        label_map: (record, (H, W, 3) uint8 RGB image) → (H, W) uint8 dense classes, background first.
        seed: that it was trained with; None where that is not known.
        trained_on: data sets, as far as they are known.
        net: None where only its saved outputs are at hand. ask: lets it look at one image.
        device: where ``net`` is.
    """

    name: str
    file: str
    label_map: LabelMap
    seed: int | None = None
    trained_on: tuple[str, ...] = ()
    net: nn.Module | None = None
    ask: Callable[[np.ndarray], object] | None = None
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Numbers:
    """A run's results, in percent.

    Attributes:
        scores: those of no single class. iou: class, background too → IoU, NaN where undefined.
        trained_on: data sets, as far as they are known.
    """

    name: str
    file: str
    seed: int | None
    scores: Mapping[str, float]
    iou: Mapping[str, float]
    trained_on: tuple[str, ...] = ()


def open_student(name: str, weights: str, cfg: CfgNode, classes: Sequence[str]) -> Source:
    """The network of a checkpoint of any system that has the task, built from the configuration inside the file; from
    ``cfg`` where there is none.

    Args:
        classes: names of the object classes that it must have, in this order.

    Raises:
        UserError: no such checkpoint, weights of another network, another task, or other classes.
    """
    inside = checkpoint.config_of(weights) is not None
    own = open_config(weights, ["MODEL.DEVICE", cfg.MODEL.DEVICE]) if inside else cfg
    theirs = our_classes(own)
    if theirs != tuple(classes):
        raise UserError(f"{name}={weights}: {_other_classes(theirs, classes)}; give a checkpoint of the same")
    predict = open_predictor(weights, own, strict=True)
    tasks = getattr(predict.net, "tasks", (TASK,))
    if TASK not in tasks:
        raise UserError(f"{name}={weights}: does {' and '.join(tasks)}, not {TASK}")

    def label_map(record: Record, image: np.ndarray) -> np.ndarray:
        mask = View.of_prediction(name, predict(image)).sem_seg
        if mask is None:
            raise UserError(f"{name}={weights}: says nothing of {TASK}")
        return mask

    seed, trained_on = (own.SEED, tuple(own.DATASETS.TRAIN)) if inside else (None, ())
    return Source(
        name, weights, label_map, seed, trained_on, predict.net, predict, torch.device(predict.device)
    )


def open_teacher(cfg: CfgNode) -> Source:
    """The teacher of ``TEACHER.SEGMENTATION``: its cache is read where it holds an image, else its network is asked.

    Raises:
        UserError: no teacher, one that cannot be had, or one that was trained on the test images.
    """
    node = teacher_node(cfg, TASK)
    if not (node.TYPE or node.CACHE):
        raise UserError(f"TEACHER.{TASK.upper()}: names no teacher; set it, or leave --teacher out")
    views = TeacherViews(cfg, (TASK,))
    network = views.network(TASK)
    lacking = views.problems.get(TASK)  # why there is no network, where there should be one
    trained_on = tuple(node.TRAINED_ON if network is None else network.info()["trained_on"])
    check_overlap(cfg, TASK, trained_on)

    def label_map(record: Record, image: np.ndarray) -> np.ndarray:
        mask = views(record, image).sem_seg
        if mask is None:
            nothing_saved = f"its saved outputs hold no image {record.image_id}"
            why = lacking or views.problems.get(TASK, nothing_saved)
            raise UserError(why if why.startswith("TEACHER") else f"TEACHER.{TASK.upper()}: {why}")
        return mask

    told = node.NAME or node.WEIGHTS or node.CACHE
    source = Source(TEACHER, f"{node.TYPE}://{told}" if node.TYPE else str(told), label_map, None, trained_on)
    if network is None:
        return source
    return dataclasses.replace(
        source,
        net=network.net,
        ask=lambda image: network.predict([image]),
        device=torch.device(network.device),
    )


def read_numbers(name: str, path: str, dataset: Dataset) -> Numbers:
    """The per-class numbers of a run's ``results.json``.

    Args:
        dataset: that the run must have been scored on.

    Raises:
        UserError: no such file, no per-class numbers, other classes, or another test set.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}={path}: cannot be read as results ({error}); give results.json") from None
    found = content.get("sem_seg", {}) if isinstance(content, dict) else {}
    iou = iou_of(found)
    if not iou:
        raise UserError(f"{name}={path}: holds no IoU of single classes")
    wanted = ("background", *dataset.classes)
    if tuple(iou) != wanted:
        raise UserError(f"{name}={path}: {_other_classes(tuple(iou), wanted)}; give results of the same")
    meta = content.get("meta", {})
    test = meta.get("test", {})
    if test and ("+".join(test["names"]), test["images"]) != (dataset.name, len(dataset)):
        raise UserError(
            f"{name}={path}: scored on {test['images']} images of {'+'.join(test['names'])}, not on the "
            f"{len(dataset)} of {dataset.name}"
        )
    scores = {key: found[key] for key in METRICS if found.get(key) is not None}
    return Numbers(name, path, meta.get("seed"), scores, iou, tuple(meta.get("train", {}).get("names", ())))


def iou_of(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Class → IoU from the numbers of the task, as in ``results.json``; NaN where there is none."""
    return {
        key.removeprefix(PREFIX): math.nan if value is None else float(value)
        for key, value in numbers.items()
        if key.startswith(PREFIX) and not key.endswith("_interval")
    }


def _other_classes(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if sorted(theirs) == sorted(ours):
        return "has the classes of the configuration in another order"
    named = ", ".join(sorted(set(theirs) ^ set(ours))[:3])
    return f"has {len(theirs)} classes that are not the configuration's {len(ours)} ({named} differ)"
