"""Masks of boxes: made from a map of objects or from outlines, given to boxes, sampled where they are shown.

N: boxes; M: objects; H, W: the un-augmented image; h, w: the grid of the loss. A mask is uint8: 1 on the
object, 0 elsewhere, 255 where that is not known; all 255 for a box without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BadRecordError
from ..sample import IGNORE_INDEX
from ..teachers.runs import decode_runs, runs_from_text
from .images import read_sem_seg
from .scenes_files import tight_box
from .soft import nearest_cells, thin_out

MAX_CORNER = 1e5  # pixels; pycocotools walks along a polygon's edges, however long they are
MIN_IOU = 0.5  # a box and an object's bounding box are the same thing from here on


def match_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    other_boxes: np.ndarray,
    other_labels: np.ndarray,
    min_iou: float = MIN_IOU,
) -> np.ndarray:
    """For each box the other box of its class that is the same object, each used once, the best pairs first.

    Args:
        boxes, labels: (N, 4) and (N,). other_boxes, other_labels: (M, 4) and (M,).
        min_iou: pairs that overlap less are none.

    Returns:
        (N,) int64 index into the other boxes, −1 for none.
    """
    found = np.full(len(boxes), -1, np.int64)
    low = np.maximum(boxes[:, None, :2], other_boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], other_boxes[:, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, other_boxes)]
    iou = both / np.maximum(areas[0][:, None] + areas[1] - both, 1e-9)
    rows, columns = np.nonzero((iou >= min_iou) & (labels[:, None] == other_labels))
    taken = np.zeros(len(other_boxes), bool)
    for k in np.argsort(-iou[rows, columns], kind="stable"):
        if found[rows[k]] < 0 and not taken[columns[k]]:
            found[rows[k]], taken[columns[k]] = columns[k], True
    return found


def unknown_masks(count: int, size: tuple[int, int]) -> np.ndarray:
    """(count, H, W) masks of which nothing is known."""
    return np.full((count, *size), IGNORE_INDEX, np.uint8)


def known(masks: np.ndarray) -> np.ndarray:
    """(N,) bool: which boxes have a mask."""
    return np.asarray((masks != IGNORE_INDEX).any(axis=(1, 2)), bool)


def sample_masks(
    masks: np.ndarray, coordinates: np.ndarray, size: tuple[int, int] | None = None
) -> np.ndarray:
    """(N, h, w) masks of the augmented image, 255 where no part of the image is shown.

    Args:
        masks: (N, H, W), of the un-augmented image; each pixel takes the nearest.
        coordinates: see :class:`scenekd.sample.Sample`.
        size: (h, w) of the result; the pixels of the field are chosen as by torch's ``nearest-exact``.
    """
    coordinates, valid = thin_out(coordinates, size)
    count, height, width = masks.shape
    cells = nearest_cells(coordinates, height, width)
    moved: np.ndarray = masks.reshape(count, height * width).take(cells, axis=1)
    moved[:, ~valid] = IGNORE_INDEX
    return moved


@dataclass
class ObjectMap:
    """Makes the masks of a record's boxes from VOC's two maps: SegmentationObject tells the objects apart,
    SegmentationClass their classes. Boxes and objects are matched by class and bounding box; the void rim is 255.

    Raises:
        BadRecordError: when called: a map cannot be read, or has another size than the image.
    """

    object_file: str
    class_file: str
    boxes: np.ndarray
    labels: np.ndarray

    def __call__(self, size: tuple[int, int]) -> np.ndarray:
        objects = read_sem_seg(self.object_file, size, num_classes=IGNORE_INDEX - 1)
        classes = read_sem_seg(self.class_file, size, num_classes=IGNORE_INDEX - 1)
        numbers = np.setdiff1d(np.unique(objects), [0, IGNORE_INDEX])
        inside = objects == numbers[:, None, None]
        corners = np.asarray([tight_box(mask) for mask in inside], np.float32).reshape(-1, 4)
        labels = np.asarray([np.bincount(classes[mask]).argmax() for mask in inside], np.int64) - 1
        found = match_boxes(self.boxes, self.labels, corners, labels)
        masks = unknown_masks(len(self.boxes), size)
        masks[found >= 0] = inside[found[found >= 0]]
        masks[:, objects == IGNORE_INDEX] = IGNORE_INDEX
        return masks


@dataclass
class Outlines:
    """Makes the masks of a record's boxes from COCO's polygons or run lengths; None where a box has no outline.

    Raises:
        BadRecordError: when called: an outline is broken, or of another size than the image.
    """

    file_name: str
    outlines: Sequence[Any]

    def __call__(self, size: tuple[int, int]) -> np.ndarray:
        masks = unknown_masks(len(self.outlines), size)
        for mask, outline in zip(masks, self.outlines):
            if outline is not None:
                mask[:] = decode_outline(outline, size, self.file_name)
        return masks


def decode_outline(outline: Any, size: tuple[int, int], file_name: str) -> np.ndarray:
    """(H, W) bool from one object's polygons or run lengths, in COCO's form.

    Args:
        file_name: named in the error: where the outline stands.

    Raises:
        BadRecordError: it is broken, or of another size.
    """
    try:
        if isinstance(outline, list):
            return _fill_polygons(outline, size)
        counts, stated = outline["counts"], tuple(outline["size"])
        if stated != tuple(size):
            raise BadRecordError(
                f"{file_name}: an outline of another size than the image, {stated} instead of {tuple(size)} "
                "(height, width); mend the json"
            )
        return decode_runs(
            _whole_numbers(counts) if isinstance(counts, list) else runs_from_text(counts), size
        )
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadRecordError(f"{file_name}: broken object outline ({what}); mend the json") from None


def _whole_numbers(counts: list[Any]) -> np.ndarray:
    if not all(type(count) is int for count in counts):
        raise ValueError("run lengths must be whole numbers")
    return np.asarray(counts, np.int64)


def _fill_polygons(polygons: list[Any], size: tuple[int, int]) -> np.ndarray:
    """The union of polygons [x1, y1, x2, y2, …]; those of fewer than three corners enclose nothing."""
    from pycocotools import mask as coco_masks

    corners = [np.asarray(polygon, np.float64) for polygon in polygons]
    if any(flat.ndim != 1 or len(flat) % 2 for flat in corners):
        raise ValueError("a polygon must be a list of x, y, x, y, …")
    if any((~np.isfinite(flat) | (abs(flat) > MAX_CORNER)).any() for flat in corners):
        raise ValueError(f"a corner is not finite, or over {MAX_CORNER:g} pixels away")
    corners = [flat for flat in corners if len(flat) >= 6]
    if not corners:
        raise ValueError("no polygon of three corners or more")
    runs = coco_masks.frPyObjects([flat.tolist() for flat in corners], *size)
    return coco_masks.decode(coco_masks.merge(runs)).astype(bool)
