"""Which anchors may matter to which boxes: the pairs that reach a threshold, and each box's best.

A: anchors; N: boxes; P: planes, see :mod:`scenekd.anchor_grid`; T: candidate pairs of a box and an anchor.

Few of the A · N pairs overlap enough to matter. Where the anchors' layout is known, only the cells around a
box are looked at. Both ways take the same float32 IoU of the pairs they look at, so what is decided from them
is equal to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .anchor_grid import AnchorGrid, Planes
from .boxes import paired_iou

# Relative margin on the overlap that a candidate needs; the rounding of a float32 IoU is far below.
IOU_MARGIN = 1e-4
# Pairs of box and anchor looked at in one go without a grid: 1 MiB for each intermediate tensor.
DENSE_PAIRS = 1 << 18
# Boxes looked at in one go with a grid: some 4 MiB in all.
GRID_BOXES = 1024

Candidates = tuple[Tensor, Tensor, Tensor]  # box (T,), anchor (T,), IoU (T,)


def dense_candidates(anchors: Tensor, boxes: Tensor, threshold: float) -> Candidates:
    """Pairs that reach the threshold or are the box's best in their chunk of anchors; IoU > 0."""
    found = []
    step = max(1, DENSE_PAIRS // max(1, len(boxes)))
    for start in range(0, len(anchors) if len(boxes) else 0, step):
        iou = paired_iou(boxes[:, None], anchors[None, start : start + step])
        needed = iou.amax(dim=1, keepdim=True).clamp_(max=threshold)
        box, anchor = ((iou >= needed) & (iou > 0)).nonzero().unbind(1)
        found.append((box, anchor + start, iou[box, anchor]))
    return _together(found, boxes)


def grid_candidates(anchors: Tensor, boxes: Tensor, threshold: float, grid: AnchorGrid) -> Candidates:
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
