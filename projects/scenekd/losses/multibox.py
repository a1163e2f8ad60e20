"""The detection loss over anchors, with hard negatives (SSD, Liu et al. 2016, section 2.2).

B: images; A: anchors; C: object classes, background is class C; N_i: boxes of image i; M: positive anchors of
the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import encode
from ..matching import AnchorMatch
from .reduce import Reduce, at_least_float32, mean_over_processes, safe_count

NORMALISERS = ("anchors", "confidence")


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
    class_targets: Sequence[Tensor | None] | None = None,
    box_weights: Sequence[Tensor | None] | None = None,
    negative_weights: Tensor | None = None,
    normalise_by: str = "anchors",
) -> dict[str, Tensor]:
    """Class and box loss of the images that take part, divided by the number of their positives.

    class = (Σ_i w_i Σ_positive confidence · CE + Σ_i w_i Σ_hardest negatives CE) / N
    box = Σ_i w_i Σ_positive confidence · smooth-L1 (summed over the four offsets) / N
    N = Σ_i w_i · positives_i

    The negatives are those of highest CE in the whole batch of this process, min(``negative_ratio`` ·
    positives, available) of them, each of confidence 1. Without a positive there are no negatives either,
    and both losses are 0 with a gradient of zeros. N is a number of anchors, not the sum of their
    confidences: an unsure box weighs less. With ``normalise_by="confidence"`` positives_i is the sum of the positives'
    confidences, in N and in the number of negatives: a hundred boxes of score .01 then count as one sure box, and
    neither thin out the loss of the sure ones nor call for negatives of their own (ours).

    With ``class_targets`` a positive learns its box's whole distribution p: its class term is Σ_k −p_k log q_k,
    with weight 1, for p says already, by the share of background, how unsure the box is (Hinton et al. 2015; for
    detectors Chen et al., NeurIPS 2017, section 3.2). ``box_weights`` stand in for the confidence in the box
    term. ``negative_weights`` multiply the CE of negatives, which are then those of highest weighted CE; anchors
    of weight 0 are none.

    Args:
        class_logits: (B, A, C + 1). offsets: (B, A, 4), coded as in :func:`scenekd.boxes.encode`.
        anchors: (A, 4) absolute xyxy.
        matches: for each image its matching, or None: the image is outside mining, normalisation and loss.
        boxes: for each image its (N_i, 4) boxes, to which ``matches`` refers.
        image_weights: (B,) ≥ 0, 1 each by default; 0 is as None in ``matches``. Only ratios matter.
        negative_ratio: ≥ 0.
        background: :func:`background_loss` of ``class_logits``, where several calls share it.
        reduce: averages N over processes; it is called once, whatever the batch holds.
        class_targets: for each image (N_i, C + 1) probabilities of its boxes, background last, or None: its boxes'
            labels and confidences.
        box_weights: for each image (N_i,) ≥ 0, or None: its boxes' confidences.
        negative_weights: (B, A) ≥ 0.
        normalise_by: ``anchors`` or ``confidence``.

    Returns:
        ``loss_cls`` and ``loss_box``, scalars, and ``num_pos``, the number of positives here.

    Raises:
        ValueError: shapes do not fit, or a weight or the ratio is negative.
    """
    weights = _check(class_logits, offsets, anchors, matches, boxes, image_weights, negative_ratio)
    _check_options(class_logits, boxes, class_targets, box_weights, negative_weights)
    if normalise_by not in NORMALISERS:
        raise ValueError(f"normalise_by must be one of {', '.join(NORMALISERS)}, got {normalise_by!r}")
    positive = _positives(class_logits, anchors, matches, boxes, weights, class_targets, box_weights)
    index, num_anchors = positive.place, len(anchors)
    weight = weights[index.div(num_anchors, rounding_mode="floor")]
    by_anchors = normalise_by == "anchors"
    normaliser = safe_count(reduce((weight if by_anchors else weight * positive.confidence).sum()))

    logits = at_least_float32(class_logits.flatten(0, 1))
    if background is None:
        background = background_loss(class_logits)
    wanted = int(negative_ratio * (len(index) if by_anchors else float(positive.confidence.sum())))
    negatives = _hardest_negatives(background, index, matches, weights, wanted, negative_weights)
    negative_weight = weights[negatives.div(num_anchors, rounding_mode="floor")]
    if negative_weights is not None:
        negative_weight = negative_weight * negative_weights.to(weights).flatten()[negatives]
    no_object = torch.full_like(negatives, logits.shape[1] - 1)
    target = torch.cat([positive.label, no_object])
    if positive.vector is not None:
        target = torch.cat([positive.vector, F.one_hot(no_object, logits.shape[1]).to(positive.vector)])
    cross_entropy = F.cross_entropy(logits[torch.cat([index, negatives])], target, reduction="none")
    loss_cls = (cross_entropy * torch.cat([weight * positive.class_weight, negative_weight])).sum()

    chosen = at_least_float32(offsets.flatten(0, 1)[index])
    smooth_l1 = F.smooth_l1_loss(chosen, positive.coded, reduction="none").sum(dim=1)
    loss_box = (smooth_l1 * weight * positive.box_weight).sum()
    return {
        "loss_cls": loss_cls / normaliser,
        "loss_box": loss_box / normaliser,
        "num_pos": torch.tensor(len(index), device=logits.device),
    }


class _Positives(NamedTuple):
    """Of every positive: its index in the flattened batch (M,), label (M,), confidence (M,), weight in the class and
    in the box term (M,), coded box (M, 4), and the distribution that it learns (M, C + 1), or None: its label."""

    place: Tensor
    label: Tensor
    confidence: Tensor
    class_weight: Tensor
    box_weight: Tensor
    coded: Tensor
    vector: Tensor | None


def _positives(
    class_logits: Tensor,
    anchors: Tensor,
    matches: Sequence[AnchorMatch | None],
    boxes: Sequence[Tensor],
    weights: Tensor,
    class_targets: Sequence[Tensor | None] | None,
    box_weights: Sequence[Tensor | None] | None,
) -> _Positives:
    device, dtype, num_classes = class_logits.device, weights.dtype, class_logits.shape[2]
    image, found, matched = [], [], []
    for i, (match, own_boxes, weight) in enumerate(zip(matches, boxes, weights.tolist())):
        if match is None or weight == 0 or not len(match.anchor):
            continue
        image.append(i)
        found.append(match)
        matched.append(own_boxes.to(device, dtype)[match.box.to(device)])
    if not found:
        none, nothing = torch.zeros(0, dtype=torch.int64, device=device), weights.new_zeros(0)
        vector = None if class_targets is None else weights.new_zeros(0, num_classes)
        return _Positives(none, none, nothing, nothing, nothing, weights.new_zeros(0, 4), vector)
    anchor, label, confidence = (
        torch.cat([getattr(match, name) for match in found]).to(device)
        for name in ("anchor", "label", "confidence")
    )
    first = torch.tensor(image, device=device) * len(anchors)
    counts = torch.tensor([len(match.anchor) for match in found], device=device)
    coded = encode(torch.cat(matched), anchors.to(device, dtype)[anchor])
    class_weight = box_weight = confidence = confidence.to(dtype)
    vector = None
    if class_targets is not None:
        given = [None if (own := class_targets[i]) is None else own[m.box] for i, m in zip(image, found)]
        vector = _filled(given, F.one_hot(label, num_classes).to(dtype), counts)
        told = torch.tensor([own is not None for own in given], device=device)
        class_weight = torch.where(told.repeat_interleave(counts), 1, confidence)
    if box_weights is not None:
        given = [None if (own := box_weights[i]) is None else own[m.box] for i, m in zip(image, found)]
        box_weight = _filled(given, confidence, counts)
    place = anchor + first.repeat_interleave(counts)
    return _Positives(place, label, confidence, class_weight, box_weight, coded, vector)


def _filled(given: Sequence[Tensor | None], default: Tensor, counts: Tensor) -> Tensor:
    """The rows of all images, (M, …): those given, and the ``default`` ones of images where none are."""
    parts = default.split(counts.tolist())
    return torch.cat([part if own is None else own.to(part) for own, part in zip(given, parts)])


def background_loss(class_logits: Tensor) -> Tensor:
    """Cross-entropy of every anchor with background, (B, A), from logits (B, A, C + 1); no gradient."""
    logits = at_least_float32(class_logits.detach())
    return logits.logsumexp(dim=-1) - logits[..., -1]


def _hardest_negatives(
    background: Tensor,
    positives: Tensor,
    matches: Sequence[AnchorMatch | None],
    weights: Tensor,
    wanted: int,
    importance: Tensor | None,
) -> Tensor:
    """Indices, in the flattened batch, of so many unmatched anchors that look least like background."""
    if not wanted:
        return positives[:0]
    absent = torch.tensor([match is None for match in matches], device=background.device) | (weights == 0)
    candidate = (~absent).repeat_interleave(background.shape[1])
    candidate[positives] = False
    if importance is not None:
        importance = importance.to(background)
        candidate &= importance.flatten() > 0
        background = background * importance
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


def _check_options(
    class_logits: Tensor,
    boxes: Sequence[Tensor],
    class_targets: Sequence[Tensor | None] | None,
    box_weights: Sequence[Tensor | None] | None,
    negative_weights: Tensor | None,
) -> None:
    for name, columns, width in (
        ("class_targets", class_targets, (class_logits.shape[2],)),
        ("box_weights", box_weights, ()),
    ):
        for own, column in zip(boxes, columns or (), strict=columns is not None):
            if column is not None and (column.shape != (len(own), *width) or (column < 0).any()):
                raise ValueError(f"{name} must be {('N', *width)} for each image, none negative")
    if negative_weights is not None and negative_weights.shape != class_logits.shape[:2]:
        raise ValueError(f"negative_weights must be {tuple(class_logits.shape[:2])}")
