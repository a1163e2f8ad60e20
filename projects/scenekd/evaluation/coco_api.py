"""COCO's average precision and recall, computed by pycocotools for any data set.

Where a data set comes from a COCO json, the truth is that file's annotations as they stand (their areas
decide between small, medium and large). Otherwise it is made of the records: the area is the box's, and
"difficult" boxes are treated as COCO treats crowds, so detections on them count neither way.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.records import Dataset
from ..errors import UserError
from .arrays import to_numpy
from .coco_interval import coco_ap_interval, coco_ap_statistic
from .image_records import ImageRecords
from .statistics import Statistic

# The twelve numbers in the order of COCOeval.stats.
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass
class CocoTruth:
    """Ground truth in COCO's form.

    Attributes:
        content: images, annotations, categories.
        image_ids: a record's image_id → COCO's.
        category_ids: COCO's id of each class, in our order.
    """

    content: dict[str, list[dict[str, Any]]]
    image_ids: dict[str, Any]
    category_ids: tuple[int, ...]

    @classmethod
    def from_records(cls, dataset: Dataset) -> CocoTruth:
        """From the boxes of the records; category ids count from 1 in the order of the classes."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        image_ids = {}
        for record in dataset.records:
            if record.boxes is None or record.labels is None:
                continue
            image_ids[record.image_id] = len(images) + 1
            images.append({"id": len(images) + 1})
            count = len(record.boxes)
            difficult = np.zeros(count, bool) if record.difficult is None else record.difficult
            for box, label, hard in zip(record.boxes.astype(np.float64), record.labels, difficult):
                x1, y1, x2, y2 = box.tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": int(label) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(hard),
                    }
                )
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(dataset.classes)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        return cls(content, image_ids, tuple(range(1, len(categories) + 1)))

    @classmethod
    def from_json(cls, path: str | Path, dataset: Dataset) -> CocoTruth:
        """From an instances json, cut down to the data set's images and classes.

        Raises:
            UserError: the file lacks an image or a class of the data set.
        """
        content = json.loads(Path(path).read_bytes())
        by_name = {category["name"]: category["id"] for category in content["categories"]}
        known = {str(image["id"]): image["id"] for image in content["images"]}
        for name in dataset.classes:
            if name not in by_name:
                raise UserError(f"{path}: has no category {name!r}, which the data set {dataset.name} has")
        wanted = [record.image_id for record in dataset.records if record.has_boxes]
        for image_id in wanted:
            if image_id not in known:
                raise UserError(f"{path}: has no image {image_id}, which the data set {dataset.name} has")
        image_ids = {image_id: known[image_id] for image_id in wanted}
        category_ids = tuple(by_name[name] for name in dataset.classes)
        images, categories = set(image_ids.values()), set(category_ids)
        return cls(
            {
                "images": [image for image in content["images"] if image["id"] in images],
                "annotations": [
                    a
                    for a in content["annotations"]
                    if a["image_id"] in images and a["category_id"] in categories
                ],
                "categories": [c for c in content["categories"] if c["id"] in categories],
            },
            image_ids,
            category_ids,
        )


class CocoSummary(ImageRecords[Any]):
    """What boxes and masks share: pycocotools' numbers of the records against a truth."""

    iou_type = "bbox"

    def _truth(self) -> CocoTruth:
        raise NotImplementedError

    def _annotations(self, truth: CocoTruth) -> list[dict[str, Any]]:
        """The predictions as COCO's annotations."""
        raise NotImplementedError

    def summary(self, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """Percentages: COCO's twelve (:data:`NUMBERS`), ``mAP`` = ``AP`` (IoU .50 to .95), ``AP-<name>``.

        NaN where there is no ground truth.

        Args:
            bootstrap: resamples of the images for the 95 % intervals ``mAP_interval``, ``AP_interval`` and
                ``AP-<name>_interval`` = [low, high]; 0: none.
        """
        truth = self._truth()
        evaluation = self._evaluate(truth)
        numbers = np.where(evaluation.stats < 0, np.nan, 100 * evaluation.stats)
        result: dict[str, Any] = {"mAP": float(numbers[0])}
        result.update({name: float(value) for name, value in zip(NUMBERS, numbers)})
        # precision: IoU threshold, recall level, category in order of its id, area range, detection limit
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        position = {category: k for k, category in enumerate(evaluation.params.catIds)}
        for name, category in zip(self.classes, truth.category_ids):
            defined = precision[:, :, position[category]]
            defined = defined[defined > -1]
            result[f"AP-{name}"] = 100 * float(defined.mean()) if defined.size else float("nan")
        if bootstrap:
            low, high = coco_ap_interval(evaluation, resamples=bootstrap, seed=seed)
            columns = {"mAP": 0, "AP": 0}
            for name, category in zip(self.classes, truth.category_ids):
                columns[f"AP-{name}"] = 1 + position[category]
            for key, k in columns.items():
                result[f"{key}_interval"] = [100 * float(low[k]), 100 * float(high[k])]
        return result

    def ap_statistic(self) -> Statistic:
        """See :func:`.coco_interval.coco_ap_statistic`."""
        return coco_ap_statistic(self._evaluate(self._truth()))

    def _evaluate(self, known: CocoTruth) -> COCOeval:
        # pycocotools prints its progress and its table.
        with contextlib.redirect_stdout(io.StringIO()):
            truth, detections = COCO(), COCO()
            truth.dataset = known.content
            truth.createIndex()
            detections.dataset = {**known.content, "annotations": self._annotations(known)}
            detections.createIndex()
            evaluation = COCOeval(truth, detections, self.iou_type)
            evaluation.params.imgIds = sorted(known.image_ids[image_id] for image_id in self._records)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation


class CocoRecords(CocoSummary):
    """The detections of every image: boxes (N, 4) xyxy, scores, labels."""

    def __init__(self, classes: Sequence[str], truth: CocoTruth) -> None:
        super().__init__(classes)
        self.truth = truth

    def _truth(self) -> CocoTruth:
        return self.truth

    def add(
        self, image_id: str, prediction: Mapping[str, Any], target: Mapping[str, Any] | None = None
    ) -> None:
        """Record one image's boxes, scores and labels; the truth is known, ``target`` is not read.

        Raises:
            ValueError: the image has no ground truth, or a value that is not finite or no class.
        """
        if image_id in self._records:
            return
        if image_id not in self.truth.image_ids:
            raise ValueError(f"image {image_id!r} has no ground truth")
        boxes = to_numpy(prediction["boxes"]).reshape(-1, 4).astype(np.float64)
        scores = to_numpy(prediction["scores"]).astype(np.float64)
        labels = to_numpy(prediction["labels"]).astype(np.int64)
        if not len(boxes) == len(scores) == len(labels):
            raise ValueError("boxes, scores and labels differ in length")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError("boxes and scores must be finite")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"labels must lie in 0…{len(self.classes) - 1}")
        self._records[image_id] = boxes, scores, labels

    def _annotations(self, truth: CocoTruth) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = []
        for image_id, record in zip(sorted(self._records), self._sorted()):
            for (x1, y1, x2, y2), score, label in zip(*(part.tolist() for part in record)):
                result.append(
                    {
                        "id": len(result) + 1,
                        "image_id": truth.image_ids[image_id],
                        "category_id": truth.category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "score": score,
                    }
                )
        return result
