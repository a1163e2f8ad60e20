"""Holes: which part of a picture is hidden, and what stands there instead.

N: boxes; H, W: the picture. Boxes are absolute xyxy pixels; an extent is a whole-numbered box inside the picture, the
bounds of a hole.

Shapes:
    box      the object's box.
    square   a square about the box's centre, as wide as its longer side: it tells the size alone.
    circle   the circle through the box's corners.
    blob     a random outline outside that circle, by up to BLOB of its radius.
    segment  the object's own pixels. **A leak**: the outline often tells the class.

Fills: zero; mean (ImageNet's colour); noise; blur and inpaint, which carry something of the picture into the hole: a
blur what was hidden (**a leak**), inpainting what surrounds it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .geometry import MEAN_COLOUR
from .scenes_files import tight_box

SHAPES = ("box", "square", "circle", "blob", "segment")
FILLS = ("zero", "mean", "noise", "blur", "inpaint")

BLOB = 0.3
_WAVES = 4  # harmonics of a blob's outline
_CORNERS = 64  # of the polygon that draws it
_BLUR = 0.25  # sigma of the blur as a share of the hole's longer side
_INPAINT_RADIUS = 3  # pixels, of Telea's method


def extents(boxes: np.ndarray, shape: str, size: tuple[int, int], margin: int = 0) -> np.ndarray:
    """Bounds of the hole that hides each box: rounded outward, clipped to the picture.

    Args:
        boxes: (N, 4). shape: of :data:`SHAPES`. size: (H, W).
        margin: pixels by which the hole reaches beyond the box: what lies right beside an object (a shadow, the
            blocks of JPEG) may tell of it.

    Returns:
        (N, 4) int64; a box outside the picture has an empty extent.

    Raises:
        ValueError: no such shape, or a negative margin.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    if margin < 0:
        raise ValueError(f"margin must not be negative, got {margin}")
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    half = (high - low) / 2 + margin
    if shape == "square":
        half = np.repeat(half.max(axis=1, keepdims=True), 2, axis=1)
    elif shape in ("circle", "blob"):
        radius = np.hypot(*half.T) * (1 + BLOB if shape == "blob" else 1)
        half = np.stack([radius, radius], axis=1)
    centre = (low + high) / 2
    limit = np.array([size[1], size[0]])
    # A corner that rounding has moved over a whole number takes no further row of pixels.
    first = np.clip(np.floor(centre - half + 1e-4), 0, limit)
    last = np.clip(np.ceil(centre + half - 1e-4), 0, limit)
    return np.concatenate([first, np.maximum(first, last)], axis=1).astype(np.int64)


def areas(rectangles: np.ndarray) -> np.ndarray:
    """(N,) areas of (N, 4) boxes or extents."""
    sides = np.clip(rectangles[:, 2:] - rectangles[:, :2], 0, None)
    return sides.prod(axis=1)


