"""The one sampling of a teacher's dense output, where the augmented image shows it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from ..sample import SoftSegmentation
from .geometry import shown

_FLOOR = 1e-8  # of a probability, before its logarithm
_ROUNDING = 1e-3  # of a cell: above what float32 fractions lose on images of thousands of pixels


def sample_soft(
    soft: SoftSegmentation,
    coordinates: np.ndarray,
    size: tuple[int, int] | None = None,
    background: str = "none",
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's values at each pixel of the augmented image.

    Logits and probabilities are interpolated bilinearly on the teacher's grid (pixel centres at ½, clamped
    at its border, as torch's ``interpolate(align_corners=False)`` does); the thesis's scores take the
    nearest cell.

    Args:
        coordinates: (H, W, 2), see :class:`scenekd.sample.Sample`.
        size: (h, w) of the result; the pixels of the field are chosen as by torch's ``nearest-exact``.
        background: ``explicit`` sets slot 0 of scores to 1 − the largest score; dense forms have their own.

    Returns:
        (K, h, w) float32 values (0 where nothing is shown) and (h, w) bool, where the image is shown.
    """
    if background not in ("none", "explicit"):
        raise ValueError(f"background must be none or explicit, got {background!r}")
    coordinates, valid = thin_out(coordinates, size)
    if soft.form == "scores":
        values = _nearest(soft.values, coordinates)
        if background == "explicit":
            values[0] = 1 - values[1:].max(axis=0)
    else:
        values = _bilinear(soft.values, coordinates)
    values *= valid
    return values, valid


def thin_out(coordinates: np.ndarray, size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """The field at (h, w) of its pixels, chosen as by torch's ``nearest-exact``, without NaN; and (h, w) bool,
    where the image is shown."""
    if size is not None and size != coordinates.shape[:2]:
        rows, columns = (nearest_exact(n, out) for n, out in zip(coordinates.shape[:2], size))
        coordinates = coordinates.take(rows, axis=0).take(columns, axis=1)
    # what is invalid must not spread to the values
    return np.nan_to_num(coordinates, nan=0.5), shown(coordinates)


def nearest_exact(length: int, out: int) -> np.ndarray:
    """For each of ``out`` cells the index of the nearest of ``length``: floor((i + ½) · length / out)."""
    return (2 * np.arange(out) + 1) * length // (2 * out)


def nearest_cells(coordinates: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) flat index of the cell of a height × width grid in which each place of the field lies."""
    limit = np.asarray([width, height])
    # a place on the border of two cells, up to the rounding of float32, takes the later one, as nearest-exact does
    cell = np.clip(np.floor(coordinates * limit + _ROUNDING), 0, limit - 1).astype(np.intp)
    flat: np.ndarray = cell[..., 1] * width + cell[..., 0]
    return flat


def _nearest(values: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    cells = nearest_cells(coordinates, *values.shape[1:])
    return np.ascontiguousarray(values.reshape(len(values), -1).take(cells, axis=1), np.float32)


def _bilinear(values: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    grid = torch.from_numpy(np.ascontiguousarray(coordinates, np.float32)) * 2 - 1
    source = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    sampled = F.grid_sample(
        source[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0].numpy()


def check_target(form: str, target: str, background: str) -> None:
    """Refuse a target form that cannot be made of the teacher's form.

    Raises:
        UserError: scores are asked of a dense teacher, or a distribution of a sparse one without background.
    """
    if form != "scores" and target == "scores":
        raise UserError(
            f"DISTILL.SEGMENTATION.TARGET: the teacher gives {form}, so choose probabilities or logits"
        )
    if form == "scores" and target != "scores" and background != "explicit":
        raise UserError(
            f"DISTILL.SEGMENTATION.TARGET: {target} of a teacher that gives scores need "
            "TEACHER.SEGMENTATION.BACKGROUND explicit; or choose scores"
        )


def convert_soft(values: np.ndarray, form: str, target: str) -> np.ndarray:
    """(K, h, w) values of ``form`` as ``target``; scores become probabilities by dividing by their sum."""
    if form == target:
        return values
    if form == "logits":
        exponents = np.exp(values - values.max(axis=0))
        return exponents / exponents.sum(axis=0)
    if form == "scores":
        values = values / np.maximum(values.sum(axis=0), _FLOOR)
    return values if target == "probabilities" else np.log(np.maximum(values, _FLOOR))
