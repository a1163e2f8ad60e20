"""Rotation and shear by any angle: the transforms that are no window of the image."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from ..sample import IGNORE_INDEX, Sample
from .geometry import MEAN_COLOUR, centres_inside, hide_padding, identity_coordinates


class _Affine:
    """An affine map of the image's pixels; the size stays, corners show the mean colour.

    A box becomes the box around its moved corners, clipped; one whose centre leaves the image is dropped.
    """

    def __init__(self, degrees: float, prob: float = 1.0, *, fill_seg: int = IGNORE_INDEX) -> None:
        self.degrees, self.prob, self.fill_seg = degrees, prob, fill_seg

    def matrix(self, degrees: float, centre: tuple[float, float]) -> np.ndarray:
        """(2, 3), from OpenCV's pixels before to those after, which leaves the ``centre`` (x, y) where it is."""
        raise NotImplementedError

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.prob:
            return sample
        height, width = sample.image.shape[:2]
        # OpenCV's pixel (0, 0) is the first pixel's centre, so the image's centre is half a pixel less.
        centre = ((width - 1) / 2, (height - 1) / 2)
        matrix = self.matrix(float(rng.uniform(-self.degrees, self.degrees)), centre)
        inverse = cv2.invertAffineTransform(matrix)
        field = sample.coordinates
        if field is None:
            field = identity_coordinates(height, width)
        sem_seg = sample.sem_seg
        if sem_seg is not None:
            sem_seg = _warp(sem_seg, matrix, cv2.INTER_NEAREST, (self.fill_seg,))
        boxes, keep = _move_boxes(sample.boxes, matrix, height, width)
        doubtful = sample.doubtful_boxes
        if doubtful is not None:
            doubtful = _move_boxes(doubtful, matrix, height, width)[0]
        return dataclasses.replace(
            sample,
            image=_warp(sample.image, matrix, cv2.INTER_LINEAR, MEAN_COLOUR),
            boxes=boxes,
            doubtful_boxes=doubtful,
            sem_seg=sem_seg,
            coordinates=_move_field(field, inverse),
        ).select(keep)


class Rotate(_Affine):
    """Rotate about the image's centre by U(−degrees, degrees), with probability ``prob``."""

    def matrix(self, degrees: float, centre: tuple[float, float]) -> np.ndarray:
        """See the base class."""
        return cv2.getRotationMatrix2D(centre, degrees, 1.0)


class Shear(_Affine):
    """Slant upright lines by U(−degrees, degrees), with probability ``prob``; rows move sideways, the middle one
    stays."""

    def matrix(self, degrees: float, centre: tuple[float, float]) -> np.ndarray:
        """See the base class."""
        slope = math.tan(math.radians(degrees))
        return np.array([[1.0, slope, -slope * centre[1]], [0.0, 1.0, 0.0]])


def _warp(image: np.ndarray, matrix: np.ndarray, how: int, fill: tuple[int, ...]) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image, matrix, (width, height), flags=how, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )


def _move_boxes(
    boxes: np.ndarray, matrix: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(boxes around the moved corners, which of them keep their centre in the image)."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) - 0.5  # box corners to OpenCV's pixels
    moved = corners @ matrix[:, :2].T + matrix[:, 2] + 0.5
    around = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)
    keep = centres_inside(np.asarray([[0, 0, width, height]], np.float32), around)[0]
    return np.clip(around, 0, [width, height, width, height]).astype(np.float32), keep


def _move_field(field: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The field at the moved pixels, continued linearly; NaN where a part cut off earlier would turn up."""
    height, width = field.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    source = np.stack([x, y], axis=2) @ inverse[:, :2].T + inverse[:, 2]
    # Ours are all affine, so a coarse grid tells the whole field.
    step = max(1, min(height, width) // 16)
    known = np.zeros((height, width), bool)
    known[::step, ::step] = True
    known &= np.isfinite(field).all(axis=2)
    if not known.any():
        return np.full_like(field, np.nan)
    basis = np.stack([np.ones(known.sum()), x[known], y[known]], axis=1)
    affine = np.linalg.lstsq(basis, field[known].astype(np.float64), rcond=None)[0]
    moved = (affine[0] + source @ affine[1:]).astype(np.float32)
    x, y = source[..., 0], source[..., 1]
    hide_padding(moved, (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5))
    cells = np.clip(np.rint(source), 0, [width - 1, height - 1]).astype(np.intp)
    moved[np.isnan(field[cells[..., 1], cells[..., 0]]).any(axis=2)] = np.nan
    return moved
