"""How much an unmatched anchor counts as background where a teacher suspects an object (a rule of ours).

A: anchors; B: images; D: boxes that a teacher suspects in one image, however low they score.

A plain detection loss takes every unmatched anchor for background, also under a box that a teacher saw but was
not sure enough of, or that the annotator missed. Here such an anchor weighs 1 − the score of the surest box that
it overlaps: what the teacher leaves for background. (Wu et al., BMVC 2019, "Soft sampling for robust object
detection", down-weigh negatives too, by their overlap with annotated boxes; the score is our choice.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .anchor_candidates import dense_candidates, grid_candidates
from .anchor_grid import AnchorGrid


@torch.no_grad()
def negative_weights(
    anchors: Tensor,
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    *,
    iou_threshold: float = 0.4,
    ignore_score: float = 1.0,
    grid: AnchorGrid | None = None,
) -> Tensor:
    """(B, A) float32 in 0…1, the weight of each anchor as a negative; 0: it must not be one.

    Args:
        anchors: (A, 4) absolute xyxy.
        boxes, scores: of each image (D, 4) and (D,) in 0…1; D may be 0.
        iou_threshold: an anchor is under a box from this IoU on, in (0, 1].
        ignore_score: under a box of this score or more an anchor weighs 0, in (0, 1].
        grid: the anchors' layout, for speed.

    Raises:
        ValueError: shapes do not fit, or an argument is outside its range.
    """
    if not 0 < iou_threshold <= 1 or not 0 < ignore_score <= 1:
        raise ValueError(
            f"iou_threshold and ignore_score must be in (0, 1], got {iou_threshold} and {ignore_score}"
        )
    for own, own_scores in zip(boxes, scores, strict=True):
        if own.shape != (len(own_scores), 4):
            raise ValueError(f"{len(own_scores)} scores do not fit boxes {tuple(own.shape)}")
    sizes = torch.tensor([len(own) for own in boxes], device=anchors.device)
    image = torch.arange(len(boxes), device=anchors.device).repeat_interleave(sizes)
    anchors, all_boxes, all_scores = (
        anchors.float(),
        torch.cat(list(boxes)).float(),
        torch.cat(list(scores)).float(),
    )
    if grid is not None:
        box, anchor, iou = grid_candidates(anchors, all_boxes, iou_threshold, grid)
    else:
        box, anchor, iou = dense_candidates(anchors, all_boxes, iou_threshold)
    enough = iou >= iou_threshold  # candidates hold the best anchor of a box, too, whatever its IoU
    slot = (anchor + image[box] * len(anchors))[enough]
    surest = anchors.new_zeros(len(boxes) * len(anchors)).scatter_reduce_(
        0, slot, all_scores[box][enough], "amax"
    )
    return torch.where(surest >= ignore_score, 0, 1 - surest).view(len(boxes), len(anchors))
