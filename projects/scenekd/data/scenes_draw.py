"""Draw the objects of a synthetic scene onto its background, with their exact masks.

Objects are painted at twice the resolution and reduced. A pixel belongs to an object where at least half of
it is covered; a pixel that several objects claim belongs to the one in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .scenes_backgrounds import draw_background, draw_light
from .scenes_model import CLASSES, SCENES, SceneObject
from .scenes_shapes import draw_shape
from .scenes_textures import draw_colours, smooth_noise, surface

_SCALE = 2  # painting resolution
_SHIFT = 4  # fractional bits of the polygon's corners


@dataclass
class Picture:
    """A drawn scene. ``instances`` (H, W) uint8: 0 background, i + 1 where object i is seen; ``covered``: the
    number of pixels that each object would fill in an endless image with nothing in front of it."""

    image: np.ndarray
    instances: np.ndarray
    covered: list[int]


def draw_scene(
    rng: np.random.Generator, scene: int, objects: list[SceneObject], size: tuple[int, int]
) -> Picture:
    """Paint background and objects, from the farthest (highest foot, flying first) to the nearest."""
    zones = list(SCENES[scene].zones.values())
    image = draw_background(rng, SCENES[scene].name, size)
    instances = np.zeros(size, np.uint8)
    covered = [0] * len(objects)
    order = sorted(range(len(objects)), key=lambda i: (not zones[objects[i].zone].hangs, objects[i].box[3]))
    for i in order:
        if not zones[objects[i].zone].hangs:
            _cast_shadow(image, objects[i].box)
        colour, alpha, corner = _paint(rng, objects[i])
        covered[i] = int((alpha >= 0.5).sum())
        _compose(image, instances, colour, alpha, corner, i + 1)
    return Picture(draw_light(rng, image), instances, covered)


def _cast_shadow(image: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """A dark ellipse at the foot; the same for all classes, so that it gives away nothing but the box."""
    x1, _, x2, y2 = box
    half = (x2 - x1) / 2
    across, down = max(1, round(half)), max(1, round(half * 0.22))
    first, last = max(0, round(y2) - down - 1), round(y2) + down + 1
    rows = image[first:last]
    layer = np.ones(rows.shape[:2], np.float32)
    centre = (round((x1 + x2) / 2), round(y2 - 0.5) - first)
    cv2.ellipse(layer, centre, (across, down), 0, 0, 360, 0.72, -1)
    rows *= layer[..., None]


def _paint(rng: np.random.Generator, thing: SceneObject) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """One object alone: colours (h, w, 3), coverage (h, w) in 0…1, and (x, y) of the patch in the image."""
    x1, y1, x2, y2 = thing.box
    left, top = math.floor(x1) - 1, math.floor(y1) - 1
    patch = (math.ceil(y2) + 1 - top, math.ceil(x2) + 1 - left)
    fine = (patch[0] * _SCALE, patch[1] * _SCALE)
    parts = draw_shape(rng, CLASSES[thing.label])
    polygons = _fit([points for points, _ in parts], (x1 - left, y1 - top, x2 - left, y2 - top))
    colours = draw_colours(rng, 4)
    layers = np.zeros(fine, np.uint8)
    lines = np.zeros(fine, np.uint8)
    for polygon, (_, layer) in zip(polygons, parts):
        cv2.fillPoly(layers, [polygon], layer + 1, shift=_SHIFT)
        cv2.fillPoly(lines, [polygon], 0, shift=_SHIFT)
        cv2.polylines(lines, [polygon], True, 255, 1, cv2.LINE_AA, _SHIFT)
    canvas = np.empty((*fine, 3), np.float32)
    canvas[:] = surface(rng, fine, colours[0], colours[3])
    canvas[layers == 2] = colours[1]
    canvas[layers == 3] = colours[2]
    canvas *= _shade(rng, fine, lines)[..., None]
    cover = (layers > 0).astype(np.float32)
    canvas *= cover[..., None]
    alpha = cv2.resize(cover, patch[::-1], interpolation=cv2.INTER_AREA)
    colour = cv2.resize(canvas, patch[::-1], interpolation=cv2.INTER_AREA)
    return colour / np.maximum(alpha, 1e-3)[..., None], alpha, (left, top)


def _fit(polygons: list[np.ndarray], box: tuple[float, float, float, float]) -> list[np.ndarray]:
    """Stretch polygons so that together they fill ``box`` (patch pixels); fixed-point corners for OpenCV."""
    points = np.concatenate(polygons)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (np.array(box[2:]) - box[:2]) / (high - low)
    # OpenCV counts from the centre of the first pixel, boxes from its edge.
    fitted = [((polygon - low) * scale + box[:2]) * _SCALE - 0.5 for polygon in polygons]
    return [np.round(polygon * 2**_SHIFT).astype(np.int32) for polygon in fitted]


def _shade(rng: np.random.Generator, size: tuple[int, int], lines: np.ndarray) -> np.ndarray:
    """Light from one side, uneven, with darker edges between parts, (H, W) float32 around 1."""
    across, down = rng.uniform(-0.22, 0.22), rng.uniform(-0.05, 0.25)
    x = np.linspace(across, -across, size[1], dtype=np.float32)
    y = np.linspace(down, -down, size[0], dtype=np.float32)
    grain = smooth_noise(rng, size, 6) * np.float32(0.06)
    return (1 + x[None] + y[:, None] + grain) * (1 - lines.astype(np.float32) * np.float32(0.45 / 255))


def _compose(
    image: np.ndarray,
    instances: np.ndarray,
    colour: np.ndarray,
    alpha: np.ndarray,
    corner: tuple[int, int],
    value: int,
) -> None:
    """Lay a patch over the image, as far as it lies inside."""
    height, width = instances.shape
    x, y = corner
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + alpha.shape[1], width), min(y + alpha.shape[0], height)
    if x1 >= x2 or y1 >= y2:
        return
    inside = np.s_[y1 - y : y2 - y, x1 - x : x2 - x]
    view = image[y1:y2, x1:x2]
    view += (colour[inside] - view) * alpha[inside][..., None]
    instances[y1:y2, x1:x2][alpha[inside] >= 0.5] = value
