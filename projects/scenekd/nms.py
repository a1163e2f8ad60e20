"""Non-maximum suppression in each class, also where a graph is recorded for export.

n: boxes. torchvision's ``batched_nms`` decides by the number of boxes how it works, which no exporter can follow.
While one records, the same boxes are chosen in a form that it understands.
"""

from __future__ import annotations

import torch
import torchvision.ops
from torch import Tensor


def batched_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, num_classes: int
) -> Tensor:
    """Of two boxes of one class that overlap more than ``iou_threshold``, the lower score goes.

    Args:
        boxes: (n, 4) float32 xyxy, no coordinate negative. scores: (n,) above 0. labels: (n,) int64,
            0 … num_classes − 1.

    Returns:
        (m,) int64, the boxes that stay, by falling score.
    """
    if torch.onnx.is_in_onnx_export():
        kept = nms_by_class(boxes, scores, labels, iou_threshold, num_classes)
        return kept[scores[kept].argsort(descending=True)]
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return _shifted_nms(boxes, scores, labels, iou_threshold)
    return torchvision.ops.batched_nms(boxes, scores, labels, iou_threshold)


@torch.library.custom_op("scenekd::nms_by_class", mutates_args=())
def nms_by_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, num_classes: int
) -> Tensor:
    """As :func:`batched_nms`, in any order: a node of its own in a graph, which the ONNX exporter replaces by ONNX's
    NonMaxSuppression; see :mod:`.export_onnx`."""
    return torchvision.ops.batched_nms(boxes, scores, labels, iou_threshold)


@nms_by_class.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, num_classes: int) -> Tensor:
    return labels.new_empty(torch.library.get_ctx().new_dynamic_size())


def _shifted_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """One suppression over all boxes, the classes moved apart. In float64: a shift of some thousand pixels would
    cost float32 the digits that decide at the threshold."""
    extent = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max().double() + 1  # there may be no box
    shifted = boxes.double() + (labels * extent)[:, None]
    # torchvision tells exporters that two boxes stay at least, and the graph would insist on it: here are two more,
    # apart from all others and last of all.
    guards = shifted.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    kept = torchvision.ops.nms(
        torch.cat([guards, shifted]), torch.cat([guards.new_full((2,), -1.0), scores.double()]), iou_threshold
    )
    return kept[kept >= 2] - 2
