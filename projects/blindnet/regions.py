"""Regions and lengths as a user writes them, for pictures of any size.

Numbers are pixels of the original picture. Those that all lie in 0…1, at least one of them written with a decimal
point, are fractions: ``0.5,0.25,0.75,1`` is a quarter of the width, from its middle on. ``0,0,1,1`` is one pixel.
H, W: the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scenekd.errors import UserError

EXAMPLE = "40,30,120,90 in pixels or 0.1,0.2,0.4,0.6 as fractions of width and height"


def _numbers(text: str, counts: tuple[int, ...]) -> tuple[tuple[float, ...], bool] | None:
    """The numbers, and whether they are fractions; None where they are not so many finite numbers."""
    words = text.split(",")
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        return None
    if len(values) not in counts or not all(map(math.isfinite, values)):
        return None
    return values, "." in text and all(0 <= value <= 1 for value in values)


@dataclass(frozen=True)
class Region:
    """A rectangle x1, y1, x2, y2; see the module. ``text``: as it was written."""

    text: str
    values: tuple[float, ...]
    fractions: bool

    @classmethod
    def read(cls, text: str) -> Region:
        """From ``x1,y1,x2,y2``.

        Raises:
            UserError: no four numbers, or nothing lies between them.
        """
        found = _numbers(text, (4,))
        if found is None:
            raise UserError(f"--region: {text!r} is not x1,y1,x2,y2; write {EXAMPLE}")
        x1, y1, x2, y2 = found[0]
        if x2 <= x1 or y2 <= y1:
            raise UserError(f"--region: {text} is empty; x1 must be below x2, and y1 below y2")
        return cls(text, *found)

    def box(self, size: tuple[int, int], name: str) -> np.ndarray:
        """(4,) float32 pixels of a picture of ``size`` (H, W).

        Args:
            name: of the picture, for errors.

        Raises:
            UserError: a part of it lies outside the picture.
        """
        limit = np.array([size[1], size[0]] * 2, np.float64)
        box = np.array(self.values) * (limit if self.fractions else 1)
        if (box < 0).any() or (box > limit).any():
            raise UserError(
                f"--region: {self.text} lies outside {name}, which is {size[1]}×{size[0]}; choose x in 0…{size[1]} and "
                f"y in 0…{size[0]}, or fractions in 0…1"
            )
        return box.astype(np.float32)


@dataclass(frozen=True)
class HoleSize:
    """Width and height of a hole; fractions are of the picture's shorter side, so that one number makes a square."""

    text: str
    values: tuple[float, ...]
    fractions: bool

    @classmethod
    def read(cls, text: str, option: str = "--size") -> HoleSize:
        """From ``S`` or ``W,H``.

        Raises:
            UserError: neither one nor two numbers above 0.
        """
        found = _numbers(text, (1, 2))
        if found is None or min(found[0]) <= 0:
            raise UserError(
                f"{option}: {text!r} is no length above 0; write 40 for pixels, or 0.25 for a quarter of the picture's "
                "shorter side"
            )
        return cls(text, *found)

    def pixels(self, size: tuple[int, int]) -> tuple[float, float]:
        """(width, height) in pixels of a picture of ``size`` (H, W)."""
        unit = min(size) if self.fractions else 1
        return self.values[0] * unit, self.values[-1] * unit

    def within(self, size: tuple[int, int], name: str) -> tuple[float, float]:
        """As :meth:`pixels`, of a hole.

        Args:
            name: of the picture, for errors.

        Raises:
            UserError: the hole is larger than the picture.
        """
        width, height = self.pixels(size)
        if width > size[1] or height > size[0]:
            raise UserError(
                f"--size: a hole of {width:g}×{height:g} is larger than {name}, which is {size[1]}×{size[0]}; make it "
                "smaller, or give a fraction such as 0.25"
            )
        return width, height
