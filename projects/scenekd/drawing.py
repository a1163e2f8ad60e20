"""Masks and boxes drawn on an image.

H, W: image size; N: boxes; C: object classes. Boxes are xyxy pixels of the image, labels 0…C−1, masks 0…C and
255, all arrays numpy. Colours are an index → RGB table, VOC's by default; object class c has colour c + 1. Where
masks of boxes are shown, colours tell the objects apart instead, and the classes are written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data.images import voc_palette
from .sample import IGNORE_INDEX

TEXT = 12  # pixels, of names and captions

# What an error map tells apart, in Okabe and Ito's colours, which colour-blind readers tell apart.
ERRORS = {
    "object missed": (213, 94, 0),
    "object invented": (0, 114, 178),
    "other object": (204, 121, 167),
}
VOID = (90, 90, 90)  # of an error map: pixels that do not count


def colourise(mask: np.ndarray, palette: np.ndarray | None = None) -> np.ndarray:
    """(H, W) indices 0…255 as (H, W, 3) uint8 RGB."""
    return (voc_palette() if palette is None else palette)[mask]


def blend_mask(
    image: np.ndarray, mask: np.ndarray, palette: np.ndarray | None = None, opacity: float = 0.65
) -> np.ndarray:
    """The mask's colours over the image in light grey, since many of VOC's colours are dark.

    Args:
        image: (H, W, 3) uint8 RGB. mask: (H, W) indices. opacity: of the colours, 0…1.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the image {image.shape[:2]}")
    faded = 140 + 0.45 * image.mean(axis=2, keepdims=True)
    mixed = (1 - opacity) * faded + opacity * colourise(mask, palette)
    return np.round(np.where(mask[..., None] > 0, mixed, faded)).astype(np.uint8)


def draw_errors(image: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """Where a mask is wrong, over the image in light grey, and the share of wrong pixels.

    Args:
        image: (H, W, 3) uint8 RGB. mask: (H, W) class indices. truth: (H, W) class indices, 255 void.

    Returns:
        (H, W, 3) uint8 RGB: pixels where an object is taken for background, background for an object, or an object
        for another one have the colours of :data:`ERRORS`, void ones that of :data:`VOID`; the share of the pixels
        that are not void, in 0…1, NaN where all are.

    Raises:
        ValueError: sizes differ.
    """
    if not mask.shape == truth.shape == image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the truth {truth.shape}, the image {image.shape[:2]}")
    counted = truth != IGNORE_INDEX
    wrong = counted & (mask != truth)
    kinds = (wrong & (mask == 0), wrong & (truth == 0), wrong & (mask > 0) & (truth > 0))
    drawn = np.repeat(140 + 0.45 * image.mean(axis=2, keepdims=True), 3, axis=2).round().astype(np.uint8)
    for where, colour in zip(kinds, ERRORS.values()):
        drawn[where] = colour
    drawn[~counted] = VOID
    return drawn, float(wrong.sum() / counted.sum()) if counted.any() else math.nan


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    scores: np.ndarray | None = None,
    palette: np.ndarray | None = None,
    colours: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of the image with boxes, class names and scores; the surest box lies on top.

    Args:
        image: (H, W, 3) uint8 RGB. boxes: (N, 4) pixels of it. scores: (N,) in 0…1; none for ground truth.
        classes: C names. colours: (N, 3) uint8 RGB of the boxes, instead of their classes'.
    """
    if colours is None:
        colours = (voc_palette() if palette is None else palette)[np.asarray(labels, np.int64) + 1]
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for i in order:
        colour = tuple(int(c) for c in colours[i])
        text = classes[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}")
        _draw_box(draw, picture.size, boxes[i], text, colour)
    return np.asarray(picture)


def object_colours(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB colours of objects: neighbours in the list differ most in hue."""
    turn = 180 * (np.sqrt(5) - 1) / 2  # the golden section of the circle, in OpenCV's half degrees
    hues = (15 + turn * np.arange(count)) % 180
    hsv = np.stack([hues, np.full(count, 210), np.full(count, 235)], axis=1)
    return cv2.cvtColor(hsv.round().astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]


def draw_masks(
    image: np.ndarray, masks: Sequence[np.ndarray], colours: np.ndarray, opacity: float = 0.45, line: int = 2
) -> np.ndarray:
    """The image in grey with each mask filled translucently and outlined in its colour; the first lies on top.

    Args:
        image: (H, W, 3) uint8 RGB. masks: N of (H, W) bool. colours: (N, 3) uint8 RGB. opacity: of the filling,
        0…1. line: width of the outline in pixels, inside the mask.
    """
    picture = np.repeat(
        70 + 0.65 * image.mean(axis=2, keepdims=True), 3, axis=2
    )  # objects alone are coloured
    rim = np.ones((2 * line + 1, 2 * line + 1), np.uint8)
    for mask, colour in zip(masks[::-1], colours[::-1].astype(float)):
        picture[mask] += opacity * (colour - picture[mask])
        inner = cv2.erode(mask.astype(np.uint8), rim, borderValue=0)
        picture[mask & (inner == 0)] = colour
    return picture.round().astype(np.uint8)


def _draw_box(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: np.ndarray, text: str, colour: tuple[int, ...]
) -> None:
    width, height = size
    left, top = (int(v) for v in np.clip(np.round(box[:2]), 0, [width - 1, height - 1]))
    right, bottom = (int(v) for v in np.clip(np.round(box[2:]) - 1, [left, top], [width - 1, height - 1]))
    # A white line around the coloured one: VOC's colours are dark, and so are many images.
    draw.rectangle((left, top, right, bottom), outline="white", width=4)
    if right - left > 2 and bottom - top > 2:
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=3)
    span = draw.textbbox((0, 0), text, font=font(TEXT))
    text_width, text_height = int(span[2]) + 6, int(span[3]) + 4
    # The name stands above its box where there is room, and inside the image always.
    x = max(0, min(left, width - text_width))
    y = top - text_height if top >= text_height else min(top, height - text_height)
    draw.rectangle((x, y, x + text_width, y + text_height), fill=colour, outline="white")
    draw.text((x + 3, y + 1), text, fill=_ink_on(colour), font=font(TEXT))


def _ink_on(colour: tuple[int, ...]) -> str:
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return "black" if luminance > 140 else "white"


@lru_cache(maxsize=4)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The one typeface of all pictures, ``size`` pixels high."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
