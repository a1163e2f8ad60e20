"""COCO's instances json: boxes, and semantic masks made from the instances.

``coco_<stem>`` reads <ROOT>/annotations/<stem>.json (or instances_<stem>.json); ``coco_det_<stem>`` the same
without masks. The images lie in <ROOT>/<part>, where the stem ends in the part's name (``train2017``), in
<ROOT>/images/<part>, in <ROOT>/images, or in <ROOT>.

Masks: an object's pixels take its class; where objects overlap the smaller one is on top; crowd regions that
no object covers are void (255); everything else is background, also objects of classes that DATASETS.CLASSES
leaves out. They are read where ``prepare_data.py coco --class-id-masks`` has stored them, see :mod:`.class_ids`, and
made of the outlines elsewhere.

A name in DATASETS.CLASSES that begins with ``unused`` needs no category: so COCO's 91 ids can be classes.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadRecordError, UserError
from ..sample import IGNORE_INDEX
from .class_ids import use_stored
from .instance_masks import Outlines, decode_outline
from .records import Dataset, Record

logger = logging.getLogger(__name__)

UNUSED = "unused"  # how a class without a category begins


def find_json(name: str, root: str) -> Path | None:
    """The json file that ``name`` stands for, or None."""
    if not name.startswith("coco_"):
        return None
    stem = _stem(name)
    folders = [Path(root or "data") / "annotations", Path(root or "data")]
    if not root:
        folders += [Path("data/coco/annotations"), Path("datasets/coco/annotations")]
    candidates = [folder / f"{prefix}{stem}.json" for folder in folders for prefix in ("", "instances_")]
    return next((path for path in candidates if path.is_file()), None)


def _stem(name: str) -> str:
    return name.removeprefix("coco_").removeprefix("det_")


def is_coco_name(name: str, root: str) -> bool:
    """Whether a json of that name is there (other ``coco_…`` names are left to detectron2's catalog)."""
    return find_json(name, root) is not None


def load_coco(name: str, root: str = "", classes: tuple[str, ...] = (), on_error: str = "raise") -> Dataset:
    """The data set ``name``; classes in the order of the category ids, or those of ``classes`` only.

    Raises:
        UserError: no json, not in COCO's format, no images, or a class it does not have.
        BadRecordError: a broken annotation, where ``on_error`` is not ``skip``.
    """
    path = find_json(name, root)
    if path is None:
        raise UserError(
            f"{name}: no annotations/{_stem(name)}.json below {root or 'data'}; set DATASETS.ROOT"
        )
    dataset = read_instances(path, name, classes, on_error)
    if name.startswith("coco_det_"):
        for record in dataset.records:
            record.segmentation = record.object_masks = None
    else:
        use_stored(dataset, path)
    return dataset


def read_instances(path: Path, name: str, classes: tuple[str, ...] = (), on_error: str = "raise") -> Dataset:
    """The data set of one json, called ``name``, with masks that are made of the outlines; see :func:`load_coco`."""
    content = _read(path)
    categories = {item["id"]: item["name"] for item in sorted(content["categories"], key=lambda c: c["id"])}
    names = tuple(classes) or tuple(categories.values())
    unknown = [name for name in names if name not in categories.values() and not name.startswith(UNUSED)]
    if unknown:
        raise UserError(f"DATASETS.CLASSES: {path} has no category {unknown[0]!r}")
    index = {id_: names.index(category) for id_, category in categories.items() if category in names}
    folder = _image_folder(path, content["images"])
    objects: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    dataset = Dataset(name=name, classes=names, records=[])
    dataset.fill(
        content["images"], lambda item: _record(item, objects.get(item["id"], []), folder, index), on_error
    )
    if not dataset.records:
        raise UserError(
            f"{path}: no usable image; {dataset.skipped[0] if dataset.skipped else 'the list is empty'}"
        )
    return dataset


_REQUIRED = {
    "images": {"id", "file_name", "height", "width"},
    "annotations": {"image_id", "category_id"},
    "categories": {"id", "name"},
}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid json ({error})") from None
    for part, keys in _REQUIRED.items():
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(i, dict) and keys <= i.keys() for i in items):
            raise UserError(f"{path}: not COCO's instances json: needs {part} with {', '.join(sorted(keys))}")
    for item in content["images"]:
        name = Path(item["file_name"])
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{path}: image {name} lies outside its folder; use names below it")
    return content


def _image_folder(path: Path, images: list[dict[str, Any]]) -> Path:
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    part = path.stem.rsplit("_", 1)[-1]
    candidates = [root / part, root / "images" / part, root / "images", root]
    first = images[0]["file_name"] if images else ""
    found = next((folder for folder in candidates if (folder / first).is_file()), None)
    if found is None:
        # Saved predictions can be scored without the pictures.
        logger.warning("%s: image %s is in none of %s", path, first, ", ".join(map(str, candidates)))
    return found or candidates[0]


def _record(
    item: dict[str, Any], objects: list[dict[str, Any]], folder: Path, index: dict[int, int]
) -> tuple[Record, int]:
    file = folder / item["file_name"]
    height, width = int(item["height"]), int(item["width"])
    objects = [annotation for annotation in objects if annotation["category_id"] in index]
    try:
        corners = np.asarray([annotation["bbox"] for annotation in objects], np.float32).reshape(-1, 4)
    except (KeyError, ValueError, TypeError):
        raise BadRecordError(f"{file}: an object without a box of four numbers; mend the json") from None
    corners[:, 2:] += corners[:, :2]
    boxes = np.clip(corners, 0, np.asarray([width, height, width, height], np.float32))
    # COCO itself holds a few boxes without area; they are of no use to training or evaluation.
    keep = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1), bool)
    crowd = np.asarray([bool(annotation.get("iscrowd")) for annotation in objects], bool)
    labels = np.asarray([index[annotation["category_id"]] for annotation in objects], np.int64)
    regions = [
        _Region(annotation["segmentation"], IGNORE_INDEX if group else int(label) + 1)
        for annotation, group, label in zip(objects, crowd, labels)
        if annotation.get("segmentation")
    ]
    outlines = [a.get("segmentation") or None for a, kept in zip(objects, keep.tolist()) if kept]
    record = Record(
        image_id=str(item["id"]),
        file_name=str(file),
        height=height,
        width=width,
        boxes=boxes[keep],
        labels=labels[keep],
        difficult=crowd[keep].copy(),
        crowd=crowd[keep],
        segmentation=InstanceMask(str(file), height, width, regions),
        object_masks=Outlines(str(file), outlines) if not outlines or any(outlines) else None,
    )
    # json boxes are rounded to .01, so a hundredth over the border is no error worth a count
    return record, int((np.abs(boxes - corners) > 0.02).any(axis=1).sum())


@dataclass
class _Region:
    """One object's polygons or run lengths, and the value its pixels take."""

    segmentation: Any
    value: int


@dataclass
class InstanceMask:
    """Makes the (H, W) uint8 semantic mask of one image from its objects."""

    file_name: str
    height: int
    width: int
    regions: list[_Region]

    def __call__(self) -> np.ndarray:
        decoded = []
        for region in self.regions:
            inside = decode_outline(region.segmentation, (self.height, self.width), self.file_name)
            decoded.append((region.value == IGNORE_INDEX, int(inside.sum()), region.value, inside))
        sem_seg = np.zeros((self.height, self.width), np.uint8)
        # crowds first, then the objects from large to small: what is painted last is on top
        for _, _, value, inside in sorted(decoded, key=lambda d: (not d[0], -d[1])):
            sem_seg[inside] = value
        return sem_seg
