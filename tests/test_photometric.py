"""Brightness, contrast, hue and saturation, against arithmetic and the standard library."""

from __future__ import annotations

import colorsys

import numpy as np

from scenekd.data.photometric import Photometric, distort
from scenekd.sample import Sample


def test_photometric_steps_do_what_they_say() -> None:
    image = np.random.default_rng(0).integers(60, 180, (20, 30, 3), dtype=np.uint8)
    none = dict.fromkeys(("brightness", "saturation", "hue", "contrast"), 0.0)
    brighter = distort(image, ("brightness",), {**none, "brightness": 0.1})
    np.testing.assert_array_equal(brighter, np.rint(image + 25.5).astype(np.uint8))
    mean = image.reshape(-1, 3).mean(axis=0)
    flatter = distort(image, ("contrast",), {**none, "contrast": -0.5})
    np.testing.assert_allclose(flatter, (image - mean) / 2 + mean, atol=0.51)
    # saturation 0 leaves the value of HSV, the largest channel
    grey = distort(image, ("saturation",), {**none, "saturation": -1.0})
    np.testing.assert_array_equal(grey, np.repeat(image.max(axis=2, keepdims=True), 3, axis=2))


def test_hue_and_saturation_agree_with_colorsys() -> None:
    image = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    result = distort(image, ("hue", "saturation"), {"hue": 0.07, "saturation": -0.3})
    for before, after in zip(image.reshape(-1, 3), result.reshape(-1, 3)):
        h, s, v = colorsys.rgb_to_hsv(*(before / 255))
        expected = np.asarray(colorsys.hsv_to_rgb((h + 0.07) % 1, s * 0.7, v)) * 255
        # 8-bit HSV: a step of hue (1/256) is worth six grey levels of a saturated colour
        np.testing.assert_allclose(after, expected, atol=6)


def test_photometric_takes_every_order_and_stays_in_range() -> None:
    image = np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    results = {Photometric()(Sample(image, "x"), np.random.default_rng(i)).image.tobytes() for i in range(20)}
    assert len(results) == 20
