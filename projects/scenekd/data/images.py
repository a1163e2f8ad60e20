"""Reading images and masks: by Pillow alone, so that a damaged file is an error and not a guess."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import BadRecordError, UserError
from ..sample import IGNORE_INDEX

if TYPE_CHECKING:
    from .records import Record

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# What Pillow raises on damaged files, depending on the format and where the damage lies.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@lru_cache(maxsize=1)
def voc_palette() -> np.ndarray:
    """PASCAL VOC's colours, (256, 3) uint8 RGB: an index's bits go to R, G, B in turn, to high bits first."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * bit + channel)) & 1).astype(np.uint8) << (7 - bit)
    palette.setflags(write=False)
    return palette


def image_files(inputs: Iterable[str | Path]) -> list[Path]:
    """The files named, and the images in the folders named, by name.

    Raises:
        UserError: a folder without an image.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        inside = (
            sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
        if not inside:
            raise UserError(f"{path}: holds no image ({', '.join(SUFFIXES)})")
        files += inside
    return files


def _open(path: str) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise BadRecordError(f"{path}: no such file; check DATASETS.ROOT and the split's list") from None
    except _DECODE_ERRORS as error:
        raise BadRecordError(f"{path}: cannot be read as an image ({_reason(error)}); replace it") from None


def _reason(error: Exception) -> str:
    return "not an image file" if isinstance(error, Image.UnidentifiedImageError) else str(error)


def image_size(path: str) -> tuple[int, int]:
    """(height, width) from the file's header; EXIF rotation is ignored, as annotations ignore it."""
    with _open(path) as image:
        return image.height, image.width


def read_image(record: Record | str) -> np.ndarray:
    """The image of a record (or of a path) as (H, W, 3) uint8 RGB.

    Grey, palette, CMYK and transparent images are converted; EXIF rotation is ignored.

    Raises:
        BadRecordError: missing, truncated, or not an image.
    """
    if not isinstance(record, str) and record.pixels is not None:
        return record.pixels.copy()
    path = record if isinstance(record, str) else record.file_name
    with _open(path) as image:
        try:
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
        except _DECODE_ERRORS as error:
            raise BadRecordError(f"{path}: damaged image ({error}); replace it") from None


def read_sem_seg(
    path: str, size: tuple[int, int], *, num_classes: int, palette: np.ndarray | None = None
) -> np.ndarray:
    """A mask as (H, W) uint8 class indices; see :meth:`scenekd.data.records.Dataset.read_sem_seg`.

    Palette and grey images hold the indices themselves; a colour image is turned into indices by ``palette``.
    """
    with _open(path) as image:
        try:
            pixels = np.array(image if image.mode in ("P", "L", "RGB") else image.convert("RGB"))
        except _DECODE_ERRORS as error:
            raise BadRecordError(f"{path}: damaged mask ({error}); replace it") from None
    if pixels.shape[:2] != tuple(size):
        raise BadRecordError(
            f"{path}: mask is {pixels.shape[1]}×{pixels.shape[0]}, its image {size[1]}×{size[0]}; "
            "make them equal"
        )
    if pixels.ndim == 3:
        pixels = _from_colours(path, pixels, voc_palette() if palette is None else palette)
    # A histogram over 256 bins is several times faster than np.unique.
    present = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)[:IGNORE_INDEX])
    if present.size and present[-1] > num_classes:
        raise BadRecordError(
            f"{path}: mask value {present[-1]}, but there are {num_classes} classes (and 255); "
            "check DATASETS.CLASSES"
        )
    return pixels


def _from_colours(path: str, colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    def code(rgb: np.ndarray) -> np.ndarray:
        rgb = rgb.astype(np.int32)
        return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]

    known, first = np.unique(code(palette), return_index=True)
    wanted = code(colours)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    unknown = known[place] != wanted
    if unknown.any():
        colour = tuple(int(value) for value in colours[unknown][0])
        raise BadRecordError(f"{path}: RGB mask with colour {colour}, not in the palette; save class indices")
    return first[place].astype(np.uint8)
