"""Where the pixels of an image come from while a foreign pipeline moves it by affine maps.

Pixel (0, 0) is the first pixel's centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Track:
    """Where the pixels of the current image come from.

    Attributes:
        matrix: (2, 3) from (x, y, 1) of the current image, in pixels, to fractions of the un-augmented image.
        hidden: (H, W) bool, pixels that show padding.
    """

    matrix: np.ndarray
    hidden: np.ndarray

    @classmethod
    def start(cls, height: int, width: int) -> Track:
        """The track of an image that was not moved."""
        matrix = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height]])
        return cls(matrix, np.zeros((height, width), bool))

    def coordinates(self) -> np.ndarray:
        """The coordinate field of :class:`scenekd.sample.Sample`, (H, W, 2) float32; NaN on padding."""
        field = _apply(self.matrix, *self.hidden.shape).astype(np.float32)
        field[self.hidden] = np.nan
        return field

    def moved(self, back: np.ndarray, size: tuple[int, int]) -> Track:
        """After a transform whose pixels come from ``back`` (2, 3) of the current ones."""
        height, width = self.hidden.shape
        x, y = np.moveaxis(_apply(back, *size), -1, 0)
        slack = 0.5 + 1e-4  # the fit's rounding must not hide the border
        inside = (x >= -slack) & (x <= width - 1 + slack) & (y >= -slack) & (y <= height - 1 + slack)
        hidden = ~inside
        if self.hidden.any():
            column = np.clip(np.rint(x), 0, width - 1).astype(np.intp)
            row = np.clip(np.rint(y), 0, height - 1).astype(np.intp)
            hidden |= self.hidden[row, column]
        return Track(self.matrix @ np.vstack([back, [0, 0, 1]]), hidden)


def _apply(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 2) float64: ``matrix`` at every pixel."""
    x, y = np.arange(width), np.arange(height)[:, None]
    return np.stack([row[0] * x + row[1] * y + row[2] for row in matrix], axis=-1)
