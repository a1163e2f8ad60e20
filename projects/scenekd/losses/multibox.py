"""The detection loss over anchors, with hard negatives (SSD, Liu et al. 2016, section 2.2).

B: images; A: anchors; C: object classes, background is class C; N_i: boxes of image i; M: positive anchors of
the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import encode
from ..matching import AnchorMatch
from .reduce import Reduce, at_least_float32, mean_over_processes, safe_count


def multibox_loss(
    class_logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    matches: Sequence[AnchorMatch | None],
    boxes: Sequence[Tensor],
    *,
    image_weights: Tensor | None = None,
    negative_ratio: float = 3.0,
    background: Tensor | None = None,
    reduce: Reduce = mean_over_processes,
) -> dict[str, Tensor]:
    """Class and box loss of the images that take part, divided by the number of their positives.

    class = (Σ_i w_i Σ_positive confidence · CE + Σ_i w_i Σ_hardest negatives CE) / N
    box = Σ_i w_i Σ_positive confidence · smooth-L1 (summed over the four offsets) / N
    N = Σ_i w_i · positives_i

    The negatives are those of highest CE in the whole batch of this process, min(``negative_ratio`` ·
    positives, available) of them, each of confidence 1. Without a positive there are no negatives either,
    and both losses are 0 with a gradient of zeros. N is a number of anchors, not the sum of their
    confidences: an unsure box weighs less.

    Args:
        class_logits: (B, A, C + 1). offsets: (B, A, 4), coded as in :func:`scenekd.boxes.encode`.
        anchors: (A, 4) absolute xyxy.
        matches: for each image its matching, or None: the image is outside mining, normalisation and loss.
        boxes: for each image its (N_i, 4) boxes, to which ``matches`` refers.
        image_weights: (B,) ≥ 0, 1 each by default; 0 is as None in ``matches``. Only ratios matter.
        negative_ratio: ≥ 0.
        background: :func:`background_loss` of ``class_logits``, where several calls share it.
        reduce: averages N over processes; it is called once, whatever the batch holds.

    Returns:
        ``loss_cls`` and ``loss_box``, scalars, and ``num_pos``, the number of positives here.

    Raises:
        ValueError: shapes do not fit, or a weight or the ratio is negative.
    """
    weights = _check(class_logits, offsets, anchors, matches, boxes, image_weights, negative_ratio)
    index, label, confidence, wanted = _positives(class_logits, anchors, matches, boxes, weights)
    num_anchors = len(anchors)
    weight = weights[index.div(num_anchors, rounding_mode="floor")]
    normaliser = safe_count(reduce(weight.sum()))

    logits = at_least_float32(class_logits.flatten(0, 1))
    if background is None:
        background = background_loss(class_logits)
    negatives = _hardest_negatives(background, index, matches, weights, negative_ratio)
    negative_weight = weights[negatives.div(num_anchors, rounding_mode="floor")]
    no_object = torch.full_like(negatives, logits.shape[1] - 1)
    cross_entropy = F.cross_entropy(
        logits[torch.cat([index, negatives])], torch.cat([label, no_object]), reduction="none"
    )
    loss_cls = (cross_entropy * torch.cat([weight * confidence, negative_weight])).sum()

    chosen = at_least_float32(offsets.flatten(0, 1)[index])
    smooth_l1 = F.smooth_l1_loss(chosen, wanted, reduction="none").sum(dim=1)
    loss_box = (smooth_l1 * weight * confidence).sum()
    return {
        "loss_cls": loss_cls / normaliser,
        "loss_box": loss_box / normaliser,
        "num_pos": torch.tensor(len(index), device=logits.device),
    }


def _positives(
    class_logits: Tensor,
    anchors: Tensor,
    matches: Sequence[AnchorMatch | None],
    boxes: Sequence[Tensor],
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every positive: index in the flattened batch (M,), label (M,), confidence (M,), coded box (M, 4)."""
    device, dtype = class_logits.device, weights.dtype
    image, found, matched = [], [], []
    for i, (match, own_boxes, weight) in enumerate(zip(matches, boxes, weights.tolist())):
        if match is None or weight == 0 or not len(match.anchor):
            continue
        image.append(i)
        found.append(match)
        matched.append(own_boxes.to(device, dtype)[match.box.to(device)])
    if not found:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return none, none, weights.new_zeros(0), weights.new_zeros(0, 4)
    anchor, label, confidence = (
        torch.cat([getattr(match, name) for match in found]).to(device)
        for name in ("anchor", "label", "confidence")
    )
    first = torch.tensor(image, device=device) * len(anchors)
    counts = torch.tensor([len(match.anchor) for match in found], device=device)
    coded = encode(torch.cat(matched), anchors.to(device, dtype)[anchor])
    return anchor + first.repeat_interleave(counts), label, confidence.to(dtype), coded


def background_loss(class_logits: Tensor) -> Tensor:
    """Cross-entropy of every anchor with background, (B, A), from logits (B, A, C + 1); no gradient."""
    logits = at_least_float32(class_logits.detach())
    return logits.logsumexp(dim=-1) - logits[..., -1]


def _hardest_negatives(
    background: Tensor,
    positives: Tensor,
    matches: Sequence[AnchorMatch | None],
    weights: Tensor,
    ratio: float,
) -> Tensor:
    """Indices, in the flattened batch, of the unmatched anchors that look least like background."""
    wanted = int(ratio * len(positives))
    if not wanted:
        return positives[:0]
    absent = torch.tensor([match is None for match in matches], device=background.device) | (weights == 0)
    candidate = (~absent).repeat_interleave(background.shape[1])
    candidate[positives] = False
    count = min(wanted, int(candidate.sum()))
    return background.flatten().masked_fill(~candidate, -torch.inf).topk(count, sorted=False).indices


def _check(
    class_logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    matches: Sequence[AnchorMatch | None],
    boxes: Sequence[Tensor],
    image_weights: Tensor | None,
    negative_ratio: float,
) -> Tensor:
    """The image weights, (B,), in the precision the loss is computed in."""
    batch, num_anchors = class_logits.shape[:2]
    if offsets.shape != (batch, num_anchors, 4) or anchors.shape != (num_anchors, 4):
        raise ValueError(
            f"class_logits {tuple(class_logits.shape)}, offsets {tuple(offsets.shape)} and anchors "
            f"{tuple(anchors.shape)} must be (B, A, C + 1), (B, A, 4), (A, 4)"
        )
    if len(matches) != batch or len(boxes) != batch:
        raise ValueError(
            f"{batch} images need as many matches and boxes, got {len(matches)} and {len(boxes)}"
        )
    if any(match is not None and match.num_anchors != num_anchors for match in matches):
        raise ValueError(f"every match must be over {num_anchors} anchors")
    if negative_ratio < 0:
        raise ValueError(f"negative_ratio must not be negative, got {negative_ratio}")
    dtype = at_least_float32(class_logits[:0]).dtype
    if image_weights is None:
        return torch.ones(batch, dtype=dtype, device=class_logits.device)
    if image_weights.shape != (batch,) or (image_weights < 0).any():
        raise ValueError("image_weights must be (B,), none negative")
    return image_weights.to(class_logits.device, dtype)
