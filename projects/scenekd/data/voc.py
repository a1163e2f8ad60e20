"""PASCAL VOC 2007/2012 and every folder of that layout, by name.

``voc[YEAR]_{seg|main|aug}_{list}``: ``seg`` reads ImageSets/Segmentation/<list>.txt and masks from
SegmentationClass, ``aug`` masks from SegmentationClassAug, ``main`` ImageSets/Main/<list>.txt with the masks
that happen to exist. Masks of the boxes come from SegmentationObject wherever it holds the image.
Any list works by its name. VOC's boxes are 1-based and inclusive: 1 is taken from xmin
and ymin on load, so that (xmin, ymin, xmax, ymax) bounds the box in 0-based continuous pixels.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadRecordError, UserError
from ..xml_files import read_xml
from .instance_masks import ObjectMap
from .records import Dataset, Record
from .voc_layout import find_list, find_voc_folder, read_list

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)
_NAME = re.compile(r"voc(?P<year>\d{4})?_(?P<kind>seg|main|aug)_(?P<list>\w[\w.-]*)")
_ONE_BASED = np.asarray([1, 1, 0, 0], np.float32)
OBJECTS = "SegmentationObject"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

logger = logging.getLogger(__name__)


def is_voc_name(name: str) -> bool:
    """Whether ``name`` is of the form ``voc[YEAR]_KIND_LIST``."""
    return _NAME.fullmatch(name) is not None


def load_voc(name: str, root: str = "", classes: tuple[str, ...] = (), on_error: str = "raise") -> Dataset:
    """The data set ``name`` (see above) below ``root``, with every annotation parsed.

    Raises:
        UserError: no such folder or list, or an empty list.
        BadRecordError: an unusable annotation, where ``on_error`` is not ``skip``.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a VOC name")
    folder = find_voc_folder(root, match["year"])
    layout = _Layout.scan(folder, match["kind"], tuple(classes) or VOC_CLASSES)
    dataset = Dataset(name=name, classes=layout.classes, records=[])
    dataset.fill(read_list(*find_list(folder, match["kind"], match["list"])), layout.record, on_error)
    if not dataset.records:
        raise UserError(
            f"{name}: none of its {len(dataset.skipped)} images is usable; first: {dataset.skipped[0]}"
        )
    if (
        match["list"] != "test"
        and match["kind"] != "main"
        and not any(r.has_sem_seg for r in dataset.records)
    ):
        raise UserError(f"{name}: no image has a mask in {' or '.join(layout.mask_folders)} of {folder}")
    if dataset.clipped:
        logger.warning("%s: %d boxes reached outside their image and were clipped", name, dataset.clipped)
    return dataset


@dataclass
class _Layout:
    """One VOC folder: which files exist (listed once, as a test for each file is slow on network disks)."""

    folder: Path
    classes: tuple[str, ...]
    images: dict[str, str]
    annotations: set[str]
    masks: list[tuple[str, set[str]]]
    objects: set[str]

    @classmethod
    def scan(cls, folder: Path, kind: str, classes: tuple[str, ...]) -> _Layout:
        names = sorted(os.listdir(folder / "JPEGImages"), reverse=True)  # .jpg wins over .png
        images = {n.rsplit(".", 1)[0]: n for n in names if n.lower().endswith(_IMAGE_SUFFIXES)}
        mask_folders = (
            ["SegmentationClass"] if kind != "aug" else ["SegmentationClassAug", "SegmentationClass"]
        )
        return cls(
            folder,
            classes,
            images,
            _listing(folder / "Annotations"),
            [(name, _listing(folder / name)) for name in mask_folders],
            _listing(folder / OBJECTS) & _listing(folder / "SegmentationClass"),
        )

    @property
    def mask_folders(self) -> list[str]:
        return [name for name, _ in self.masks]

    def record(self, image_id: str) -> tuple[Record, int]:
        """The record and how many of its boxes were clipped."""
        image = self.images.get(image_id)
        if image is None:
            raise BadRecordError(
                f"{self.folder / 'JPEGImages' / image_id}.jpg: missing, though a list names it; "
                "add the image, or set DATASETS.ON_ERROR skip"
            )
        # Plain strings: building paths one by one takes as long as reading the annotation.
        folder = str(self.folder)
        record = Record(image_id, os.path.join(folder, "JPEGImages", image))
        for name, files in self.masks:
            if f"{image_id}.png" in files:
                record.sem_seg_file = os.path.join(folder, name, f"{image_id}.png")
                break
        clipped = 0
        if f"{image_id}.xml" in self.annotations:
            path = os.path.join(folder, "Annotations", f"{image_id}.xml")
            clipped = read_annotation(path, self.classes, record)
        if f"{image_id}.png" in self.objects and record.boxes is not None and record.labels is not None:
            objects, kinds = (
                os.path.join(folder, part, f"{image_id}.png") for part in (OBJECTS, "SegmentationClass")
            )
            record.object_masks = ObjectMap(objects, kinds, record.boxes, record.labels)
        return record, clipped


