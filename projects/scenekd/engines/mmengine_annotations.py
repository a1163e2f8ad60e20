"""Labels of an image in MMSegmentation's pipelines: those of our data sets' records, or of any other data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmseg.datasets.transforms import LoadAnnotations

from ..data.instance_masks import unknown_masks
from ..data.mapper import no_crowd
from ..data.records import Record
from ..errors import BadRecordError, UserError
from ..sample import IGNORE_INDEX
from .mmengine_data import DATASET, RECORD
from .mmengine_track import BOXES, MASKS, start_track


class SceneKDLoadAnnotations(LoadAnnotations):
    """Boxes and mask of an image.

    Adds gt_bboxes (N, 4) float32, gt_bboxes_labels (N,), gt_bboxes_scores (1.0), gt_bboxes_from_teacher,
    gt_bboxes_difficult, gt_seg_map (H, W) uint8 (255 everywhere where there is no mask), has_boxes, has_sem_seg.

    Of a SceneKDDataset they come from its records. Of any other data set the mask is what MMSegmentation's
    LoadAnnotations loads, and there is none where the entry has ``has_sem_seg=False`` or no ``seg_map_path``. Boxes
    are those that the entry carries: ``gt_bboxes`` with ``gt_bboxes_labels``, or ``instances``, a list of dicts with
    bbox (xyxy), bbox_label and, optionally, ignore_flag, which marks difficult objects.

    Args:
        with_masks: masks of the boxes of a SceneKDDataset too: gt_bboxes_masks (N, H, W) uint8, which stay on the
            un-augmented image until SceneKDPackInputs, and has_instance_masks.
        allow_missing: of other data sets: an image whose mask file does not exist has no mask. By default that is an
            error.
        options: of LoadAnnotations.

    Raises:
        BadRecordError: the mask cannot be read, or the image has another size than its annotation.
    """

    def __init__(self, allow_missing: bool = False, with_masks: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.allow_missing, self.with_masks = allow_missing, with_masks

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results with labels."""
        if RECORD in results:
            self._load_record(results)
        elif self.with_masks:
            raise UserError("SceneKDLoadAnnotations: with_masks needs a SceneKDDataset")
        else:
            self._load_entry(results)
        if tuple(results["img"].shape[:2]) == tuple(results["ori_shape"][:2]):
            start_track(results)
        return results

    def _load_record(self, results: dict[str, Any]) -> None:
        dataset, record = results[DATASET], results[RECORD]
        size = tuple(results["ori_shape"][:2])
        if record.height is not None and (record.height, record.width) != size:
            raise BadRecordError(
                f"{record.file_name}: read as {size[1]}×{size[0]}, its annotation says {record.width}×"
                f"{record.height}; give LoadImageFromFile color_type='color_ignore_orientation', or mend it"
            )
        results.update(has_boxes=record.has_boxes, has_sem_seg=record.has_sem_seg, **_boxes(record))
        if self.with_masks:
            self._load_masks(results)
        if record.has_sem_seg:
            _add_mask(results, dataset.read_sem_seg(record, size))
        else:
            _add_mask(results, np.full(size, IGNORE_INDEX, np.uint8))

    @staticmethod
    def _load_masks(results: dict[str, Any]) -> None:
        record, (height, width) = results[RECORD], results["ori_shape"][:2]
        if tuple(results["img"].shape[:2]) != (height, width):
            raise UserError("SceneKDLoadAnnotations: with_masks must come before the image is moved")
        masks = unknown_masks(len(results[BOXES]), (height, width))
        if record.has_instance_masks:
            masks = results[DATASET].read_instance_masks(record, (height, width))[no_crowd(record)]
        results.update({MASKS: masks, "has_instance_masks": record.has_instance_masks})

    def _load_entry(self, results: dict[str, Any]) -> None:
        path = str(results.get("seg_map_path") or "")
        exists = bool(path) and results.get("has_sem_seg", True)
        if exists and self.backend_args is None and not Path(path).is_file():
            if not self.allow_missing:
                raise BadRecordError(
                    f"{path}: no such mask; SceneKDLoadAnnotations takes such images as unlabelled with "
                    "allow_missing=True"
                )
            exists = False
        results.setdefault("seg_fields", [])
        if exists:
            self._load_seg_map(results)
        else:
            _add_mask(results, np.full(results["ori_shape"][:2], IGNORE_INDEX, np.uint8))
        boxes = _carried_boxes(results)
        results.update(has_boxes=boxes is not None, has_sem_seg=exists, **(boxes or _no_boxes()))


def _add_mask(results: dict[str, Any], mask: np.ndarray) -> None:
    results["gt_seg_map"] = mask
    results["seg_fields"].append("gt_seg_map")


def _carried_boxes(results: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The boxes that an entry of another data set carries; None where it carries none, not even an empty list."""
    if BOXES in results:
        boxes = np.asarray(results[BOXES], np.float32).reshape(-1, 4)
        labels = np.asarray(results.get(f"{BOXES}_labels", ()), np.int64)
        difficult = np.asarray(results.get(f"{BOXES}_difficult", np.zeros(len(boxes))), bool)
    elif "instances" in results:
        found = results["instances"]
        boxes = np.asarray([each["bbox"] for each in found], np.float32).reshape(-1, 4)
        labels = np.asarray([each["bbox_label"] for each in found], np.int64)
        difficult = np.asarray([each.get("ignore_flag", False) for each in found], bool)
    else:
        return None
    if not len(boxes) == len(labels) == len(difficult):
        raise UserError(
            f"{results.get('img_path')}: {len(boxes)} boxes, {len(labels)} labels, {len(difficult)} difficult flags"
        )
    return box_fields(boxes, labels, np.ones(len(boxes)), False, difficult)


def _no_boxes() -> dict[str, np.ndarray]:
    return box_fields(np.zeros((0, 4)), np.zeros(0), np.zeros(0), False, np.zeros(0))


def _boxes(record: Record) -> dict[str, np.ndarray]:
    boxes, labels, difficult = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    if record.boxes is not None and record.labels is not None and record.difficult is not None:
        keep = no_crowd(record)
        boxes, labels, difficult = record.boxes[keep], record.labels[keep], record.difficult[keep]
    return box_fields(boxes, labels, np.ones(len(boxes)), False, difficult)


def box_fields(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, teacher: bool, difficult: np.ndarray
) -> dict[str, np.ndarray]:
    """Boxes of one source as entries of MMSegmentation's results."""
    return {
        BOXES: np.asarray(boxes, np.float32),
        f"{BOXES}_labels": np.asarray(labels, np.int64),
        f"{BOXES}_scores": np.asarray(scores, np.float32),
        f"{BOXES}_from_teacher": np.full(len(boxes), teacher),
        f"{BOXES}_difficult": np.asarray(difficult, bool),
    }
