"""Write one synthetic scene in PASCAL VOC's folder layout. Equal input gives equal bytes."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
from PIL import Image

from ..sample import IGNORE_INDEX
from .images import voc_palette

FOLDERS = ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject")
_QUALITY = 94


def write_voc_image(
    folder: Path,
    image_id: str,
    image: np.ndarray,
    instances: np.ndarray,
    names: list[str],
    labels: list[int],
    difficult: list[bool],
    truncated: list[bool],
    border: int,
) -> None:
    """Write image, annotation and both masks of one picture below ``folder``.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: (H, W) uint8, i + 1 where object i is seen; each object is seen somewhere.
        names, labels, difficult, truncated: of each object; label 0 is the first class after background.
        border: width in pixels of the void rim (255) around each object in the masks; 0 for none. Boxes are
            taken before the rim is laid.
    """
    boxes = [tight_box(instances == i + 1) for i in range(len(names))]
    values = np.array([0, *(label + 1 for label in labels)], np.uint8)
    rim = void_rim(instances, border)
    jpeg = folder / "JPEGImages" / f"{image_id}.jpg"
    Image.fromarray(image).save(jpeg, quality=_QUALITY)
    for name, mask in (("SegmentationClass", values[instances]), ("SegmentationObject", instances)):
        write_mask(folder / name / f"{image_id}.png", np.where(rim, np.uint8(IGNORE_INDEX), mask))
    xml = _annotation(jpeg.name, image.shape[:2], names, boxes, difficult, truncated)
    (folder / "Annotations" / f"{image_id}.xml").write_text(xml, encoding="utf-8")


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Save class or object indices as a PNG with VOC's palette."""
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette().ravel().tolist())
    picture.save(path, format="PNG")


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """0-based (x1, y1, x2, y2) that bounds the True pixels of a mask that has some; x2 and y2 lie outside."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def void_rim(instances: np.ndarray, border: int) -> np.ndarray:
    """True within ``border`` pixels of the outline of an object, on both sides of it."""
    if not border:
        return np.zeros(instances.shape, bool)
    kernel = np.ones((2 * border + 1, 2 * border + 1), np.uint8)
    return cv2.dilate(instances, kernel) != cv2.erode(instances, kernel)


def _annotation(
    file_name: str,
    size: tuple[int, ...],
    names: list[str],
    boxes: list[tuple[int, int, int, int]],
    difficult: list[bool],
    truncated: list[bool],
) -> str:
    lines = [
        "<annotation>",
        "\t<folder>scenes</folder>",
        f"\t<filename>{escape(file_name)}</filename>",
        "\t<source>\n\t\t<database>SceneKD scenes</database>\n\t</source>",
        f"\t<size>\n\t\t<width>{size[1]}</width>\n\t\t<height>{size[0]}</height>\n\t\t<depth>3</depth>\n\t</size>",
        "\t<segmented>1</segmented>",
    ]
    for name, (x1, y1, x2, y2), hard, cut in zip(names, boxes, difficult, truncated):
        corners = (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2))
        lines += [
            f"\t<object>\n\t\t<name>{escape(name)}</name>\n\t\t<pose>Unspecified</pose>",
            f"\t\t<truncated>{int(cut)}</truncated>\n\t\t<difficult>{int(hard)}</difficult>\n\t\t<bndbox>",
            *(f"\t\t\t<{tag}>{value}</{tag}>" for tag, value in corners),
            "\t\t</bndbox>\n\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
