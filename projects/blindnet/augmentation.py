"""What is done to a picture before one of its objects is hidden: the library's augmentation (``INPUT``), and what the
paper's experiments 3.1 and 3.2 do besides (``MODEL.BLINDNET.AUGMENT``)."""

from __future__ import annotations

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.data.blur import Blur
from scenekd.data.colour import ChannelShuffle, Clahe, Either, Gray, Posterize, RGBShift
from scenekd.data.photometric import Photometric
from scenekd.data.rotate import Rotate, Shear
from scenekd.data.transforms import Compose, Transform, build_transforms
from scenekd.data.windows import Letterbox
from scenekd.errors import UserError

from .config import KEY

_BLUR = (0.5, 2.0)  # σ, in pixels of the network's input


def build_augmentation(cfg: CfgNode, train: bool) -> Compose:
    """The whole augmentation in training; in testing the resize, letterbox and gray alone.

    Raises:
        UserError: a value out of its range.
    """
    node = cfg.MODEL.BLINDNET.AUGMENT
    try:
        first, last = (_geometry(node), _colours(node)) if train else ([], [])
    except ValueError as error:
        raise UserError(f"{KEY}.AUGMENT: {error}") from None
    window = [Letterbox()] if node.LETTERBOX else []
    gray: list[Transform] = [Gray()] if node.GRAY else []
    return Compose([*first, build_transforms(cfg, train, first=window), *last, *gray])


def _geometry(node: CfgNode) -> list[Transform]:
    """On the picture as it was read: rotated, or sheared, or neither."""
    if not node.ROTATE_PROB + node.SHEAR_PROB:
        return []
    return [
        Either(
            [(node.ROTATE_PROB, Rotate(node.ROTATE_DEGREES)), (node.SHEAR_PROB, Shear(node.SHEAR_DEGREES))]
        )
    ]


def _colours(node: CfgNode) -> list[Transform]:
    """On the network's input, which is smaller."""
    blur, tone = node.BLUR_OR_JITTER_PROB / 2, node.TONE_PROB / 3
    steps: list[tuple[float, list[tuple[float, Transform]]]] = [
        (node.BLUR_OR_JITTER_PROB, [(blur, Blur(1.0, sigma=_BLUR)), (blur, Photometric())]),
        (node.RGB_SHIFT_PROB, [(node.RGB_SHIFT_PROB, RGBShift(node.RGB_SHIFT))]),
        (node.CHANNEL_SHUFFLE_PROB, [(node.CHANNEL_SHUFFLE_PROB, ChannelShuffle())]),
        (node.TONE_PROB, [(tone, Clahe()), (tone, Posterize()), (tone, Gray())]),
    ]
    return [Either(choices) for probability, choices in steps if probability]


def to_input(boxes: np.ndarray, size: tuple[int, int], side: int, letterbox: bool = False) -> np.ndarray:
    """(N, 4) boxes of a picture of ``size`` (height, width) on the network's square input in testing, up to whole
    pixels."""
    height, width = size
    if not letterbox:
        return boxes * np.array([side / width, side / height] * 2, np.float32)
    longest = max(height, width)
    shift = np.array([(longest - width) // 2, (longest - height) // 2] * 2, np.float32)
    return (boxes + shift) * np.float32(side / longest)
