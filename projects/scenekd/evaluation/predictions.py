"""Score saved predictions of any model.

A folder holds ``detections.json``, COCO's results format with boxes, masks of objects or both (:mod:`.coco_results`),
and/or ``segmentation/<image_id>.png``, class indices with 0 for background. ``image_id`` is the data set's own (VOC's
id, COCO's number). ``category_id`` counts the classes from 1; for a COCO json it is that file's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from ..data.coco import find_json
from ..data.images import read_sem_seg
from ..data.records import Dataset
from ..errors import UserError
from .coco_api import CocoTruth
from .coco_results import read_results
from .evaluator import Evaluator

DETECTIONS = "detections.json"
SEGMENTATION = "segmentation"
_METRICS = {"bbox": "bbox", "segmentation": "segm"}  # what an entry holds → its metric


def score_predictions(folder: str | Path, dataset: Dataset, cfg: CfgNode) -> dict[str, dict[str, Any]]:
    """Score the folder's predictions; the tasks are those whose files exist, and that their entries hold.

    Args:
        cfg: for ``TEST.BOX_METRIC``, ``TEST.BOOTSTRAP``, ``SEED``, ``DATASETS.ROOT``.

    Returns:
        as :meth:`Evaluator.summarize`.

    Raises:
        UserError: no such folder, nothing to score in it, an unknown image id, a mask that is missing, broken or of
            the wrong size, a value out of range.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; --predictions takes one with {DETECTIONS} or {SEGMENTATION}/"
        )
    detections, masks = folder / DETECTIONS, folder / SEGMENTATION
    if not detections.exists() and not masks.exists():
        raise UserError(f"{folder}: holds neither {DETECTIONS} nor {SEGMENTATION}/; write one of them")
    tasks, found = ["sem_seg"] if masks.exists() else [], None
    if detections.exists():
        found = read_results(detections, dataset, category_ids(dataset, cfg))
        tasks += [_METRICS[shape] for shape in found.shapes]
    evaluator = Evaluator.from_config(dataset, cfg, tasks)
    if "sem_seg" in tasks:
        _check_masks(masks, dataset)
    for record in dataset.records:
        arrays = {} if found is None else found.arrays(record.image_id, record.size)
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
