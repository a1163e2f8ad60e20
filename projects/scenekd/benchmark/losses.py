"""The losses, forward and backward, against a direct dense formulation of each, written here."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..anchor_grid import AnchorGrid
from ..boxes import encode
from ..losses.multibox import multibox_loss
from ..losses.soft_label import soft_label_cross_entropy
from ..matching import AnchorMatch
from ..registry import register
from .losses_compare import compare_losses
from .losses_distill import distill_rows
from .matching import ours as match
from .matching import paper_grid, random_boxes
from .measure import Row
from .options import Options

NAME = "losses"
CLASSES = 20
TEMPERATURE = 0.4


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """Soft labels, the detection loss, and distillation of maps."""
    generator = torch.Generator().manual_seed(0)
    yield from _soft_label(options, generator)
    yield from _multibox(options, generator)
    yield from distill_rows(NAME, options, generator)


def dense_soft_label(logits: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
    """The thesis's loss as it reads: both distributions written out, the product, the mean."""
    wanted = torch.exp(scores / TEMPERATURE)
    wanted = wanted / wanted.sum(1, keepdim=True)
    loss = -(wanted * torch.log(torch.softmax(logits, 1) + 1e-12)).sum(1)
    return (loss * valid).sum() / valid.sum()


def _soft_label(options: Options, generator: torch.Generator) -> Iterator[Row]:
    batch, side = options.pick((32, 75), (8, 75), (2, 8))
    logits = torch.randn(batch, CLASSES + 1, side, side, generator=generator)
    scores = torch.rand(logits.shape, generator=generator)
    valid = torch.rand(batch, side, side, generator=generator) < 0.8

    def ours(logits: Tensor) -> Tensor:
        return soft_label_cross_entropy(
            logits, scores, temperature=TEMPERATURE, target_is="scores", valid=valid
        )

    def peer(logits: Tensor) -> Tensor:
        return dense_soft_label(logits, scores, valid)

    yield from compare_losses(NAME, options, "soft labels", f"{tuple(logits.shape)}", [logits], ours, peer)


def dense_multibox(
    class_logits: Tensor, offsets: Tensor, anchors: Tensor, matches: list[AnchorMatch], boxes: list[Tensor]
) -> Tensor:
    """SSD's loss with every tensor over all anchors: a cross-entropy for each, ranks by sorting twice."""
    labels = torch.stack([m.labels for m in matches])
    positive = labels >= 0
    target = torch.where(positive, labels, CLASSES)
    cross_entropy = F.cross_entropy(class_logits.flatten(0, 1), target.flatten(), reduction="none")
    cross_entropy = cross_entropy.view_as(labels)
    hardness = cross_entropy.detach().masked_fill(positive, -torch.inf).flatten()
    rank = hardness.argsort(descending=True).argsort().view_as(labels)
    count = positive.sum()
    negative = (rank < 3 * count) & ~positive
    confidence = torch.stack([m.confidences for m in matches])
    loss_cls = (cross_entropy * (positive * confidence + negative)).sum()
    wanted = torch.stack([encode(own[m.matched_box.clamp(min=0)], anchors) for own, m in zip(boxes, matches)])
    smooth = F.smooth_l1_loss(offsets, wanted, reduction="none").sum(-1)
    return (loss_cls + (smooth * positive * confidence).sum()) / count


def _multibox(options: Options, generator: torch.Generator) -> Iterator[Row]:
    batch, count = options.pick((32, 10), (4, 10), (2, 3))
    grid: AnchorGrid = paper_grid()
    anchors = grid.anchors()
    boxes = [random_boxes(count, seed, anchors) for seed in range(batch)]
    matches = match(anchors, boxes, grid)
    class_logits = torch.randn(batch, len(anchors), CLASSES + 1, generator=generator)
    offsets = torch.randn(batch, len(anchors), 4, generator=generator)

    def ours(class_logits: Tensor, offsets: Tensor) -> Tensor:
        losses = multibox_loss(class_logits, offsets, anchors, matches, boxes)
        return losses["loss_cls"] + losses["loss_box"]

    def peer(class_logits: Tensor, offsets: Tensor) -> Tensor:
        return dense_multibox(class_logits, offsets, anchors, matches, boxes)

    what = f"{batch} images × {len(anchors):,} anchors"
    yield from compare_losses(NAME, options, "multibox", what, [class_logits, offsets], ours, peer)
