"""Photometric distortion as in BlitzNet: brightness, saturation, hue and contrast in one of four orders.

All four work on uint8 by look-up tables, hue and saturation in OpenCV's 8-bit HSV.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from ..sample import Sample

_ORDERS = (
    ("brightness", "saturation", "hue", "contrast"),
    ("saturation", "brightness", "contrast", "hue"),
    ("contrast", "hue", "brightness", "saturation"),
    ("hue", "saturation", "contrast", "brightness"),
)
_RAMP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
_HUE, _SATURATION = 0, 1


class Photometric:
    """Distort the colours; labels stay.

    Args:
        brightness: greatest shift, as a share of the full range (added).
        saturation, contrast: greatest deviation of the factor from 1; contrast keeps each channel's mean.
        hue: greatest shift, as a share of the colour circle.
    """

    def __init__(
        self, *, brightness: float = 0.125, saturation: float = 0.5, hue: float = 0.07, contrast: float = 0.5
    ) -> None:
        self.limits = {"brightness": brightness, "saturation": saturation, "hue": hue, "contrast": contrast}

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        order = _ORDERS[rng.integers(len(_ORDERS))]
        amounts = {name: float(rng.uniform(-limit, limit)) for name, limit in self.limits.items()}
        return dataclasses.replace(sample, image=distort(sample.image, order, amounts))


def distort(image: np.ndarray, order: tuple[str, ...], amounts: dict[str, float]) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the ``amounts`` (signed, see :class:`Photometric`) applied in ``order``."""
    hsv = False
    pending = _RAMP  # tables of steps in the same colour space are joined before they touch the image
    for name in order:
        wants_hsv = name in ("hue", "saturation")
        if wants_hsv != hsv:
            image, pending = _apply(image, pending), _RAMP
            image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL if wants_hsv else cv2.COLOR_HSV2RGB_FULL)
            hsv = wants_hsv
        elif name == "contrast":  # needs the mean of what was done so far
            image, pending = _apply(image, pending), _RAMP
        pending = np.take_along_axis(_table(image, name, amounts[name]), pending.astype(np.intp), axis=0)
    image = _apply(image, pending)
    return cv2.cvtColor(image, cv2.COLOR_HSV2RGB_FULL) if hsv else image


def _apply(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    if table is _RAMP:
        return image
    same = (table == table[:, :1]).all()
    # one table for all channels is several times faster
    return cv2.LUT(image, np.ascontiguousarray(table[:, 0]) if same else table[None])


def _table(image: np.ndarray, name: str, amount: float) -> np.ndarray:
    """(256, 3) uint8: the new value for each old one, per channel."""
    table = _RAMP.astype(np.float32)
    if name == "brightness":
        table += 255 * amount
    elif name == "contrast":
        mean = np.asarray(cv2.mean(image)[:3], np.float32)
        table = (table - mean) * (1 + amount) + mean
    elif name == "saturation":
        table[:, _SATURATION] *= 1 + amount
    else:
        table[:, _HUE] = np.rint(table[:, _HUE] + 256 * amount) % 256
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)
