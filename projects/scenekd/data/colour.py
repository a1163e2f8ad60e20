"""Changes of colour beside :mod:`.photometric`, and the choice of one transform of several; labels stay.

Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from ..sample import Sample
from .photometric import scale_and_shift


class Either:
    """At most one of several transforms.

    Args:
        choices: pairs (probability, ``transform(sample, rng)``); what is left to 1 is the chance of none.

    Raises:
        ValueError: a negative probability, or a sum above 1.
    """

    def __init__(
        self, choices: Sequence[tuple[float, Callable[[Sample, np.random.Generator], Sample]]]
    ) -> None:
        shares = [share for share, _ in choices]
        if min(shares, default=0.0) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"probabilities must be at least 0 and at most 1 together, got {shares}")
        self.ends = np.cumsum(shares)
        self.transforms: list[Any] = [transform for _, transform in choices]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        place = int(np.searchsorted(self.ends, rng.random(), side="right"))
        return sample if place == len(self.transforms) else self.transforms[place](sample, rng)


class RGBShift:
    """Add to each channel a number of its own from U(−limit, limit), rounded and clipped."""

    def __init__(self, limit: float) -> None:
        if limit < 0:
            raise ValueError(f"limit must not be negative, got {limit}")
        self.limit = limit

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        shift = np.rint(rng.uniform(-self.limit, self.limit, 3))
        return dataclasses.replace(sample, image=scale_and_shift(sample.image, np.ones(3), shift))


class ChannelShuffle:
    """The three channels in any order, each of the six as likely."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        order = rng.permutation(3)
        return dataclasses.replace(sample, image=np.ascontiguousarray(sample.image[..., order]))


class Clahe:
    """Adaptive histogram equalisation of the lightness (CIELAB) on a grid of 8 × 8 tiles (Zuiderveld, Graphics Gems IV,
    1994), with the contrast limited by U(1, limit)."""

    def __init__(self, limit: float = 4.0) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.limit = limit

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        equalise = cv2.createCLAHE(clipLimit=float(rng.uniform(1.0, self.limit)), tileGridSize=(8, 8))
        lab = cv2.cvtColor(sample.image, cv2.COLOR_RGB2LAB)
        lab = cv2.insertChannel(equalise.apply(cv2.extractChannel(lab, 0)), lab, 0)
        return dataclasses.replace(sample, image=cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))


class Posterize:
    """Keep the ``bits`` highest bits of each value, 1…8."""

    def __init__(self, bits: int = 4) -> None:
        if not 1 <= bits <= 8:
            raise ValueError(f"bits must be 1 to 8, got {bits}")
        self.mask = np.uint8(256 - (1 << (8 - bits)))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return dataclasses.replace(sample, image=sample.image & self.mask)


class Gray:
    """Luma (.299 R + .587 G + .114 B) in all three channels, so that weights for colours still fit."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        luma = cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY)
        return dataclasses.replace(sample, image=cv2.cvtColor(luma, cv2.COLOR_GRAY2RGB))
