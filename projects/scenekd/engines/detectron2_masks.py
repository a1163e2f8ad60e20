"""Masks of objects inside detectron2, where some boxes have none: what a mapper gives, and a mask head that reads it.

n: boxes of an image; h, w: the augmented image; M: matched proposals of boxes with a mask, of the whole batch; S: side
of the head's square output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_loss
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from ..data.instance_masks import match_boxes
from ..losses.reduce import at_least_float32, safe_count
from ..sample import IGNORE_INDEX, Target
from .detectron2_matching import MISSING

MASKS, WEIGHTS, VOID = "gt_masks", "gt_mask_weights", "gt_void_masks"


def add_masks(found: Instances, target: Target) -> Instances:
    """A target's boxes as :func:`.detectron2_matching.instances_of` gives them, with their masks.

    Fields, absent where the image has no masks: ``gt_masks``, BitMasks (n, h, w); ``gt_mask_weights`` (n,) float32,
    what a match counts in the mask loss: 0 for a box without a mask, 1 for ground truth, the box's confidence for a
    teacher; where both sources count for the image, times its source's weight over the larger of the two; and, where
    something of a mask is not known, ``gt_void_masks``, BitMasks of what.

    detectron2 matches one set of boxes for all tasks. So where only one source of boxes counts for detection, boxes of
    the other are left out, and their masks go to the former's boxes of the same objects. Without box labels there is no
    match, and masks teach nothing.

    Args:
        target: ``masks`` at the size of the augmented image.
    """
    if target.masks is None or found.has(MISSING):
        return found
    source = target.from_teacher.long()
    both = torch.tensor(target.weights["instance_segmentation"])
    has_mask = (target.masks != IGNORE_INDEX).flatten(1).any(dim=1)
    weights = has_mask * target.confidences * (both / (both.max() or 1.0))[source]
    masks, detected = target.masks, torch.tensor(target.weights["detection"])[source] > 0
    if not detected.all():
        masks, weights = _hand_over(target, weights, detected)
        found, masks, weights = found[detected], masks[detected], weights[detected]
    void = (masks == IGNORE_INDEX) & (weights > 0)[:, None, None]
    found.set(MASKS, BitMasks(masks == 1))
    found.set(WEIGHTS, weights)
    if void.any():
        found.set(VOID, BitMasks(void))
    return found


def _hand_over(target: Target, weights: Tensor, detected: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (n, h, w) and weights (n,), those of boxes that detection leaves out moved to the same objects' others."""
    assert target.masks is not None
    lacking = (detected & (weights == 0)).nonzero()[:, 0]
    giving = (~detected & (weights > 0)).nonzero()[:, 0]
    wanting, offering = (target.boxes[rows].numpy() for rows in (lacking, giving))
    pairs = match_boxes(wanting, target.labels[lacking].numpy(), offering, target.labels[giving].numpy())
    taken = torch.from_numpy(pairs)
    givers = giving[taken[taken >= 0]]
    masks, weights = target.masks.clone(), weights.clone()
    masks[lacking[taken >= 0]], weights[lacking[taken >= 0]] = target.masks[givers], weights[givers]
    return masks, weights


@ROI_MASK_HEAD_REGISTRY.register()
class SceneKDMaskRCNNHead(MaskRCNNConvUpsampleHead):
    """Mask R-CNN's head, whose loss leaves out the proposals of boxes that have no mask.

    loss_mask = Σ_i w_i · (mean cross-entropy over the known cells of proposal i) / M, w_i from ``gt_mask_weights`` and
    the cells from ``gt_void_masks`` (see :func:`add_masks`). Where every w is 1 and all is known, it is detectron2's
    own of these proposals, to the last bit. A mapper that gives ``gt_masks`` alone gives masks of all its boxes; an
    image without ``gt_masks`` has none.
    """

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """As detectron2's; in training the loss of the proposals with a mask, 0 where there is none."""
        if not self.training:
            return super().forward(x, instances)
        weights = [_weights_of(own, x) for own in instances]
        chosen = [own[weight > 0] for own, weight in zip(instances, weights)]
        weight = torch.cat(weights)
        logits = self.layers(x[weight > 0])
        loss = mask_rcnn_loss(logits, chosen, self.vis_period)  # tells the accuracy, too
        weight = weight[weight > 0]
        if any(own.has(VOID) for own in chosen) or (weight != 1).any():
            loss = _weighted_loss(logits, chosen, weight)
        return {"loss_mask": loss * self.loss_weight}


def _weights_of(instances: Instances, like: Tensor) -> Tensor:
    if instances.has(WEIGHTS):
        return instances.get(WEIGHTS).to(like.device)
    return torch.full((len(instances),), float(instances.has(MASKS)), device=like.device)


def _weighted_loss(logits: Tensor, instances: Sequence[Instances], weights: Tensor) -> Tensor:
    """See :class:`SceneKDMaskRCNNHead`.

    Args:
        logits: (M, C, S, S), or (M, 1, S, S) of all classes. instances: one for each image, with masks. weights: (M,).
    """
    side = logits.shape[-1]
    full = [own for own in instances if len(own)]
    wanted = torch.cat([_cropped(own, MASKS, side) for own in full]).to(logits.device)
    void = torch.cat([_cropped(own, VOID, side) for own in full]).to(logits.device)
    classes = (
        torch.cat([own.gt_classes for own in full])
        if logits.shape[1] > 1
        else logits.new_zeros(len(logits)).long()
    )
    own = at_least_float32(logits[torch.arange(len(logits), device=logits.device), classes])
    terms = F.binary_cross_entropy_with_logits(own, wanted.to(own), reduction="none")
    means = (terms * ~void).flatten(1).sum(dim=1) / safe_count((~void).flatten(1).sum(dim=1))
    return (weights * means).sum() / len(logits)


def _cropped(instances: Instances, name: str, side: int) -> Tensor:
    """(m, S, S) bool: masks within their proposals' boxes; a cell is set where half of it is."""
    boxes = instances.proposal_boxes.tensor
    if not instances.has(name):
        return torch.zeros((len(boxes), side, side), dtype=torch.bool, device=boxes.device)
    return instances.get(name).crop_and_resize(boxes, side)
