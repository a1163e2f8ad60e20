"""Boxes: overlap and the coding of box offsets.

N, M: number of boxes; A: number of anchors. Boxes are absolute (x1, y1, x2, y2), see :mod:`scenekd.sample`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

VARIANCES = (0.1, 0.1, 0.2, 0.2)

# An untrained head can ask for any size; a decoded side is at most this many times the anchor's.
MAX_SIDE_RATIO = 1000.0
# Sides below this many pixels count as this, so that the logarithm of a degenerate box is finite.
MIN_SIDE = 1e-6


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes ``a`` (…, 4) with boxes ``b`` (…, 4), broadcast against each other; (…) in 0…1.

    Two boxes without any area have IoU 0. The value of a pair does not depend on the shape it is computed in,
    to the last bit: the two ways of matching anchors rely on it.
    """
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    inter = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    inter = inter * (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    return inter / union.clamp_(min=torch.finfo(union.dtype).tiny)


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of ``a`` (N, 4) with every box of ``b`` (M, 4): (N, M) in 0…1.

    Raises:
        ValueError: a tensor is not (·, 4).
    """
    check_boxes(a, "a")
    check_boxes(b, "b")
    return paired_iou(a[:, None], b[None])


def encode(boxes: Tensor, anchors: Tensor, variances: tuple[float, ...] = VARIANCES) -> Tensor:
    """Offsets (N, 4) of ``boxes`` (N, 4) from ``anchors`` (N, 4).

    (dx, dy) is the shift of the centre over the anchor's side, (dw, dh) the logarithm of the ratio of the
    sides; each is divided by its variance (SSD, Liu et al. 2016, section 2.2).

    Raises:
        ValueError: shapes differ, or a variance is not positive.
    """
    _check_coding(boxes, anchors, variances, "boxes")
    centres, sides = _centres_and_sides(boxes)
    anchor_centres, anchor_sides = _centres_and_sides(anchors)
    shift = (centres - anchor_centres) / anchor_sides
    growth = (sides.clamp(min=MIN_SIDE) / anchor_sides).log()
    return torch.cat([shift, growth], dim=-1) / boxes.new_tensor(variances)


def decode(offsets: Tensor, anchors: Tensor, variances: tuple[float, ...] = VARIANCES) -> Tensor:
    """The boxes that ``offsets`` (…, A, 4) describe relative to ``anchors`` (A, 4); undoes :func:`encode`.

    Boxes are not clipped. A side is at most ``MAX_SIDE_RATIO`` times the anchor's, so the result is finite.

    Raises:
        ValueError: shapes differ, or a variance is not positive.
    """
    _check_coding(offsets, anchors, variances, "offsets")
    scaled = offsets * offsets.new_tensor(variances)
    anchor_centres, anchor_sides = _centres_and_sides(anchors.to(offsets))
    centres = anchor_centres + scaled[..., :2] * anchor_sides
    half = anchor_sides * scaled[..., 2:].clamp(max=math.log(MAX_SIDE_RATIO)).exp() / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """``boxes`` (…, 4) cut to the image: x in 0…width, y in 0…height. Each corner is cut on its own."""
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def check_boxes(boxes: Tensor, name: str) -> None:
    """ValueError unless ``boxes`` is a floating-point (N, 4) tensor."""
    if boxes.ndim != 2 or boxes.shape[-1] != 4 or not boxes.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point (N, 4) tensor, got {boxes.dtype} {tuple(boxes.shape)}"
        )


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low


def _check_coding(moved: Tensor, anchors: Tensor, variances: tuple[float, ...], name: str) -> None:
    if anchors.ndim != 2 or anchors.shape[-1] != 4 or moved.shape[-2:] != anchors.shape:
        raise ValueError(
            f"{name} {tuple(moved.shape)} and anchors {tuple(anchors.shape)} must be (…, A, 4), (A, 4)"
        )
    if len(variances) != 4 or min(variances) <= 0:
        raise ValueError(f"variances must be four positive numbers, got {variances}")
