"""Data for classification out of a VOC-layout folder: every object of a split as an image of its class."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.catalog import load_dataset
from ..data.geometry import wider
from ..data.images import read_image
from ..data.records import Record


def crop_objects(
    source: Path,
    folder: Path,
    *,
    splits: Sequence[str],
    classes: Sequence[str],
    size: int,
    margin: float | None = None,
) -> None:
    """Write ``folder/<split>/<class>/<image_id>_<n>.png``, size × size pixels each; nothing where ``folder`` is there.

    The window is the square around a box, moved into the image and cut at its border; difficult objects are left out.

    Args:
        splits: segmentation lists of ``source``. classes: of its boxes, all of them.
        margin: the window is the box, wider by this share of its longer side on each side as far as the image goes.

    Raises:
        UserError: no such list, or a box of another class.
    """
    if folder.is_dir():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in splits:
        for record in load_dataset(f"voc_seg_{split}", root=str(source), classes=classes).records:
            _crop(record, partial / split, classes, size, margin)
    os.replace(partial, folder)


def _crop(record: Record, folder: Path, classes: Sequence[str], size: int, margin: float | None) -> None:
    if record.boxes is None or record.labels is None:
        return
    image = Image.fromarray(read_image(record.file_name))
    hard = record.difficult if record.difficult is not None else np.zeros(len(record.labels), bool)
    for n, (box, label) in enumerate(zip(record.boxes, record.labels)):
        if hard[n]:
            continue
        path = folder / classes[label] / f"{record.image_id}_{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        extent = image.width, image.height
        place = window(box, *extent) if margin is None else wider(box, margin, *extent)
        image.crop(place).resize((size, size)).save(path)


def window(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The square around a box (xyxy) as whole pixels, moved into an image and no larger than it."""
    left, top, right, bottom = (float(side) for side in box)
    side = max(1, round(min(max(right - left, bottom - top), width, height)))
    x = round(min(max((left + right - side) / 2, 0), width - side))
    y = round(min(max((top + bottom - side) / 2, 0), height - side))
    return x, y, x + side, y + side
