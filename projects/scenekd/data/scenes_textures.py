"""Colours and surface patterns of synthetic scenes.

Nothing here knows a class: every object draws its colours from one palette and its patterns from one set.
"""

from __future__ import annotations

import cv2
import numpy as np

# RGB. Hues all around the circle, light and dark, and some greys.
PALETTE = np.array(
    [
        (214, 48, 49), (140, 28, 40), (232, 120, 48), (160, 90, 44), (244, 200, 66), (170, 150, 60),
        (120, 180, 70), (50, 110, 60), (70, 180, 160), (30, 110, 120), (90, 170, 230), (40, 80, 170),
        (130, 110, 210), (80, 50, 130), (220, 130, 190), (160, 50, 110), (240, 238, 230), (190, 186, 180),
        (120, 120, 124), (52, 54, 60),
    ],
    np.float32,
)  # fmt: skip
PATTERNS = ("plain", "stripes", "bands", "checks", "dots", "mottled")


def draw_colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """``count`` different palette colours, each shifted a little, (count, 3) float32."""
    picks = PALETTE[rng.choice(len(PALETTE), count, replace=False)]
    return np.clip(picks * rng.uniform(0.85, 1.1) + rng.normal(0, 10, (count, 3)), 8, 250).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Random field in about −1…1 that varies over ``cell`` pixels, (H, W) float32."""
    height, width = size
    grid = (max(2, round(height / cell) + 1), max(2, round(width / cell) + 1))
    coarse = rng.uniform(-1, 1, grid).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def surface(
    rng: np.random.Generator, size: tuple[int, int], first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """A surface in two colours with a random pattern, (H, W, 3) float32."""
    height, width = size
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    if pattern == "plain":
        return np.broadcast_to(first, (height, width, 3)).astype(np.float32)
    if pattern == "mottled":
        share = smooth_noise(rng, size, max(3.0, height / 5)) * 0.5 + 0.5
    else:
        share = _pattern(rng, pattern, height, width)
    share = share[..., None] * np.float32(rng.uniform(0.5, 0.9))
    return first + (second - first) * share


def _pattern(rng: np.random.Generator, pattern: str, height: int, width: int) -> np.ndarray:
    """Share of the second colour, (H, W) float32 of 0 and 1."""
    step = max(4, int(min(height, width) / rng.uniform(2.5, 5)))
    rows = (np.arange(height)[:, None] + int(rng.integers(step))) % step
    columns = (np.arange(width)[None] + int(rng.integers(step))) % step
    if pattern == "stripes":
        on = (columns < step * 0.4) & (rows >= 0)
    elif pattern == "bands":
        on = (rows < step * 0.4) & (columns >= 0)
    elif pattern == "checks":
        on = (columns < step / 2) ^ (rows < step / 2)
    else:
        on = (columns - step / 2) ** 2 + (rows - step / 2) ** 2 < (step * 0.32) ** 2
    return on.astype(np.float32)
