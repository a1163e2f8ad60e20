"""COCO's average precision of instance masks, by pycocotools.

N: predicted boxes, M: true ones; H, W: the image. Where the data set comes from a COCO json, the truth is that
file's annotations as they stand. Otherwise it is made of the records' masks: the area is the mask's; objects
marked difficult, and boxes of which no mask is known (their filled box stands for it), are treated as COCO
treats crowds, so detections on them count neither way; and pixels that are void in the true masks are taken out
of the predicted ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from ..data.instance_masks import known
from ..sample import IGNORE_INDEX
from .arrays import to_numpy
from .coco_api import CocoSummary, CocoTruth


class MaskRecords(CocoSummary):
    """The masks of every image, as COCO's run lengths, with scores and labels; and the true ones beside them.

    Args:
        truth: of a COCO json; None: the ``target`` of each image.
    """

    iou_type = "segm"

    def __init__(self, classes: Sequence[str], truth: CocoTruth | None = None) -> None:
        super().__init__(classes)
        self.truth = truth

    def add(
        self, image_id: str, prediction: Mapping[str, Any], target: Mapping[str, Any] | None = None
    ) -> None:
        """Record one image.

        Args:
            prediction: masks (N, H, W) bool, labels (N,), scores (N,).
            target: boxes (M, 4), labels (M,), difficult (M,) or None, masks (M, H, W) uint8 as in
                :mod:`scenekd.data.instance_masks`. Not read where the truth is known.

        Raises:
            ValueError: the image has no ground truth, a value is not finite or no class, or sizes differ.
        """
        if image_id in self._records:
            return
        masks = to_numpy(prediction["masks"]).astype(bool)
        labels = to_numpy(prediction["labels"]).astype(np.int64)
        scores = to_numpy(prediction["scores"]).astype(np.float64)
        if masks.ndim != 3 or not len(masks) == len(labels) == len(scores):
            raise ValueError("masks, scores and labels differ in length")
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"labels must lie in 0…{len(self.classes) - 1}")
        true: list[dict[str, Any]] = []
        if self.truth is None:
            if target is None:
                raise ValueError(f"image {image_id!r} has no ground truth")
            void = _void(target["masks"])
            if len(masks) and masks.shape[1:] != void.shape:
                raise ValueError(f"masks of {masks.shape[1:]}, the image is {void.shape} (height, width)")
            masks = masks & ~void
            true = [_object(box, label, hard, mask) for box, label, hard, mask in zip(*_columns(target))]
        elif image_id not in self.truth.image_ids:
            raise ValueError(f"image {image_id!r} has no ground truth")
        rows = [encode(mask) for mask in masks]
        self._records[image_id] = rows, scores, labels, true, masks.shape[1:]

    def _truth(self) -> CocoTruth:
        if self.truth is not None:
            return self.truth
        numbers = {image_id: n + 1 for n, image_id in enumerate(sorted(self._records))}
        annotations = [
            {**item, "image_id": number, "id": 0}
            for number, record in zip(numbers.values(), self._sorted())
            for item in record[3]
        ]
        for number, item in enumerate(annotations):
            item["id"] = number + 1
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.classes)]
        images = [
            {"id": number, "height": record[4][0], "width": record[4][1]}
            for number, record in zip(numbers.values(), self._sorted())
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        return CocoTruth(content, numbers, tuple(range(1, len(categories) + 1)))

    def _annotations(self, truth: CocoTruth) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = []
        for image_id, (masks, scores, labels, *_) in zip(sorted(self._records), self._sorted()):
            for mask, score, label in zip(masks, scores.tolist(), labels.tolist()):
                result.append(
                    {
                        "id": len(result) + 1,
                        "image_id": truth.image_ids[image_id],
                        "category_id": truth.category_ids[label],
                        "segmentation": mask,
                        "area": float(coco_masks.area(mask)),
                        "iscrowd": 0,
                        "score": score,
                    }
                )
        return result


def encode(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of an (H, W) bool mask."""
    return coco_masks.encode(np.asfortranarray(mask, np.uint8))


def region(box: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """(H, W) bool, the true mask of a box, and whether it is known: the filled box where it is not."""
    inside = mask == 1
    if not (mask == IGNORE_INDEX).all():
        return inside, True
    x1, y1, x2, y2 = np.rint(box).astype(int)
    inside[y1:y2, x1:x2] = True
    return inside, False


def _void(masks: np.ndarray) -> np.ndarray:
    """(H, W) bool: void in every mask that is known."""
    own = masks[known(masks)]
    if not len(own):
        return np.zeros(masks.shape[1:], bool)
    return (own == IGNORE_INDEX).all(axis=0)


def _columns(target: Mapping[str, Any]) -> tuple[Any, ...]:
    difficult = target.get("difficult")
    if difficult is None:
        difficult = np.zeros(len(target["labels"]), bool)
    return target["boxes"], target["labels"], difficult, target["masks"]


def _object(box: np.ndarray, label: int, hard: bool, mask: np.ndarray) -> dict[str, Any]:
    inside, is_known = region(box, mask)
    return {
        "category_id": int(label) + 1,
        "segmentation": encode(inside),
        "area": float(inside.sum()),
        "bbox": [0.0, 0.0, 0.0, 0.0],  # asked for by pycocotools' index, not by the score of masks
        "iscrowd": int(hard or not is_known),
    }
