"""Backgrounds of the synthetic scene types, and the light that falls on the whole picture.

Every type has its own layout and texture. Its colours vary widely (a field may be green, ripe or ploughed; a
sea blue, green or grey), so that the colours around an object say little about the object.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .scenes_textures import draw_colours, smooth_noise

Size = tuple[int, int]
_Colours = tuple[tuple[int, int, int], ...]

_SKIES: _Colours = (
    (150, 195, 235),
    (195, 205, 215),
    (235, 190, 150),
    (120, 140, 170),
    (215, 225, 235),
    (170, 150, 190),
)
_GRASS: _Colours = (
    (95, 150, 70),
    (190, 170, 90),
    (130, 110, 75),
    (150, 170, 110),
    (215, 220, 215),
    (70, 110, 80),
)
_ASPHALT: _Colours = ((105, 105, 110), (70, 72, 80), (150, 140, 130), (175, 175, 180), (120, 105, 95))
_WATER: _Colours = (
    (50, 110, 160),
    (60, 140, 140),
    (110, 125, 135),
    (150, 120, 120),
    (40, 70, 100),
    (120, 160, 175),
)
_SAND: _Colours = ((225, 200, 150), (200, 175, 140), (180, 170, 160), (235, 220, 195), (170, 135, 105))


def draw_background(rng: np.random.Generator, name: str, size: Size) -> np.ndarray:
    """Background of scene type ``name``, (H, W, 3) float32, RGB in about 0…255."""
    return _BACKGROUNDS[name](rng, size)


def draw_light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Tint, brightness, a slope of light, blur and grain over the whole picture; (H, W, 3) uint8."""
    height, width = image.shape[:2]
    tint = rng.uniform(0.65, 1.12) * rng.uniform(0.9, 1.1, 3)
    left, right, top, bottom = rng.uniform(0.85, 1.1, 4).tolist()
    across = np.linspace(left, right, width)[:, None] * tint
    down = np.linspace(top, bottom, height)[:, None, None]
    image = image * across.astype(np.float32) * down.astype(np.float32)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 0.7))
    image += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(1.5, 5))
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _pick(rng: np.random.Generator, colours: _Colours) -> np.ndarray:
    colour = np.array(colours[int(rng.integers(len(colours)))], np.float32)
    return colour + rng.normal(0, 8, 3).astype(np.float32)


def _slope(top: np.ndarray, bottom: np.ndarray, size: Size) -> np.ndarray:
    """A vertical run from one colour to another."""
    share = np.linspace(0, 1, size[0], dtype=np.float32)[:, None, None]
    return np.repeat(top + (bottom - top) * share, size[1], axis=1).astype(np.float32)


def _ground(
    rng: np.random.Generator, size: Size, colour: np.ndarray, depth: float, flat: float = 3
) -> np.ndarray:
    """A rough plane: noise ``flat`` times wider than high, ``depth`` its strength in grey levels."""
    height, width = size
    coarse = smooth_noise(rng, (height, max(2, round(width / flat))), 4)
    rough = cv2.resize(coarse, (width, height)) + 0.5 * smooth_noise(rng, size, 2.5)
    return _slope(colour * 1.06, colour * 0.88, size) + (rough * depth)[..., None]


def _sky(rng: np.random.Generator, size: Size) -> np.ndarray:
    colour = _pick(rng, _SKIES)
    sky = _slope(colour * 0.88, np.minimum(colour * 1.12, 250), size)
    clouds = np.clip(smooth_noise(rng, size, size[1] / rng.uniform(3, 7)) - rng.uniform(0, 0.7), 0, 1)
    return sky + (245 - sky) * (clouds * rng.uniform(0.2, 0.8)).astype(np.float32)[..., None]


