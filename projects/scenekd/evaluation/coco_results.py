"""COCO's results format, ``detections.json``: what a network found, as a list of entries, written and read.

An entry holds ``image_id``, ``category_id``, ``score``, and ``bbox`` = [x, y, w, h] with 0-based corners and/or
``segmentation``: the object's mask as run lengths ({"size": [height, width], "counts": a compressed string or a list
of numbers}) or polygons ([[x, y, x, y, …], …]).

N: entries of one image; H, W: the image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.instance_masks import decode_outline
from ..data.records import Dataset
from ..errors import UserError
from .mask_records import encode

_SHAPES = ("bbox", "segmentation")


class _Entry(NamedTuple):
    """One detection: where it stands in the file, its box (x1, y1, x2, y2), 0-based label, score, outline."""

    where: str
    box: tuple[float, ...]
    label: int
    score: float
    outline: Any


@dataclass
class SavedDetections:
    """The entries of a file by image id; an image without an entry has no detection.

    Attributes:
        shapes: of ``bbox`` and ``segmentation``, what the entries hold.
    """

    entries: dict[str, list[_Entry]]
    shapes: tuple[str, ...]

    def arrays(self, image_id: str, size: Callable[[], tuple[int, int]]) -> dict[str, np.ndarray]:
        """``labels`` and ``scores`` (N,), ``boxes`` (N, 4) float64 xyxy and ``masks`` (N, H, W) bool, where held.

        Args:
            size: gives (H, W), which the masks must have; called where there are masks.

        Raises:
            UserError: a mask is broken or of another size; the entry is named by its position.
        """
        own = self.entries[image_id]
        arrays = {
            "labels": np.array([entry.label for entry in own], np.int64),
            "scores": np.array([entry.score for entry in own], np.float64),
        }
        if "bbox" in self.shapes:
            arrays["boxes"] = np.array([entry.box for entry in own], np.float64).reshape(-1, 4)
        if "segmentation" in self.shapes:
            height, width = size()
            masks = arrays["masks"] = np.zeros((len(own), height, width), bool)
            for mask, entry in zip(masks, own):
                mask[:] = decode_outline(entry.outline, (height, width), entry.where)
        return arrays


def read_results(path: Path, dataset: Dataset, ids: tuple[int, ...]) -> SavedDetections:
    """Read a file of results for a data set.

    Args:
        ids: the category id of each class.

    Raises:
        UserError: not such a file; or a bad entry, or one that lacks what others hold, named by its position.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, list):
        raise UserError(f"{path}: must hold a list of detections (COCO's results format)")
    shapes: tuple[str, ...] | None = None
    labels = {category: k for k, category in enumerate(ids)}
    entries: dict[str, list[_Entry]] = {record.image_id: [] for record in dataset.records}
    for position, item in enumerate(content):
        image_id, entry = _parse(f"{path}: entry {position}", item, labels)
        if image_id not in entries:
            raise UserError(
                f"{entry.where}: image_id {image_id!r} is not in {dataset.name}; "
                "score on the data set that was predicted"
            )
        held = tuple(shape for shape in _SHAPES if shape in item)
        shapes = shapes or held
        if held != shapes:
            raise UserError(
                f"{entry.where}: holds {' and '.join(held)}, entry 0 {' and '.join(shapes)}; give all entries the same"
            )
        entries[image_id].append(entry)
    return SavedDetections(entries, shapes or ("bbox",))


def _parse(where: str, item: Any, labels: dict[int, int]) -> tuple[str, _Entry]:
    if not isinstance(item, dict) or not {"image_id", "category_id", "score"} <= item.keys():
        raise UserError(f"{where}: needs image_id, category_id, score, and bbox or segmentation")
    if not item.keys() & set(_SHAPES):
        raise UserError(f"{where}: needs bbox or segmentation")
    box, score, category = item.get("bbox", [0, 0, 0, 0]), item["score"], item["category_id"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))) or min(box[2:]) < 0:
        raise UserError(f"{where}: bbox must be [x, y, width, height], finite, no side below 0; got {box!r}")
    if not _is_number(score):
        raise UserError(f"{where}: score must be a finite number, got {score!r}")
    if isinstance(category, (list, dict)) or category not in labels:
        raise UserError(f"{where}: category_id {category!r} is none of {_span(labels)}")
    x, y, w, h = map(float, box)
    entry = _Entry(where, (x, y, x + w, y + h), labels[category], float(score), item.get("segmentation"))
    return str(item["image_id"]), entry


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _span(labels: dict[int, int]) -> str:
    return f"the {len(labels)} ids {min(labels)}…{max(labels)} of the data set"


def result_entries(
    image_id: str,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    masks: np.ndarray | None = None,
) -> Iterable[dict[str, Any]]:
    """The entries of one image, for JSON; ``category_id`` counts the classes from 1.

    Args:
        boxes: (N, 4) xyxy. labels: (N,) from 0. scores: (N,). masks: (N, H, W) bool, written as compressed strings.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    for i, (box, label, score) in enumerate(zip(corners.tolist(), labels.tolist(), scores.tolist())):
        entry = {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score}
        if masks is not None:
            runs = encode(masks[i])
            entry["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode("ascii")}
        yield entry
