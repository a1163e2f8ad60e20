"""Augmentation as BlitzNet and FCN have it, each choice drawn per image from the generator that is passed in.

Every transform is ``t(sample, rng) -> Sample`` and moves image, boxes, mask and coordinate field together.
Those that only choose a window of the image stand in :mod:`.windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from ..registry import register
from ..sample import IGNORE_INDEX, Sample
from .blur import Blur
from .geometry import identity_coordinates
from .photometric import Photometric
from .rotate import Rotate, Shear
from .windows import Flip, IoUCrop, Letterbox, PadCrop, Resize, ScaleCrop, Window, Windows, ZoomOut

__all__ = [
    "Blur",
    "Compose",
    "DropSmallBoxes",
    "Flip",
    "IoUCrop",
    "Letterbox",
    "PadCrop",
    "Photometric",
    "Resize",
    "Rotate",
    "ScaleCrop",
    "Shear",
    "Transform",
    "Windows",
    "ZoomOut",
    "build_transforms",
    "identity_coordinates",
]


class Transform(Protocol):
    """Moves image, boxes, mask and coordinates of a sample together; draws from ``rng`` alone."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


@register("transform", "SceneKDCompose")
class Compose:
    """Transforms in a row."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


class DropSmallBoxes:
    """Drop boxes with a side under ``min_side`` pixels."""

    def __init__(self, min_side: float = 2.0) -> None:
        self.min_side = min_side

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        keep = ((sample.boxes[:, 2:] - sample.boxes[:, :2]) >= self.min_side).all(axis=1)
        return sample if keep.all() else sample.select(keep)


def build_transforms(cfg: Any, train: bool, first: Sequence[Window] = ()) -> Compose:
    """From ``cfg.INPUT``: the whole augmentation in training, the resize alone in testing; windows that come ``first``
    are drawn in one go with the others.

    Raises:
        UserError: a value out of its range.
    """
    inp = cfg.INPUT
    resize = Resize(inp.SIZE, inp.SIZE, antialias=inp.ANTIALIAS)
    if not train:
        return Compose([Windows([*first, resize]) if first else resize])
    for key in ("ZOOM_OUT_PROB", "CROP_PROB", "FLIP_PROB", "BLUR_PROB"):
        if not 0.0 <= inp[key] <= 1.0:
            raise UserError(f"INPUT.{key}: {inp[key]} is no probability")
    if inp.ZOOM_OUT_MAX < 1.05:
        raise UserError(f"INPUT.ZOOM_OUT_MAX: {inp.ZOOM_OUT_MAX} is below 1.05; set ZOOM_OUT_PROB 0 for none")
    if inp.ZOOM_OUT_FILL_SEG not in (0, IGNORE_INDEX):
        raise UserError(f"INPUT.ZOOM_OUT_FILL_SEG: {inp.ZOOM_OUT_FILL_SEG} is neither 0 nor 255")
    zoom_out = ZoomOut(
        inp.ZOOM_OUT_PROB,
        max_factor=inp.ZOOM_OUT_MAX,
        fill_seg=inp.ZOOM_OUT_FILL_SEG,
        per_run_seed=cfg.SEED if inp.ZOOM_OUT_PER_RUN else None,
    )
    steps: list[Transform] = [Photometric()] if inp.PHOTOMETRIC else []
    windows: list[Window] = [*first, zoom_out, IoUCrop(inp.CROP_PROB)]
    try:
        if inp.SHORT_SIDE:
            windows.append(ScaleCrop(inp.SIZE, _pair(inp.SHORT_SIDE)))
        blur = [Blur(inp.BLUR_PROB, sigma=_pair(inp.BLUR_SIGMA))] if inp.BLUR_PROB else []
    except (ValueError, TypeError) as error:
        raise UserError(f"INPUT.SHORT_SIDE and INPUT.BLUR_SIGMA are (min, max): {error}") from None
    steps += [
        Windows([*windows, PadCrop(inp.PAD_CROP), Flip(inp.FLIP_PROB), resize]),
        *blur,
        DropSmallBoxes(inp.MIN_BOX_SIDE),
    ]
    return Compose(steps)


def _pair(value: Any) -> tuple[Any, Any]:
    low, high = value
    return low, high