def covered_shares(extent: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(…, N) share of each of (N, 4) boxes that lies inside extents (…, 4); 0 for an empty box."""
    low = np.maximum(extent[..., None, :2], boxes[:, :2])
    high = np.minimum(extent[..., None, 2:], boxes[:, 2:])
    both = np.clip(high - low, 0, None).prod(axis=-1)
    return np.asarray(both / np.maximum(areas(boxes), 1e-9) * (areas(boxes) > 0))


def hole_shares(hole: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) share of each of (N, 4) boxes, rounded to pixels, that lies in a hole (H, W) bool; 0 for an empty box."""
    sums = cv2.integral(hole.astype(np.uint8))
    limit = np.array([hole.shape[1], hole.shape[0]] * 2)
    x1, y1, x2, y2 = np.clip(np.round(boxes), 0, limit).astype(np.int64).T
    inside = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    return np.asarray(inside / np.maximum((x2 - x1) * (y2 - y1), 1))


def draw_hole(
    box: np.ndarray,
    shape: str,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    margin: int = 0,
    segment: np.ndarray | None = None,
    share: float = 1.0,
) -> np.ndarray:
    """The hole that hides one box, (H, W) bool.

    Args:
        box: (4,). shape, size, margin: as in :func:`extents`.
        rng: draws the blob's outline, and the part that a partial hole covers; nothing else.
        segment: (H, W) bool, the object's pixels, of the shape ``segment``; None, or one without a pixel in the
            picture, gives the box.
        share: in (0, 1], of the extent's area that may be hidden: a random window of it, of the same proportions.

    Raises:
        ValueError: see :func:`extents`; the box lies outside the picture; a share out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    extent = extents(box[None], shape, size, margin)[0]
    if areas(extent[None])[0] == 0:
        raise ValueError(
            f"the region {np.round(box, 1).tolist()} lies outside the picture of {size[1]}×{size[0]}"
        )
    hole = np.zeros(size, bool)
    x1, y1, x2, y2 = extent
    if shape in ("circle", "blob"):
        hole[y1:y2, x1:x2] = _round(box, shape, size, rng, margin)[y1:y2, x1:x2]
    elif shape == "segment" and segment is not None and segment.any():
        kernel = np.ones((2 * margin + 1,) * 2, np.uint8)
        hole = cv2.dilate(segment.astype(np.uint8), kernel).astype(bool)
    else:
        hole[y1:y2, x1:x2] = True
    return _part_of(hole, extent, share, rng) if share < 1 else hole


def _round(
    box: np.ndarray, shape: str, size: tuple[int, int], rng: np.random.Generator, margin: int
) -> np.ndarray:
    """A circle through the box's corners, or an outline around it."""
    angles = np.linspace(0, 2 * math.pi, _CORNERS, endpoint=False)
    radius = np.full(_CORNERS, math.hypot(*((box[2:] - box[:2]) / 2 + margin)))
    if shape == "blob":
        order = np.arange(1, _WAVES + 1)[:, None]
        waves = np.cos(order * angles + rng.uniform(0, 2 * math.pi, (_WAVES, 1)))
        strengths = rng.uniform(0, 1, (_WAVES, 1)) / order
        outline = (strengths * waves).sum(axis=0)
        radius = radius * (1 + BLOB * (outline - outline.min()) / max(np.ptp(outline), 1e-9))
    # A polygon's sides lie inside the circle of its corners.
    radius = radius / math.cos(math.pi / _CORNERS)
    centre = (box[:2] + box[2:]) / 2 - 0.5
    corners = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    canvas = np.zeros(size, np.uint8)
    cv2.fillPoly(canvas, [np.round(corners * 16).astype(np.int32)], 1, shift=4)
    return canvas.astype(bool)


def _part_of(hole: np.ndarray, extent: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The hole inside a random window of its extent; the whole where nothing of it falls into the window."""
    whole = extent[2:] - extent[:2]
    sides = np.maximum(1, np.round(whole * math.sqrt(share))).astype(np.int64)
    x, y = extent[:2] + rng.integers(0, whole - sides + 1)
    part = np.zeros_like(hole)
    window = np.s_[y : y + sides[1], x : x + sides[0]]
    part[window] = hole[window]
    return part if part.any() else hole


def fill_hole(image: np.ndarray, hole: np.ndarray, fill: str, rng: np.random.Generator) -> np.ndarray:
    """A copy of the picture with something else in the hole.

    Args:
        image: (H, W, 3) uint8 RGB. hole: (H, W) bool. fill: of :data:`FILLS`. rng: draws the noise.

    Raises:
        ValueError: no such fill.
    """
    if fill not in FILLS:
        raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
    if fill == "inpaint":
        return cv2.inpaint(image, hole.astype(np.uint8), _INPAINT_RADIUS, cv2.INPAINT_TELEA)
    shown = image.copy()
    if not hole.any():
        return shown
    x1, y1, x2, y2 = tight_box(hole)
    window = np.s_[y1:y2, x1:x2]  # a mask of the whole picture would be slower than all the rest
    inside = hole[window]
    if fill == "noise":
        shown[window][inside] = rng.integers(0, 256, (int(inside.sum()), 3), dtype=np.uint8)
    elif fill == "blur":
        sigma = max(1.0, _BLUR * max(x2 - x1, y2 - y1))
        shown[window][inside] = cv2.GaussianBlur(image, (0, 0), sigma)[window][inside]
    else:
        colour = MEAN_COLOUR if fill == "mean" else (0, 0, 0)
        if inside.all():
            shown[window] = colour
        else:
            shown[window][inside] = colour
    return shown