def _listing(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def read_annotation(path: str | Path, classes: tuple[str, ...], record: Record) -> int:
    """Fill size, boxes, labels and difficult of ``record`` from a VOC XML; return how many were clipped.

    Raises:
        BadRecordError: not XML, a class not in ``classes``, a box that is inverted, outside, or no number.
    """
    try:
        root = read_xml(path)
    except ValueError as error:
        raise BadRecordError(f"{path}: not a valid annotation ({error}); mend or remove it") from None
    size = _texts(root.find("size"))
    height, width = size.get("height", ""), size.get("width", "")
    if height.strip().isdigit() and width.strip().isdigit() and int(height) and int(width):
        record.height, record.width = int(height), int(width)
    labels, difficult, boxes = [], [], []
    for item in root.iterchildren("object"):
        texts = _texts(item)
        name = texts.get("name", "").strip()
        if name not in classes:
            raise BadRecordError(f"{path}: class {name!r} is not in DATASETS.CLASSES ({', '.join(classes)})")
        labels.append(classes.index(name))
        difficult.append(texts.get("difficult", "0").strip() == "1")
        corners = _texts(item.find("bndbox"))
        boxes.append([_number(corners, side, path) for side in ("xmin", "ymin", "xmax", "ymax")])
    record.labels, record.difficult = np.asarray(labels, np.int64), np.asarray(difficult, bool)
    record.crowd = np.zeros(len(labels), bool)
    record.boxes, clipped = _check_boxes(np.asarray(boxes, np.float32).reshape(-1, 4), path, record)
    return clipped


def _texts(element: Any) -> dict[str, str]:
    """Text of each child by its tag, of equal tags the first; one walk is quicker than a search for each."""
    if element is None:
        return {}
    return {child.tag: child.text or "" for child in element.iterchildren(reversed=True)}


def _number(texts: Mapping[str, str], tag: str, path: str | Path) -> float:
    text = texts.get(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRecordError(f"{path}: <{tag}> holds {text!r}, not a number; mend it")
    return value


def _check_boxes(boxes: np.ndarray, path: str | Path, record: Record) -> tuple[np.ndarray, int]:
    if not len(boxes):
        return boxes, 0
    boxes = boxes - _ONE_BASED
    height, width = record.size()
    # Nearly every image takes this way out; plain numbers are quicker than arrays of a few boxes.
    if all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in boxes.tolist()):
        return boxes, 0
    inside = np.clip(boxes, 0, np.asarray([width, height, width, height], np.float32))
    empty = (inside[:, 2:] <= inside[:, :2]).any(axis=1)
    if empty.any():
        box = [float(value) for value in boxes[empty][0] + _ONE_BASED]
        raise BadRecordError(
            f"{path}: box {box} is empty, inverted or outside the {width}×{height} image; mend it"
        )
    return inside, int((inside != boxes).any(axis=1).sum())
