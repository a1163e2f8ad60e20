"""What SceneKD's detectors share inside detectron2: which images are labelled, and confidences of matched anchors.

detectron2's own code matches, samples and computes its own losses; an unsure box then weighs less, by what is taken
away again: Σ c·l = Σ l − Σ (1 − c)·l. So where every confidence is 1 the losses are detectron2's to the last bit.

N: images; R: anchors of an image, over all levels; P: anchors or proposals of unsure boxes, matched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.layers import ciou_loss, diou_loss
from detectron2.structures import Boxes, Instances
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from ..losses.reduce import at_least_float32, zero_loss
from ..sample import Target

CONFIDENCES, FROM_TEACHER, MISSING = "gt_confidences", "gt_from_teacher", "gt_missing"
_IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def instances_of(target: Target, size: tuple[int, int]) -> Instances:
    """A target's boxes as detectron2 wants them.

    Fields: ``gt_boxes``, ``gt_classes``; ``gt_from_teacher`` (n,) bool; ``gt_confidences`` (n,) float32, what a match
    with the box weighs: 1 for ground truth, the teacher's score for its boxes; where both sources count for the image,
    times its source's weight over the larger of the two weights. An image without box labels has the field
    ``gt_missing``, and no box.

    Args:
        size: (height, width) of the image that the boxes are in.
    """
    weights = (target.weights.detection_gt, target.weights.detection_teacher)
    found = Instances(size)
    found.gt_boxes = Boxes(target.boxes)
    found.gt_classes = target.labels
    share = torch.tensor(weights) / (max(weights) or 1.0)
    found.set(CONFIDENCES, target.confidences * share[target.from_teacher.long()])
    found.set(FROM_TEACHER, target.from_teacher)
    if not max(weights) > 0:
        found = found[:0]
        found.set(MISSING, torch.zeros(0))
    return found


def labelled(instances: Sequence[Instances]) -> list[int]:
    """Indices of the images that have box labels: all but those marked ``gt_missing``."""
    return [i for i, found in enumerate(instances) if not found.has(MISSING)]


def confidences_of(instances: Instances, like: Tensor) -> Tensor:
    """``gt_confidences``, or ones where there are none; dtype and device of ``like``."""
    if instances.has(CONFIDENCES):
        return instances.get(CONFIDENCES).to(like)
    return like.new_ones(len(instances))


@contextmanager
def _noting_matches(module: Any) -> Iterator[list[Tensor]]:
    """What ``module.anchor_matcher`` matches meanwhile: for each image (R,) indices of boxes."""
    matcher, noted = module.anchor_matcher, []

    def match(quality: Tensor) -> tuple[Tensor, Tensor]:
        index, labels = matcher(quality)
        noted.append(index)
        return index, labels

    module.anchor_matcher = match
    try:
        yield noted
    finally:
        module.anchor_matcher = matcher


def label_with_confidence(
    module: Any, label: Callable[..., Any], anchors: list[Boxes], instances: list[Instances]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """What detectron2's ``label(anchors, instances)`` says, with each anchor's confidence.

    Args:
        module: whose ``anchor_matcher`` is used.

    Returns:
        For each image its anchors' labels (R,), and (R, 5): the matched box and its confidence, undefined where the
        anchor is not positive. None each for an image without box labels.
    """
    labels: list[Tensor | None] = [None] * len(instances)
    boxes: list[Tensor | None] = [None] * len(instances)
    present = labelled(instances)
    if not present:
        return labels, boxes
    with _noting_matches(module) as noted:
        found = label(anchors, [instances[i] for i in present])
    for i, own, box, index in zip(present, *found, noted):
        confidence = confidences_of(instances[i], box)
        column = confidence[index.to(box.device)] if len(confidence) else box.new_ones(len(box))
        labels[i], boxes[i] = own, torch.cat([box, column[:, None]], dim=1)
    return labels, boxes


def rows_of(levels: list[Tensor], rows: list[int]) -> list[Tensor]:
    """Predictions of all levels, each (N, …), for some images."""
    return levels if len(rows) == len(levels[0]) else [level[rows] for level in levels]


def zero_of(levels: Sequence[Tensor]) -> Tensor:
    """0 with a gradient of zeros for every level."""
    return torch.stack([zero_loss(level) for level in levels]).sum()


def box_terms(module: Any, anchors: Tensor, deltas: Tensor, boxes: Tensor) -> Tensor:
    """(P,) the box loss of each anchor with its box, in the kind that ``module`` was built with.

    Args:
        module: has ``box_reg_loss_type``, ``smooth_l1_beta`` and ``box2box_transform``.
        anchors, deltas, boxes: (P, 4).
    """
    transform, kind = module.box2box_transform, module.box_reg_loss_type
    deltas = at_least_float32(deltas)
    if kind == "smooth_l1":
        wanted = transform.get_deltas(anchors, boxes)
        return smooth_l1_loss(deltas, wanted, beta=module.smooth_l1_beta, reduction="none").sum(dim=1)
    return _IOU_LOSSES[kind](transform.apply_deltas(deltas, anchors), boxes, reduction="none")
