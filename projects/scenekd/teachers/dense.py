"""Dense outputs of frameworks whose classes need not begin with background.

S: the framework's own classes; K = C + 1: dense classes, background first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..sample import SoftSegmentation
from .label_map import BACKGROUND, UNREACHED, build_class_map, canonical, key_name, log_sum_exp


def object_classes(names: Sequence[str]) -> tuple[str, ...]:
    """The C object classes among the names of S planes: all but background."""
    return tuple(name for name in names if canonical(name) != BACKGROUND)


def dense_places(
    source: Sequence[str],
    target: Sequence[str],
    pairs: Iterable[Sequence[str]] = (),
    *,
    allow_unmapped: bool = False,
    key: str = "TEACHER",
) -> list[int]:
    """For each of a teacher's dense classes the place of the student's that it stands for, −1 for none.

    Args:
        source, target: names of all dense classes of teacher and student; background may stand anywhere, or lack.
        pairs, allow_unmapped, key: as in :func:`.label_map.build_class_map`; what stands for background where the
            student has none is left out.

    Raises:
        UserError: as there; or one of the two alone has a background, and that is not allowed.
    """
    objects = object_classes(target)
    class_map = build_class_map(
        object_classes(source), objects, pairs, allow_unmapped=allow_unmapped, key=key
    )
    places = [k for k, name in enumerate(target) if canonical(name) != BACKGROUND]
    background = next((k for k, name in enumerate(target) if canonical(name) == BACKGROUND), -1)
    goes = {name: places[i] if i >= 0 else background for name, i in zip(class_map.source, class_map.index)}
    found = [goes.get(name, background) for name in source]
    both = len(objects) < len(target), len(class_map.source) < len(source)
    if both[0] and background not in found and not allow_unmapped:
        raise UserError(
            f"{key_name(key, 'CLASS_MAP')}: the teacher has no background; add pairs of its classes and background, "
            f"or set {key_name(key, 'ALLOW_UNMAPPED')} True"
        )
    if both[1] and not both[0] and not allow_unmapped:
        raise UserError(
            f"{key_name(key, 'CLASSES')}: the teacher has a background, and the student has none; correct the classes "
            f"of either, or set {key_name(key, 'ALLOW_UNMAPPED')} True"
        )
    return found


def background_first(logits: np.ndarray, names: Sequence[str]) -> SoftSegmentation:
    """Logits with background in front; a set of classes without one (COCO's stuff, ADE20K, Cityscapes) gets
    a plane that is as good as impossible, to which a class map may add classes.

    Args:
        logits: (S, h, w), or (1, h, w) for two classes of which a sigmoid tells the second.
        names: of the S planes (of both classes, where one plane tells them).

    Raises:
        ValueError: another number of planes than names.
    """
    if len(logits) == 1 and len(names) == 2:
        logits = np.concatenate([np.zeros_like(logits), logits])
    if len(logits) != len(names):
        raise ValueError(f"{len(logits)} planes for {len(names)} class names")
    at = [i for i, name in enumerate(names) if canonical(name) == BACKGROUND]
    if at:
        first, rest = logits[at[:1]], np.delete(logits, at, axis=0)
    else:
        first, rest = log_sum_exp(logits)[None] + UNREACHED, logits
    return SoftSegmentation(np.concatenate([first, rest]).astype(np.float32), "logits")


def without_padding(logits: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """The part of (S, h', w') logits that shows the image, on a grid that covers it exactly.

    Cells of a grid that the image's border cuts are sampled anew (bilinear); else they stay as they are.

    Args:
        size, padded: (height, width) of the network's input without and with its padding.
    """
    if tuple(size) == tuple(padded):
        return logits
    cells = [math.ceil(n * length / whole) for n, length, whole in zip(logits.shape[1:], size, padded)]
    axes = [
        (2 * torch.arange(n, device=logits.device) + 1) / n * length / whole - 1
        for n, length, whole in zip(cells, size, padded)
    ]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    field = torch.stack([columns, rows], dim=-1)[None]
    return F.grid_sample(logits[None], field, padding_mode="border", align_corners=False)[0]
