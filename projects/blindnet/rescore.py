"""Detections, hidden in turn and scored again by what the context says of them.

N: detections of an image; D: of all images; C: classes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.data.coco import find_json
from scenekd.data.holes import areas
from scenekd.data.images import read_image
from scenekd.data.records import Record
from scenekd.errors import UserError
from scenekd.evaluation.coco_api import CocoRecords, CocoTruth
from scenekd.evaluation.detection import DetectionRecords, right_boxes
from scenekd.evaluation.statistics import paired_bootstrap
from scenekd.teachers.options import our_classes

from .detections import Found
from .region_context import RegionContext
from .rescore_rule import Cases, Rule

UNLIKELY = 4.0  # a class is out of context where it is so many times less likely than it usually is
_LISTED = 3  # likeliest classes told of a detection

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Judged:
    """What the context says of detections.

    Attributes:
        found: the detections. cases: the same, in the order of the data set's images.
        place: (D,) int64, where each case stands among the entries of ``found``. image_ids: (D,) of their images.
        boxes: (D, 4) float64 xyxy.
        right, counted: (D,) bool by AP's rule at IoU .5; not counted: on a "difficult" box, or in an image without
            labels.
        images: that hold a detection. seconds: of reading these, hiding and asking.
    """

    found: Found
    cases: Cases
    place: np.ndarray
    image_ids: np.ndarray
    boxes: np.ndarray
    right: np.ndarray
    counted: np.ndarray
    images: int
    seconds: float

    def with_scores(self, scores: np.ndarray) -> Found:
        """The detections with the scores (D,) of the cases."""
        given = np.empty(len(scores))
        given[self.place] = scores
        return self.found.with_scores(given.tolist())


def judge(found: Found, context: RegionContext, cfg: CfgNode, min_score: float | None = None) -> Judged:
    """Hide every detection and ask the context.

    Args:
        cfg: for ``MODEL.BLINDNET.RESCORE``. min_score: in the place of its ``MIN_SCORE``.

    Raises:
        UserError: the data set has other classes than the network.
        BadRecordError: an image that cannot be read.
    """
    dataset, options = found.dataset, cfg.MODEL.BLINDNET.RESCORE
    if dataset.classes != our_classes(cfg):
        raise UserError(
            f"{dataset.name}: has {len(dataset.classes)} classes, the network {len(our_classes(cfg))}; set "
            "DATASETS.CLASSES to those that the network was trained on"
        )
    least = options.MIN_SCORE if min_score is None else min_score
    places = found.positions()
    records = [record for record in dataset.records if record.image_id in places]
    own = [found.arrays(record.image_id) for record in records]
    start = time.perf_counter()
    said: list[np.ndarray] = []
    for first in range(0, len(records), context.pictures_at_once):
        part = slice(first, first + context.pictures_at_once)
        images = [read_image(record) for record in records[part]]
        asked = [one["scores"] >= least for one in own[part]]
        rows = context(
            images,
            [one["boxes"][keep] for one, keep in zip(own[part], asked)],
            [one["scores"][keep] for one, keep in zip(own[part], asked)],
        )
        for keep, probabilities in zip(asked, rows):
            whole = np.full((len(keep), len(dataset.classes)), np.nan)
            whole[keep] = probabilities
            said.append(whole)
    seconds = time.perf_counter() - start
    counts = [len(one["labels"]) for one in own]
    flags = [_flags(record, one, len(dataset.classes)) for record, one in zip(records, own)]
    sizes = np.array([record.size() for record in records], np.float64).reshape(-1, 2).prod(axis=1)
    boxes = _joined([one["boxes"] for one in own], (0, 4))
    scores = _joined([one["scores"] for one in own], (0,))
    image = np.repeat(np.arange(len(records)), counts)
    sure = scores >= options.SURE
    return Judged(
        found=found,
        cases=Cases(
            image=image,
            labels=_joined([one["labels"] for one in own], (0,)).astype(np.int64),
            scores=scores,
            probabilities=_joined(said, (0, len(dataset.classes))),
            share=areas(boxes) / np.repeat(sizes, counts),
            others=np.bincount(image, weights=sure, minlength=len(records))[image] - sure,
        ),
        place=_joined([np.array(places[record.image_id]) for record in records], (0,)).astype(np.int64),
        image_ids=np.repeat([record.image_id for record in records], counts),
        boxes=boxes,
        right=_joined([right for right, _ in flags], (0,)).astype(bool),
        counted=_joined([counted for _, counted in flags], (0,)).astype(bool),
        images=len(records),
        seconds=seconds,
    )


def _joined(parts: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(empty)])


def _flags(record: Record, own: dict[str, np.ndarray], classes: int) -> tuple[np.ndarray, np.ndarray]:
    if record.boxes is None:
        none = np.zeros(len(own["labels"]), bool)
        return none, none
    return right_boxes(own, _target(record), num_classes=classes)


def _target(record: Record) -> dict[str, Any]:
    target: dict[str, Any] = {"boxes": record.boxes, "labels": record.labels}
    return target if record.difficult is None else target | {"difficult": record.difficult}


def average_precisions(before: Found, after: Found, cfg: CfgNode) -> Results:
    """AP of detections before and after, by VOC's rule (``bbox``) and by pycocotools (``coco``), each also as
    ``…_before``, and what they gain in ``…_gain`` with the 95 % interval of a bootstrap over images, in which each
    resample is drawn for both. All in percent.

    Args:
        cfg: for ``TEST.BOOTSTRAP``, ``SEED``, ``DATASETS.ROOT``.

    Raises:
        UserError: no image of the data set has boxes.
    """
    dataset = before.dataset
    labelled = [record for record in dataset.records if record.boxes is not None]
    if not labelled:
        raise UserError(f"{dataset.name}: no image has boxes; nothing can be scored")
    path = find_json(dataset.name, cfg.DATASETS.ROOT)
    truth = CocoTruth.from_records(dataset) if path is None else CocoTruth.from_json(path, dataset)
    results: Results = {}
    for name, headline in (("bbox", "AP50"), ("coco", "AP")):
        records: list[DetectionRecords | CocoRecords] = []
        for found in (before, after):
            one: DetectionRecords | CocoRecords
            one = DetectionRecords(dataset.classes) if name == "bbox" else CocoRecords(dataset.classes, truth)
            for record in labelled:
                one.add(record.image_id, found.arrays(record.image_id), _target(record))
            records.append(one)
        old, new = (one.summary() for one in records)
        results[name], results[f"{name}_before"] = new, old
        gain = results[f"{name}_gain"] = {key: new[key] - old[key] for key in new}
        if cfg.TEST.BOOTSTRAP:
            low, high = paired_bootstrap(
                records[0].ap_statistic(),
                records[1].ap_statistic(),
                len(labelled),
                resamples=cfg.TEST.BOOTSTRAP,
                seed=cfg.SEED,
            )
            for k, key in enumerate([headline, *(f"AP-{c}" for c in dataset.classes)]):
                gain[f"{key}_interval"] = [100 * float(low[k]), 100 * float(high[k])]
    return results


def out_of_context(judged: Judged, rule: Rule, rescored: np.ndarray, sure: float) -> list[dict[str, Any]]:
    """Detections with a score of ``sure`` or more whose class the context takes for :data:`UNLIKELY` times less likely
    than usual, the unlikeliest first: ``position`` among the entries, ``image_id``, ``class``, ``bbox`` xyxy,
    ``score``, ``rescored``, ``probability`` that the context gives the class, ``usual`` = m, the ``likeliest`` classes
    with theirs, and whether it is ``right`` (None where that does not count).

    Args:
        rescored: (D,).
    """
    cases, classes = judged.cases, rule.classes
    ratios = rule.ratios(cases)[np.arange(len(cases)), cases.labels]
    chosen = np.flatnonzero((cases.scores >= sure) & (ratios <= -np.log(UNLIKELY)))
    listed = []
    for i in chosen[np.argsort(ratios[chosen], kind="stable")].tolist():
        row, label = cases.probabilities[i], int(cases.labels[i])
        listed.append(
            {
                "position": int(judged.place[i]),
                "image_id": str(judged.image_ids[i]),
                "class": classes[label],
                "bbox": judged.boxes[i].tolist(),
                "score": float(cases.scores[i]),
                "rescored": float(rescored[i]),
                "probability": float(row[label]),
                "usual": float(rule.marginal[label]),
                "likeliest": [
                    (classes[k], float(row[k])) for k in np.argsort(-row, kind="stable")[:_LISTED].tolist()
                ],
                "right": bool(judged.right[i]) if judged.counted[i] else None,
            }
        )
    return listed


def account(judged: Judged, rule: Rule, listed: list[dict[str, Any]], sure: float) -> dict[str, Any]:
    """Numbers of a re-scoring: how many detections, of how many the context says something, the time it took, and how
    many of the sure ones are wrong, among all and among those out of context."""
    cases = judged.cases
    confident = (cases.scores >= sure) & judged.counted
    told = [one["right"] for one in listed if one["right"] is not None]
    return {
        "detections": len(cases),
        "images_with_detections": judged.images,
        "hidden": int(cases.known.sum()),
        "seconds": judged.seconds,
        "images_per_second": judged.images / judged.seconds if judged.images else 0.0,
        "sure": int(confident.sum()),
        "sure_wrong": int((confident & ~judged.right).sum()),
        "out_of_context": len(told),
        "out_of_context_wrong": told.count(False),
        "rule": rule.as_dict(),
    }