def _open_country(rng: np.random.Generator, size: Size, horizon: int, ground: np.ndarray) -> np.ndarray:
    """Sky, perhaps a range of hills, and ``ground`` (its own height is ignored above the horizon)."""
    image = ground.copy()
    image[:horizon] = _sky(rng, (horizon, size[1]))
    if rng.random() < 0.6:
        _hills(rng, image, horizon)
    return image


def _hills(rng: np.random.Generator, image: np.ndarray, horizon: int) -> None:
    width = image.shape[1]
    crest = smooth_noise(rng, (1, width), width / rng.uniform(2, 6))[0] * 0.5 + 0.5
    tops = horizon - np.clip(crest, 0, 1) * rng.uniform(0.05, 0.14) * image.shape[0]
    outline = np.stack([np.arange(width), tops], axis=1)
    polygon = np.concatenate([outline, [(width - 1, horizon), (0, horizon)]])
    cv2.fillPoly(image[:horizon], [np.round(polygon).astype(np.int32)], (_pick(rng, _GRASS) * 0.85).tolist())


def _rows(rng: np.random.Generator, size: Size, low: float, high: float) -> int:
    return round(rng.uniform(low, high) * size[0])


def _road(rng: np.random.Generator, size: Size) -> np.ndarray:
    height, width = size
    horizon = _rows(rng, size, 0.42, 0.5)
    image = _open_country(rng, size, horizon, _ground(rng, size, _pick(rng, _GRASS), 12))
    curb, asphalt = horizon + round(0.06 * height), _pick(rng, _ASPHALT)
    image[curb:] = _ground(rng, (height - curb, width), asphalt, 6, flat=1)
    image[curb : curb + max(2, height // 45)] = np.minimum(asphalt * 1.45, 240)
    mark, thick = round(rng.uniform(0.68, 0.82) * height), max(2, height // 42)
    offset, step = rng.integers(0, 24), max(14, width // 6)
    for x in range(-int(offset), width, step):
        corners = np.array(
            [(x, mark), (x + step // 2, mark), (x + step // 2 - 3, mark + thick), (x - 3, mark + thick)]
        )
        cv2.fillPoly(image, [corners.astype(np.int32)], (235, 232, 215))
    return image


def _field(rng: np.random.Generator, size: Size) -> np.ndarray:
    height, width = size
    horizon = _rows(rng, size, 0.38, 0.48)
    image = _open_country(rng, size, horizon, _ground(rng, size, _pick(rng, _GRASS), 22, flat=1))
    furrow = _pick(rng, _GRASS) * 0.8
    vanish, count = rng.uniform(0, width), int(rng.integers(7, 14))
    layer = image.copy()
    for x in np.linspace(-2 * width, 3 * width, count * 2):
        near = max(1.0, width / 70)
        line = np.array([(vanish, horizon), (x - near * 2, height), (x + near * 2, height)])
        cv2.fillPoly(layer, [np.round(line).astype(np.int32)], furrow.tolist())
    layer[:horizon] = image[:horizon]
    return cv2.addWeighted(image, 0.6, layer, 0.4, 0)


def _sea(rng: np.random.Generator, size: Size) -> np.ndarray:
    height, width = size
    horizon = _rows(rng, size, 0.36, 0.46)
    image = _open_country(rng, size, horizon, _waves(rng, size, _pick(rng, _WATER)))
    image[horizon] *= 0.85
    return image


def _waves(rng: np.random.Generator, size: Size, colour: np.ndarray) -> np.ndarray:
    water = _ground(rng, size, colour, 9, flat=5)
    for _ in range(int(rng.integers(14, 30))):
        x, y = rng.uniform(0, size[1]), rng.uniform(0, size[0])
        half = rng.uniform(0.02, 0.07) * size[1] * (0.4 + y / size[0])
        arc = (round(x), round(y)), (max(2, round(half)), max(1, round(half * 0.25)))
        cv2.ellipse(water, *arc, 0, 190, 350, np.minimum(colour * 1.4 + 25, 245).tolist(), 1)
    return water


def _kitchen(rng: np.random.Generator, size: Size) -> np.ndarray:
    height, width = size
    wall, wood, top = (c * share + 60 for c, share in zip(draw_colours(rng, 3), (0.7, 0.55, 0.6)))
    image = _slope(wall, wall * 0.92, size) + (smooth_noise(rng, size, 30) * 6)[..., None]
    tile = max(8, round(height * rng.uniform(0.09, 0.16)))
    joint = np.minimum(wall * rng.choice((0.86, 1.1)), 250)
    image[::tile] = joint
    image[:, int(rng.integers(tile)) :: tile] = joint
    shelf, thick = round(0.335 * height), max(3, height // 30)
    image[shelf : shelf + thick] = _ground(rng, (thick, width), wood * 0.9, 6, flat=6)
    image[shelf + thick : shelf + thick + 2] *= 0.75
    back, edge, foot = (round(row * height) for row in (0.53, 0.70, 0.86))
    image[back:edge] = _ground(rng, (edge - back, width), top, 10, flat=7)
    image[edge:foot] = _ground(rng, (foot - edge, width), wood * 0.8, 8, flat=9)
    image[edge : edge + 2] *= 0.7
    door = max(16, round(width * rng.uniform(0.16, 0.3)))
    image[edge:foot, int(rng.integers(door)) :: door] *= 0.7
    image[foot:] = _ground(rng, (height - foot, width), draw_colours(rng, 1)[0] * 0.5 + 50, 8)
    image[foot : foot + 2] *= 0.7
    return image


def _beach(rng: np.random.Generator, size: Size) -> np.ndarray:
    height, width = size
    horizon, shore = _rows(rng, size, 0.34, 0.4), _rows(rng, size, 0.6, 0.64)
    image = _ground(rng, size, _pick(rng, _SAND), 13, flat=1)
    image[:horizon] = _sky(rng, (horizon, width))
    image[horizon:shore] = _waves(rng, (shore - horizon, width), _pick(rng, _WATER))
    edge = shore + smooth_noise(rng, (1, width), width / 6)[0] * height * 0.02
    foam = np.stack([np.arange(width), edge], axis=1).round().astype(np.int32)
    cv2.polylines(image, [foam], False, (240, 240, 235), max(2, height // 40))
    for x, y in rng.uniform((0, shore + 6), (width, height), (12, 2)):
        shade = float(rng.uniform(90, 200))
        cv2.circle(image, (round(x), round(y)), max(1, width // 150), (shade, shade, shade * 0.9), -1)
    return image


def _park(rng: np.random.Generator, size: Size) -> np.ndarray:
    height, width = size
    horizon = _rows(rng, size, 0.40, 0.48)
    image = _open_country(rng, size, horizon, _ground(rng, size, _pick(rng, _GRASS), 14, flat=2))
    hedge = round(rng.uniform(0.05, 0.09) * height)
    image[horizon - hedge : horizon] = _ground(rng, (hedge, width), _pick(rng, _GRASS) * 0.7, 28, flat=1)
    bend, far = rng.uniform(0.1, 0.9, 2) * width
    path = np.array(
        [
            (far - 0.03 * width, horizon),
            (far + 0.03 * width, horizon),
            (bend + 0.3 * width, height),
            (bend - 0.2 * width, height),
        ]
    )
    cv2.fillPoly(image, [np.round(path).astype(np.int32)], _pick(rng, _SAND).tolist())
    for x, y in rng.uniform((0, horizon + 4), (width, height), (25, 2)):
        blossom = draw_colours(rng, 1)[0].tolist()
        cv2.circle(image, (round(x), round(y)), max(1, width // 150), blossom, -1)
    return image


_BACKGROUNDS: dict[str, Callable[[np.random.Generator, Size], np.ndarray]] = {
    "road": _road,
    "field": _field,
    "sea": _sea,
    "kitchen": _kitchen,
    "beach": _beach,
    "park": _park,
}
