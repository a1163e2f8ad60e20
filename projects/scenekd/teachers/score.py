"""A teacher alone: how right, how sure and how sparse it is, before anybody learns from it.

What a store holds is held against the labelled part of a data set; see :class:`TeacherScore` for the columns.
Shape shorthand: H, W: the image; K: dense classes, background first.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..data.geometry import identity_coordinates
from ..data.records import Dataset, Record
from ..data.soft import convert_soft, sample_soft
from ..errors import UserError
from ..evaluation.calibration import CalibrationBins
from ..evaluation.detection import right_boxes
from ..evaluation.evaluator import Evaluator
from ..files import write_text
from ..sample import IGNORE_INDEX, SoftSegmentation
from .build import open_store
from .protocol import Detections, InstanceStore, TeacherStore

FILE_NAME = "teacher_scores.json"
COLUMNS = ("images", "quality", "calibration_error", "entropy", "sparsity", "agreement")


@dataclass
class TeacherScore:
    """One teacher's numbers; shares are 0…100, None where a task has no such number or nothing is labelled.

    Attributes:
        task, teacher: one of TASKS; the name of the model. Of instance masks, quality and sparsity alone are told.
        labelled: images with ground truth of the task that the store holds too.
        images: those of them that were looked at; where none is labelled, images of the store.
        quality: detection: VOC's mAP of all stored boxes; segmentation: mIoU; instance masks: COCO's mask AP.
        calibration_error: ECE (15 bins) of a box's score, right being a first match of its class at IoU above
            .5 with a box that is not difficult (matches of difficult ones do not count), over the boxes that
            pass the filter; of a labelled pixel's largest probability, right being its class.
        entropy: segmentation: mean over pixels of −Σ p log p / log K.
        sparsity: detection, instance masks: images without a box that passes the filter; segmentation: pixels
            where no class exceeds background.
        agreement: detection: boxes of the ground truth, not difficult, that have such a first match, over the
            boxes that pass the filter; segmentation: labelled pixels whose likeliest class is theirs.
        min_score: the filter, ``DISTILL.<TASK>.MIN_SCORE``; 0 for segmentation.
        basis: what the numbers are of, to tell whether a saved score still holds.
    """

    task: str
    teacher: str
    labelled: int
    images: int
    quality: float | None = None
    calibration_error: float | None = None
    entropy: float | None = None
    sparsity: float | None = None
    agreement: float | None = None
    min_score: float = 0.0
    basis: dict[str, Any] = dataclasses.field(default_factory=dict)


def score_teacher(
    cfg: Any, task: str, dataset: Dataset, *, store: TeacherStore | None = None, limit: int = 0
) -> TeacherScore:
    """The score of the teacher of a task on images of ``dataset``, from what its store holds.

    Args:
        store: of the teacher, where it is open.
        limit: images looked at, evenly spaced over the labelled ones; 0: all.

    Raises:
        UserError: no store, or one that fits the images not; none of them in it; a damaged record.
    """
    store = store or open_store(cfg, task, dataset.records)
    held = [record for record in dataset.records if record.image_id in store]
    if not held:
        raise UserError(
            f"TEACHER.{task.upper()}: its store holds no image of {dataset.name}; nothing to score"
        )
    labelled = [record for record in held if record.has(task)]
    chosen = _spread(labelled or held, limit)
    score = TeacherScore(task, str(store.info.get("name", "")), len(labelled), len(chosen))
    score.basis = basis_of(cfg, task, store)
    part = dataclasses.replace(dataset, records=chosen)
    score.min_score = float(cfg.DISTILL[task.upper()].get("MIN_SCORE", 0.0))
    if task == "detection":
        _score_boxes(score, store, part, bool(labelled))
    elif task == "instance_segmentation":
        _score_masks(score, cast(InstanceStore, store), part, bool(labelled))
    else:
        _score_pixels(score, store, part)
    return score


def basis_of(cfg: Any, task: str, store: TeacherStore) -> dict[str, Any]:
    """What shapes a score beside the number of images: the teacher, the labels that are left, the filter."""
    data = cfg.DATASETS
    inner = getattr(store, "store", store)  # of one that gives another's outputs in another form
    node = cfg.TEACHER[task.upper()]
    keep = {
        "detection": data.KEEP_BOXES,
        "segmentation": data.KEEP_SEM_SEG,
        "instance_segmentation": [data.KEEP_BOXES, data.KEEP_INSTANCE_MASKS],
    }[task]
    return {
        "teacher": [store.info.get(key, "") for key in ("type", "name", "weights_sha256", "form")],
        "cache": getattr(getattr(inner, "manifest", None), "identity", ""),
        "merged": [
            str(node.get(key, "")) for key in ("MERGE", "MERGE_IOU", "MERGE_SIGMA", "SCORE_FACTOR", "MORE")
        ],
        "data": [list(data.TRAIN), str(data.ROOT), data.MAX_IMAGES, keep, data.KEEP_SEED],
        "classes": list(store.classes),
        "filter": cfg.DISTILL[task.upper()].get("MIN_SCORE", 0.0),
    }


def _spread(records: Sequence[Record], limit: int) -> list[Record]:
    if not limit or limit >= len(records):
        return list(records)
    return [records[i] for i in np.linspace(0, len(records) - 1, limit).round().astype(int)]


def _score_boxes(score: TeacherScore, store: TeacherStore, dataset: Dataset, labelled: bool) -> None:
    said = {r.image_id: store.get_detections(r.image_id) for r in dataset.records}
    passing = {image_id: boxes.keep(score.min_score, None) for image_id, boxes in said.items()}
    score.sparsity = 100 * float(np.mean([not len(boxes.scores) for boxes in passing.values()]))
    if not labelled:
        return
    evaluator = Evaluator(dataset, tasks=("bbox",))
    bins, found, wanted = CalibrationBins(), 0, 0
    for record in dataset.records:
        evaluator.add_arrays(record.image_id, **_fields(said[record.image_id]))
        boxes = passing[record.image_id]
        assert record.boxes is not None and record.labels is not None  # it is labelled
        hard = np.zeros(len(record.boxes), bool) if record.difficult is None else record.difficult
        target = {"boxes": record.boxes, "labels": record.labels, "difficult": hard}
        right, counted = right_boxes(_fields(boxes), target, num_classes=len(dataset.classes))
        bins.add(boxes.scores[counted], right[counted])
        found, wanted = found + int(right.sum()), wanted + int((~hard).sum())
    score.quality = _number(evaluator.summarize()["bbox"]["mAP"])
    score.calibration_error = _number(100 * bins.error())
    score.agreement = 100 * found / wanted if wanted else None


def _score_masks(score: TeacherScore, store: InstanceStore, dataset: Dataset, labelled: bool) -> None:
    evaluator, empty = Evaluator(dataset, tasks=("segm",)), []
    for record in dataset.records:
        found = store.get_instances(record.image_id)
        empty.append(not (found.scores >= score.min_score).any())
        if labelled:
            masks, labels, scores = found.masks(), found.labels, found.scores
            evaluator.add_arrays(record.image_id, masks=masks, labels=labels, scores=scores)
    score.sparsity = 100 * float(np.mean(empty))
    if labelled:
        score.quality = _number(evaluator.summarize()["segm"]["AP"])


def _fields(boxes: Detections) -> dict[str, np.ndarray]:
    return {"boxes": boxes.boxes, "labels": boxes.labels, "scores": boxes.scores}


def _score_pixels(score: TeacherScore, store: TeacherStore, dataset: Dataset) -> None:
    evaluator = Evaluator(dataset, tasks=("sem_seg",))
    bins, entropy, empty = CalibrationBins(), [], []
    right, labelled = 0, 0
    for record in dataset.records:
        soft = store.get_segmentation(record.image_id)
        p = pixel_probabilities(soft, record.size())
        likeliest = p.argmax(axis=0)
        entropy.append(mean_entropy(p))
        empty.append(float(np.mean(likeliest == 0)))
        if not record.has_sem_seg:
            continue
        truth = dataset.read_sem_seg(record)
        evaluator.add_arrays(record.image_id, sem_seg=likeliest.astype(np.uint8))
        known = truth != IGNORE_INDEX
        hit = (likeliest == truth)[known]
        bins.add(np.minimum(p.max(axis=0)[known], 1.0), hit)
        right, labelled = right + int(hit.sum()), labelled + len(hit)
    score.entropy, score.sparsity = 100 * float(np.mean(entropy)), 100 * float(np.mean(empty))
    if labelled:
        score.quality = _number(evaluator.summarize()["sem_seg"]["mIoU"])
        score.calibration_error = _number(100 * bins.error())
        score.agreement = 100 * right / labelled


def pixel_probabilities(soft: SoftSegmentation, size: tuple[int, int]) -> np.ndarray:
    """(K, H, W) float32 probabilities of each pixel of an image of that size (height, width).

    Of a sparse teacher's scores background is 1 − the largest, and what is there is divided by its sum: such a
    teacher says nothing of its own about background.
    """
    values, _ = sample_soft(soft, identity_coordinates(*size), background="explicit")
    if soft.form == "logits":
        return torch.from_numpy(values).softmax(0).numpy()
    return convert_soft(values, soft.form, "probabilities")


def mean_entropy(probabilities: np.ndarray) -> float:
    """Mean over positions of −Σ_k p log p / log K: 0 where one class is certain, 1 where all are alike.

    Args:
        probabilities: (K, …), K at least 2.
    """
    p = torch.from_numpy(np.ascontiguousarray(probabilities))
    return float(-torch.special.xlogy(p, p).sum(0).double().mean()) / math.log(len(probabilities))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write_scores(folder: str | Path, scores: Mapping[str, TeacherScore]) -> Path:
    """Write ``teacher_scores.json`` of scores by task into a folder; returns its path."""
    path = Path(folder) / FILE_NAME
    body = {task: dataclasses.asdict(score) for task, score in scores.items()}
    write_text(path, json.dumps(body, indent=1) + "\n")
    return path


def read_scores(folder: str | Path) -> dict[str, TeacherScore]:
    """The scores that a folder holds; none where there is no file, or one that cannot be read."""
    try:
        body = json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))
        return {str(task): TeacherScore(**fields) for task, fields in body.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def score_rows(scores: Mapping[str, TeacherScore]) -> list[list[Any]]:
    """Task, teacher and :data:`COLUMNS` of each score."""
    return [[s.task, s.teacher, *(getattr(s, name) for name in COLUMNS)] for s in scores.values()]


HEADERS = ("task", "teacher", "images", "mAP / mIoU", "ECE", "entropy", "sparsity", "agreement")


def score_table(scores: Mapping[str, TeacherScore]) -> str:
    """The scores as text, in percent; a dash where a task has no such number."""
    rows = [list(HEADERS)]
    for row in score_rows(scores):
        rows.append([f"{v:.2f}" if isinstance(v, float) else "–" if v is None else str(v) for v in row])
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADERS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )
