"""Where the pixels of an image in MMSegmentation's pipelines come from, and a check that nothing else moved them.

Pixel (0, 0) is the first pixel's centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError

TRACK, WITNESS, BOXES = "scenekd_track", "scenekd_witness", "gt_bboxes"
SUPPORTED = (
    "Resize",
    "RandomResize",
    "RandomChoiceResize",
    "ResizeShortestEdge",
    "ResizeToMultiple",
    "RandomCrop",
    "CenterCrop",
    "RandomFlip",
    "Pad",
    "RandomRotate",
    "RandomRotFlip",
)


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


def start_track(results: dict[str, Any]) -> None:
    """Follow the image from here on; done once for each image.

    Nothing is followed where labels are loaded after a resize, as MMSegmentation's test pipelines do.

    A witness goes through the pipeline as one of MMSegmentation's ``seg_fields``: if it is changed at the end,
    a transform moved the image where nothing else could follow.

    Raises:
        UserError: the image has been resized already.
    """
    if TRACK in results:
        return
    size = results["img"].shape[:2]
    if tuple(results["ori_shape"][:2]) != tuple(size):
        raise UserError(
            f"{results.get('img_path', 'pipeline')}: SceneKDLoadTeacher must come before the image is moved"
        )
    results[TRACK] = Track.start(*size)
    renew_witness(results)


def check_witness(results: dict[str, Any]) -> None:
    """Refuse a pipeline that moved the image outside :class:`SceneKDGeometry`.

    Raises:
        UserError: it did.
    """
    size = results["img"].shape[:2]
    if not np.array_equal(results[WITNESS], _pixel_numbers(*size)):
        raise UserError(
            "pipeline: the image was moved outside SceneKDGeometry, where boxes and teachers cannot follow; "
            f"move {', '.join(SUPPORTED[:5])}, … into SceneKDGeometry's transforms"
        )


def _pixel_numbers(height: int, width: int) -> np.ndarray:
    # float32, because OpenCV rotates no integers of 32 bits; exact up to 16 million pixels
    return np.arange(height * width, dtype=np.float32).reshape(height, width)


def renew_witness(results: dict[str, Any]) -> None:
    """The witness of an image that has just been moved rightly."""
    results[WITNESS] = _pixel_numbers(*results["img"].shape[:2])
    if WITNESS not in results.setdefault("seg_fields", []):
        results["seg_fields"].append(WITNESS)
