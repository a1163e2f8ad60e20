"""Score saved predictions of any model.

A folder holds ``detections.json``, COCO's results format ([{"image_id", "category_id", "bbox": [x, y, w, h],
"score"}, …] with 0-based corners), and/or ``segmentation/<image_id>.png``, class indices with 0 for
background. ``image_id`` is the data set's own (VOC's id, COCO's number). ``category_id`` counts the classes
from 1; for a COCO json it is that file's own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from ..data.coco import find_json
from ..data.images import read_sem_seg
from ..data.records import Dataset
from ..errors import UserError
from .coco_api import CocoTruth
from .evaluator import Evaluator

DETECTIONS = "detections.json"
SEGMENTATION = "segmentation"


def score_predictions(folder: str | Path, dataset: Dataset, cfg: CfgNode) -> dict[str, dict[str, Any]]:
    """Score the folder's predictions; the tasks are those whose files exist.

    Args:
        cfg: for ``TEST.BOX_METRIC``, ``TEST.BOOTSTRAP``, ``SEED``, ``DATASETS.ROOT``.

    Returns:
        as :meth:`Evaluator.summarize`.

    Raises:
        UserError: no such folder, nothing to score in it, an unknown image id, a mask that is missing or has
            the wrong size, a value out of range.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; --predictions takes one with {DETECTIONS} or {SEGMENTATION}/"
        )
    detections, masks = folder / DETECTIONS, folder / SEGMENTATION
    tasks = [task for task, path in (("sem_seg", masks), ("bbox", detections)) if path.exists()]
    if not tasks:
        raise UserError(f"{folder}: holds neither {DETECTIONS} nor {SEGMENTATION}/; write one of them")
    evaluator = Evaluator.from_config(dataset, cfg, tasks)
    boxes = read_detections(detections, dataset, category_ids(dataset, cfg)) if "bbox" in tasks else None
    if "sem_seg" in tasks:
        _check_masks(masks, dataset)
    for record in dataset.records:
        arrays: dict[str, Any] = {} if boxes is None else dict(boxes[record.image_id])
        if "sem_seg" in tasks and record.has_sem_seg:
            size = dataset.read_sem_seg(record).shape
            path = masks / f"{record.image_id}.png"
            arrays["sem_seg"] = read_sem_seg(
                str(path), (size[0], size[1]), num_classes=len(dataset.classes), palette=dataset.palette
            )
        evaluator.add_arrays(record.image_id, **arrays)
    return evaluator.summarize()


def category_ids(dataset: Dataset, cfg: CfgNode) -> tuple[int, ...]:
    """The category id of each class: the json's own for a COCO data set, otherwise 1…C."""
    path = find_json(dataset.name, cfg.DATASETS.ROOT)
    if path is None:
        return tuple(range(1, len(dataset.classes) + 1))
    return CocoTruth.from_json(path, dataset).category_ids


def read_detections(path: Path, dataset: Dataset, ids: tuple[int, ...]) -> dict[str, dict[str, np.ndarray]]:
    """COCO results → boxes (N, 4) float64 xyxy, labels, scores of every image; no entry means no detection.

    Raises:
        UserError: not such a file, or a bad entry, which is named by its position.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, list):
        raise UserError(f"{path}: must hold a list of detections (COCO's results format)")
    labels = {category: k for k, category in enumerate(ids)}
    rows: dict[str, list[tuple[list[float], int, float]]] = {r.image_id: [] for r in dataset.records}
    for position, entry in enumerate(content):
        image_id, row = _parse_entry(f"{path}: entry {position}", entry, labels)
        if image_id not in rows:
            raise UserError(
                f"{path}: entry {position}: image_id {image_id!r} is not in {dataset.name}; "
                "score on the data set that was predicted"
            )
        rows[image_id].append(row)
    return {
        image_id: {
            "boxes": np.array([row[0] for row in part], np.float64).reshape(-1, 4),
            "labels": np.array([row[1] for row in part], np.int64),
            "scores": np.array([row[2] for row in part], np.float64),
        }
        for image_id, part in rows.items()
    }


def _parse_entry(
    where: str, entry: Any, labels: dict[int, int]
) -> tuple[str, tuple[list[float], int, float]]:
    if not isinstance(entry, dict) or not {"image_id", "category_id", "bbox", "score"} <= entry.keys():
        raise UserError(f"{where}: needs image_id, category_id, bbox and score")
    box, score, category = entry["bbox"], entry["score"], entry["category_id"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))) or min(box[2:]) < 0:
        raise UserError(f"{where}: bbox must be [x, y, width, height], finite, no side below 0; got {box!r}")
    if not _is_number(score):
        raise UserError(f"{where}: score must be a finite number, got {score!r}")
    if isinstance(category, (list, dict)) or category not in labels:
        raise UserError(f"{where}: category_id {category!r} is none of {_span(labels)}")
    x, y, w, h = map(float, box)
    return str(entry["image_id"]), ([x, y, x + w, y + h], labels[category], float(score))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _span(labels: dict[int, int]) -> str:
    return f"the {len(labels)} ids {min(labels)}…{max(labels)} of the data set"


def _check_masks(folder: Path, dataset: Dataset) -> None:
    """Refuse a folder that lacks an image's mask, or holds one of an image the data set does not have."""
    present = {path.stem for path in folder.glob("*.png")}
    wanted = [record.image_id for record in dataset.records if record.has_sem_seg]
    missing = [image_id for image_id in wanted if image_id not in present]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(wanted)} masks are missing, for example {missing[0]}.png; "
            "write one index PNG for each image"
        )
    unknown = sorted(present - {record.image_id for record in dataset.records})
    if unknown:
        raise UserError(
            f"{folder}: {unknown[0]}.png stands for no image of {dataset.name} ({len(unknown)} such files)"
        )
