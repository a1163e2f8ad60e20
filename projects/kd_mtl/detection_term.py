"""The detection loss of a batch, from ground truth, a teacher, or both. A: anchors; B: images; C: classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scenekd.losses.multibox import background_loss, multibox_loss
from scenekd.losses.reduce import Reduce, mean_over_processes
from scenekd.matching import AnchorGrid, match_batch
from scenekd.sample import Target

from .sources import weigh_sources


class DetectionTerm(nn.Module):
    """Class and box loss over matched anchors, for each source its own matching; see :mod:`.criterion`.

    Args:
        iou_threshold, negative_ratio, reduce: as in :class:`.criterion.BlitzCriterion`.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        *,
        iou_threshold: float = 0.5,
        negative_ratio: float = 3.0,
        reduce: Reduce = mean_over_processes,
    ) -> None:
        super().__init__()
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"IOU_THRESHOLD must be in (0, 1], got {iou_threshold}")
        if not negative_ratio >= 0:
            raise ValueError(f"NEGATIVE_RATIO must not be negative, got {negative_ratio}")
        self.iou_threshold = iou_threshold
        self.negative_ratio = negative_ratio
        self.reduce = reduce

    def forward(
        self,
        outputs: dict[str, Tensor],
        targets: Sequence[Target],
        anchors: Tensor,
        grid: AnchorGrid | None = None,
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box``; arguments as in :meth:`.criterion.BlitzCriterion.forward`."""
        ground_truth = [t.weights.detection_gt * t.has_boxes for t in targets]
        teacher = [t.weights.detection_teacher * t.has_teacher_boxes for t in targets]
        weights, shares = weigh_sources(ground_truth, teacher, outputs["class_logits"], self.reduce)
        own = [t.from_teacher == source for source in (False, True) for t in targets]
        boxes, labels, confidences = (
            [getattr(t, name)[mine] for t, mine in zip([*targets, *targets], own)]
            for name in ("boxes", "labels", "confidences")
        )
        # The matching of both sources in one go, and one look at all anchors for both minings.
        matches = match_batch(
            anchors, boxes, labels, confidences, iou_threshold=self.iou_threshold, grid=grid
        )
        background = background_loss(outputs["class_logits"])
        total = []
        for source, weight in enumerate(weights):
            images = slice(source * len(targets), (source + 1) * len(targets))
            result = multibox_loss(
                outputs["class_logits"],
                outputs["offsets"],
                anchors,
                matches[images],
                boxes[images],
                image_weights=weight,
                negative_ratio=self.negative_ratio,
                background=background,
                reduce=self.reduce,
            )
            total.append(torch.stack([result["loss_cls"], result["loss_box"]]))
        class_loss, box_loss = (shares[:, None] * torch.stack(total)).sum(dim=0)
        return {"loss_cls": class_loss, "loss_box": box_loss}
