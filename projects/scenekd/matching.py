"""Matching of anchors to boxes; a positive anchor takes its box's label and confidence.

A: anchors; N: boxes; M: positive anchors; P: planes, see :mod:`scenekd.anchor_grid`; T: candidate pairs of a
box and an anchor.

An anchor takes the box that it overlaps most if their IoU reaches the threshold. Moreover every box takes
the anchor that it overlaps most, whatever the IoU and whatever that anchor had (SSD, Liu et al. 2016, section
2.2; BlitzNet, Dvornik et al. 2017). Confidence has no say in it. Ties go to the lowest index.

Few pairs overlap enough to matter. Where the anchors' layout is known, only the cells around a box are looked
at. Both ways take the same float32 IoU of the pairs they look at, so the results are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .anchor_grid import AnchorGrid, Planes
from .boxes import check_boxes, paired_iou

__all__ = ["AnchorGrid", "AnchorMatch", "match_anchors", "match_batch"]

# Relative margin on the overlap that a candidate needs; the rounding of a float32 IoU is far below.
IOU_MARGIN = 1e-4
# Pairs of box and anchor looked at in one go without a grid: 1 MiB for each intermediate tensor.
DENSE_PAIRS = 1 << 18
# Boxes looked at in one go with a grid: some 4 MiB in all.
GRID_BOXES = 1024

_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_FORCED = 0x7FFFFFFF  # above the bits of every IoU

Candidates = tuple[Tensor, Tensor, Tensor]  # box (T,), anchor (T,), IoU (T,)


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
        box, anchor, iou = _grid_candidates(anchors, all_boxes, iou_threshold, grid)
    else:
        box, anchor, iou = _dense_candidates(anchors, all_boxes, iou_threshold)
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


def _dense_candidates(anchors: Tensor, boxes: Tensor, threshold: float) -> Candidates:
    """Pairs that reach the threshold or are the box's best in their chunk of anchors; IoU > 0."""
    found = []
    step = max(1, DENSE_PAIRS // max(1, len(boxes)))
    for start in range(0, len(anchors) if len(boxes) else 0, step):
        iou = paired_iou(boxes[:, None], anchors[None, start : start + step])
        needed = iou.amax(dim=1, keepdim=True).clamp_(max=threshold)
        box, anchor = ((iou >= needed) & (iou > 0)).nonzero().unbind(1)
        found.append((box, anchor + start, iou[box, anchor]))
    return _together(found, boxes)


def _grid_candidates(anchors: Tensor, boxes: Tensor, threshold: float, grid: AnchorGrid) -> Candidates:
    """Pairs that reach the threshold or are the box's best, and few others; IoU > 0."""
    found = []
    for start in range(0, len(boxes), GRID_BOXES):
        box, anchor, iou = _neighbours(anchors, boxes[start : start + GRID_BOXES], threshold, grid)
        found.append((box + start, anchor, iou))
    return _together(found, boxes)


def _together(found: list[Candidates], boxes: Tensor) -> Candidates:
    if not found:
        none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return none, none, boxes.new_zeros(0)
    box, anchor, iou = (torch.cat(column) for column in zip(*found))
    return box, anchor, iou


def _neighbours(anchors: Tensor, boxes: Tensor, threshold: float, grid: AnchorGrid) -> Candidates:
    """The candidates of some boxes: the cells around each box that can reach the overlap that counts."""
    planes = grid.planes(anchors.device)
    # A box without area overlaps nothing; without it no width below is zero.
    with_area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) > 0).nonzero().squeeze(1)
    some = boxes[with_area]
    exact = some.double()[:, :, None]
    x, y = (exact[:, 0] + exact[:, 2]) / 2, (exact[:, 1] + exact[:, 3]) / 2

    # In each plane the cell nearest to the box's centre overlaps it most: others must reach that, too.
    row = torch.minimum((y / planes.step_y).floor().clamp(min=0), planes.rows - 1.0).long()
    column = torch.minimum((x / planes.step_x).floor().clamp(min=0), planes.columns - 1.0).long()
    nearest = paired_iou(some[:, None], anchors[planes.index(row, column)])
    needed = nearest.amax(dim=1, keepdim=True).clamp(max=threshold).double() * (1 - IOU_MARGIN)

    reach_x, reach_y = _reach(exact, planes, needed, grid.tolerance)
    first_column, num_columns = _window(x, reach_x, planes.step_x, planes.columns)
    first_row, num_rows = _window(y, reach_y, planes.step_y, planes.rows)
    pair, cell = _enumerate(num_columns * num_rows)
    num_columns = num_columns.flatten()[pair]
    row = first_row.flatten()[pair] + cell.div(num_columns, rounding_mode="floor")
    column = first_column.flatten()[pair] + cell % num_columns
    num_planes = len(planes.width)
    anchor = planes.index(row, column, pair % num_planes)
    box = with_area[pair.div(num_planes, rounding_mode="floor")]
    iou = paired_iou(boxes[box], anchors[anchor])
    overlapping = iou > 0
    return box[overlapping], anchor[overlapping], iou[overlapping]


def _reach(boxes: Tensor, planes: Planes, needed: Tensor, slack: float) -> tuple[Tensor, Tensor]:
    """How far an anchor's centre may lie from the box's in x and in y, (N, P) each; negative: out of reach.

    IoU ≥ t asks for an intersection of at least t/(1+t) · (area of box + area of anchor). It is no wider than
    the narrower of the two, no higher than the lower, and (w + w')/2 − |x − x'| wide where neither contains
    the other. ``slack`` is what the anchors' coordinates may be off.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    smallest = (planes.width - 2 * slack).clamp(min=0) * (planes.height - 2 * slack).clamp(min=0)
    area = needed / (1 + needed) * (width * height + smallest)
    min_width = torch.minimum(width, planes.width + 2 * slack)
    min_height = torch.minimum(height, planes.height + 2 * slack)
    reach_x = (width + planes.width) / 2 + 2 * slack - area / min_height
    reach_y = (height + planes.height) / 2 + 2 * slack - area / min_width
    reach_x[area > min_width * min_height] = -1
    return reach_x, reach_y


def _window(centre: Tensor, reach: Tensor, step: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """First cell and number of cells whose centre lies within ``reach`` of ``centre``, along one axis."""
    first = ((centre - reach) / step - 0.5).ceil().clamp(min=0)
    last = torch.minimum(((centre + reach) / step - 0.5).floor(), count - 1.0)
    return first.long(), torch.where(reach < 0, 0, last - first + 1).clamp(min=0).long()


def _enumerate(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For entry i of ``counts``, flattened, counts[i] pairs (i, 0), (i, 1), …"""
    counts = counts.flatten()
    entry = counts.nonzero().squeeze(1)
    counts = counts[entry]
    begin = counts.cumsum(0) - counts
    item = torch.arange(int(counts.sum()), device=counts.device) - begin.repeat_interleave(counts)
    return entry.repeat_interleave(counts), item


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
