"""The thesis's tutor files: one XML of boxes and one .npy of dense scores an image.

XML: ``annotation/{folder, filename, object*}``, object: ``name``, ``class_index`` (1…C, background is 0),
``bndbox{xmin, ymin, xmax, ymax}`` in float pixels, ``confidence``; no size element. The coordinates are
taken as they stand, as continuous 0-based pixels (the published example runs from 0 to W−1 and H−1), unlike
VOC's own annotations.

.npy: (H, W, C + 1) float32, a box confidence at the class's slot wherever its mask is positive.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement

import numpy as np

from ..errors import BadRecordError
from ..sample import SoftSegmentation
from ..xml_files import read_xml
from .label_map import canonical
from .protocol import Detections

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_detections(path: str | Path, classes: Sequence[str]) -> Detections:
    """The boxes of a tutor file; labels are ``class_index`` − 1 and must agree with ``classes``.

    Raises:
        BadRecordError: no XML, a hostile one, a missing or bad field, or a class that is not the named one.
    """
    try:
        root = read_xml(path)
        rows = [_object(node, classes) for node in root.iter("object")]
    except FileNotFoundError:
        raise BadRecordError(f"{path}: no such tutor file") from None
    except ValueError as error:
        raise BadRecordError(f"{path}: no valid tutor file: {error}") from None
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections.build(table[:, :4], table[:, 4], table[:, 5])


def _object(node: Any, classes: Sequence[str]) -> list[float]:
    label = int(_text(node, "class_index")) - 1
    if not 0 <= label < len(classes):
        raise ValueError(f"class_index {label + 1} lies outside 1…{len(classes)}")
    name = _text(node, "name")
    if canonical(name) != canonical(classes[label]):
        raise ValueError(f"class_index {label + 1} is {classes[label]}, not {name}")
    corners = [float(_text(node, f"bndbox/{corner}")) for corner in _CORNERS]
    confidence = float(_text(node, "confidence"))
    if not np.isfinite(corners).all() or corners[2] < corners[0] or corners[3] < corners[1]:
        raise ValueError(f"bad box {corners}")
    if not 0.0 <= confidence <= 1.0:
        raise ValueError(f"confidence {confidence} lies outside 0…1")
    return [*corners, label, confidence]


def _text(node: Element, path: str) -> str:
    text = node.findtext(path)
    if text is None or not text.strip():
        raise ValueError(f"an object lacks {path}")
    return text.strip()


def write_detections(
    path: str | Path,
    detections: Detections,
    classes: Sequence[str],
    *,
    filename: str,
    folder: str = "VOC2012",
) -> None:
    """Write a tutor file; floats are written so that reading gives the same float32."""
    root = Element("annotation")
    SubElement(root, "folder").text = folder
    SubElement(root, "filename").text = filename
    for box, label, score in zip(*detections):
        node = SubElement(root, "object")
        SubElement(node, "name").text = classes[label]
        SubElement(node, "class_index").text = str(int(label) + 1)
        bndbox = SubElement(node, "bndbox")
        for corner, value in zip(_CORNERS, box):
            SubElement(bndbox, corner).text = str(np.float32(value))
        SubElement(node, "confidence").text = str(np.float32(score))
    temporary = f"{path}.tmp"
    ElementTree(root).write(temporary, encoding="utf-8")
    os.replace(temporary, path)


def read_scores(path: str | Path, num_classes: int) -> SoftSegmentation:
    """The dense scores of a tutor file as (C + 1, H, W), a view of the memory-mapped file.

    Raises:
        BadRecordError: missing, not a plain float32 array, cut short, or of another number of classes.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise BadRecordError(f"{path}: no such tutor file") from None
    except (ValueError, EOFError, OSError) as error:
        raise BadRecordError(f"{path}: no valid tutor file: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 3:
        raise BadRecordError(f"{path}: must be a float32 array (H, W, {num_classes + 1})")
    if array.shape[2] != num_classes + 1 or not array.size:
        raise BadRecordError(f"{path}: shape {array.shape} is not (H, W, {num_classes + 1})")
    return SoftSegmentation(array.transpose(2, 0, 1), "scores")


def write_scores(path: str | Path, soft: SoftSegmentation) -> None:
    """Write dense scores as the thesis's .npy, (H, W, C + 1) float32."""
    if soft.form != "scores":
        raise ValueError(f"the thesis's files hold scores, not {soft.form}")
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        np.save(file, np.ascontiguousarray(soft.values.transpose(1, 2, 0), np.float32), allow_pickle=False)
    os.replace(temporary, path)
