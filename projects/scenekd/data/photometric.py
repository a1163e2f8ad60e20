"""Photometric distortion as in BlitzNet: brightness, saturation, hue and contrast in one of four orders.

All four work on uint8, hue and saturation in OpenCV's 8-bit HSV with 256 steps of hue.
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
    for name in order:
        wants_hsv = name in ("hue", "saturation")
        if wants_hsv != hsv:  # hue and saturation that follow each other share one conversion
            image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL if wants_hsv else cv2.COLOR_HSV2RGB_FULL)
            hsv = wants_hsv
        amount = amounts[name]
        if name == "brightness":
            image = scale_and_shift(image, np.ones(3), np.full(3, 255 * amount))
        elif name == "contrast":
            image = scale_and_shift(image, np.full(3, 1 + amount), -amount * np.asarray(cv2.mean(image)[:3]))
        elif name == "saturation":
            image = scale_and_shift(image, np.asarray([1, 1 + amount, 1]), np.zeros(3))
        else:
            # the circle has 256 steps, so uint8 wraps where it should
            hue = cv2.extractChannel(image, 0) + np.uint8(round(256 * amount) % 256)
            image = cv2.insertChannel(hue, image, 0)
    return cv2.cvtColor(image, cv2.COLOR_HSV2RGB_FULL) if hsv else image


def scale_and_shift(image: np.ndarray, factor: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 times ``factor`` (3,) plus ``shift`` (3,), rounded and clipped.

    OpenCV's transform is five times faster here than a look-up table.
    """
    matrix = np.zeros((3, 4), np.float32)
    matrix[:, :3] = np.diag(factor)
    matrix[:, 3] = shift
    return cv2.transform(image, matrix)
