"""Matching of anchors to boxes; a positive anchor takes its box's label and confidence.

A: anchors; N: boxes; M: positive anchors.

An anchor takes the box that it overlaps most if their IoU reaches the threshold. Moreover every box takes
the anchor that it overlaps most, whatever the IoU and whatever that anchor had (SSD, Liu et al. 2016, section
2.2; BlitzNet, Dvornik et al. 2017). Confidence has no say in it. Ties go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .anchor_candidates import Candidates, dense_candidates, grid_candidates
from .anchor_grid import AnchorGrid
from .boxes import check_boxes

__all__ = ["AnchorGrid", "AnchorMatch", "match_anchors", "match_batch"]

_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_FORCED = 0x7FFFFFFF  # above the bits of every IoU


@dataclass
class AnchorMatch:
    """Which anchors are positive, for one image. Kept sparse: positives are few among tens of thousands.

    Attributes:
        num_anchors: A.
        anchor: (M,) int64, the positive anchors, ascending.
        box: (M,) int64, the box of each.
        label: (M,) int64, its label.
        confidence: (M,) float32, its confidence.
    """

    num_anchors: int
    anchor: Tensor
    box: Tensor
    label: Tensor
    confidence: Tensor

    @property
    def labels(self) -> Tensor:
        """(A,) int64, −1 where the anchor has no box."""
        return self._dense(self.label, -1)

    @property
    def confidences(self) -> Tensor:
        """(A,) float32, 1.0 where the anchor has no box."""
        return self._dense(self.confidence, 1)

    @property
    def matched_box(self) -> Tensor:
        """(A,) int64, −1 where the anchor has no box."""
        return self._dense(self.box, -1)

    def _dense(self, values: Tensor, missing: int) -> Tensor:
        dense = values.new_full((self.num_anchors,), missing)
        dense[self.anchor] = values
        return dense


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    confidences: Tensor,
    *,
    iou_threshold: float = 0.5,
    grid: AnchorGrid | None = None,
) -> AnchorMatch:
    """Match the anchors of one image to its boxes.

    Args:
        anchors: (A, 4) absolute xyxy, with positive sides.
        boxes: (N, 4) absolute xyxy; N may be 0. A box that overlaps no anchor matches none.
        labels: (N,) integer, ≥ 0.
        confidences: (N,) in 0…1.
        iou_threshold: in (0, 1]; IoU is computed in float32.
        grid: the anchors' layout, for speed; the result is the same.

    Raises:
        ValueError: an argument has a wrong shape or is outside its range, or the grid is another layout.
    """
    return match_batch(anchors, [boxes], [labels], [confidences], iou_threshold=iou_threshold, grid=grid)[0]


@torch.no_grad()
def match_batch(
    anchors: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    confidences: Sequence[Tensor],
    *,
    iou_threshold: float = 0.5,
    grid: AnchorGrid | None = None,
) -> list[AnchorMatch]:
    """:func:`match_anchors` of several images, with the same anchors, in one go."""
    if not len(boxes):
        return []
    for one in zip(boxes, labels, confidences, strict=True):
        _check_shapes(*one)
    sizes = [len(own) for own in boxes]
    anchors, all_boxes = anchors.float(), torch.cat(list(boxes)).float()
    all_labels, all_confidences = torch.cat(list(labels)).long(), torch.cat(list(confidences)).float()
    _check_values(anchors, all_boxes, all_labels, all_confidences, iou_threshold)

    if grid is not None:
        grid.check_describes(anchors)
        box, anchor, iou = grid_candidates(anchors, all_boxes, iou_threshold, grid)
    else:
        box, anchor, iou = dense_candidates(anchors, all_boxes, iou_threshold)
    num_images, num_anchors = len(boxes), len(anchors)
    first = torch.tensor([0, *sizes[:-1]], device=anchors.device).cumsum(0)
    image = torch.arange(num_images, device=anchors.device).repeat_interleave(
        torch.tensor(sizes, device=anchors.device)
    )
    slot, box = _resolve((box, anchor + image[box] * num_anchors, iou), len(all_boxes), iou_threshold)
    count = image[box].bincount(minlength=num_images).tolist()
    columns = (slot % num_anchors, box - first[image[box]], all_labels[box], all_confidences[box])
    return [AnchorMatch(num_anchors, *own) for own in zip(*(column.split(count) for column in columns))]


def _resolve(candidates: Candidates, num_boxes: int, threshold: float) -> tuple[Tensor, Tensor]:
    """The positive anchors, ascending, and their boxes.

    The bits of a non-negative float32 sort like its value. With an index, counted backwards, in the lower
    half of an int64 the largest key is that of the highest IoU and, among equals, of the lowest index: a
    maximum over int64 does not depend on the order in which a device takes it.
    """
    box, anchor, iou = candidates
    bits = iou.view(torch.int32).long() << _INDEX_BITS
    best = bits.new_zeros(num_boxes).scatter_reduce_(0, box, bits | (_INDEX_MASK - anchor), "amax")
    forced_box = (best > 0).nonzero().squeeze(1)
    forced_anchor = _INDEX_MASK - (best[forced_box] & _INDEX_MASK)

    enough = iou >= threshold
    forced_key = (_FORCED << _INDEX_BITS) | (_INDEX_MASK - forced_box)
    key = torch.cat([(bits | (_INDEX_MASK - box))[enough], forced_key])
    positive, place = torch.cat([anchor[enough], forced_anchor]).unique(return_inverse=True)
    winner = key.new_zeros(len(positive)).scatter_reduce_(0, place, key, "amax")
    return positive, _INDEX_MASK - (winner & _INDEX_MASK)


def _check_shapes(boxes: Tensor, labels: Tensor, confidences: Tensor) -> None:
    check_boxes(boxes, "boxes")
    if labels.shape != boxes.shape[:1] or confidences.shape != boxes.shape[:1]:
        raise ValueError(
            f"{len(boxes)} boxes, labels {tuple(labels.shape)}, confidences {tuple(confidences.shape)}"
        )
    if labels.is_floating_point() or not confidences.is_floating_point():
        raise ValueError("labels must be integers and confidences floating-point")


def _check_values(
    anchors: Tensor, boxes: Tensor, labels: Tensor, confidences: Tensor, iou_threshold: float
) -> None:
    check_boxes(anchors, "anchors")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], got {iou_threshold}")
    in_order = (boxes[:, 2:] >= boxes[:, :2]).all() & boxes.isfinite().all()
    if not in_order & (labels >= 0).all() & (confidences >= 0).all() & (confidences <= 1).all():
        raise ValueError("boxes must be finite with x1 ≤ x2, y1 ≤ y2, labels ≥ 0, confidences in 0…1")
