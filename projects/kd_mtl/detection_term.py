"""The detection loss of a batch, from ground truth, a teacher, or both. A: anchors; B: images; C: classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scenekd.boxes import iou_matrix
from scenekd.losses.multibox import NORMALISERS, background_loss, multibox_loss
from scenekd.losses.reduce import Reduce, mean_over_processes
from scenekd.matching import AnchorGrid, match_batch
from scenekd.negatives import negative_weights
from scenekd.sample import Target

from .sources import source_losses, weigh_sources


class DetectionTerm(nn.Module):
    """Class and box loss over matched anchors, for each source its own matching; see :mod:`.criterion`.

    Where targets have ``class_probabilities``, a teacher's boxes teach these; where they have ``box_weights``,
    these weigh its box loss; where they have ``doubtful_boxes``, negatives under these weigh less.

    Args:
        iou_threshold, negative_ratio, reduce: as in :class:`.criterion.BlitzCriterion`.
        doubt_iou, doubt_ignore: ``iou_threshold`` and ``ignore_score`` of :func:`scenekd.negatives.negative_weights`.
        doubt_ground_truth: whether negatives of the ground truth weigh less, too; there a doubtful box that
            overlaps an annotated one by ``iou_threshold`` says nothing new and is passed over.
        normalise_by: of a teacher's boxes, see :func:`scenekd.losses.multibox.multibox_loss`.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        *,
        iou_threshold: float = 0.5,
        negative_ratio: float = 3.0,
        reduce: Reduce = mean_over_processes,
        doubt_iou: float = 0.4,
        doubt_ignore: float = 1.0,
        doubt_ground_truth: bool = False,
        normalise_by: str = "anchors",
    ) -> None:
        super().__init__()
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"IOU_THRESHOLD must be in (0, 1], got {iou_threshold}")
        if not negative_ratio >= 0:
            raise ValueError(f"NEGATIVE_RATIO must not be negative, got {negative_ratio}")
        if not 0 < doubt_iou <= 1 or not 0 < doubt_ignore <= 1:
            raise ValueError(
                f"NEGATIVES_IOU and NEGATIVES_IGNORE must be in (0, 1], got {doubt_iou} and {doubt_ignore}"
            )
        if normalise_by not in NORMALISERS:
            raise ValueError(f"NORMALIZER must be one of {', '.join(NORMALISERS)}, got {normalise_by!r}")
        self.normalise_by = normalise_by
        self.doubt_iou, self.doubt_ignore = doubt_iou, doubt_ignore
        self.doubt_ground_truth = doubt_ground_truth
        self.iou_threshold = iou_threshold
        self.negative_ratio = negative_ratio
        self.reduce = reduce
        self._logged: dict[str, Tensor] = {}

    def forward(
        self,
        outputs: dict[str, Tensor],
        targets: Sequence[Target],
        anchors: Tensor,
        grid: AnchorGrid | None = None,
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box``; arguments as in :meth:`.criterion.BlitzCriterion.forward`."""
        weights, shares = weigh_sources("detection", targets, outputs["class_logits"], self.reduce)
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
                class_targets=_columns(targets, own[images], "class_probabilities") if source else None,
                box_weights=_columns(targets, own[images], "box_weights") if source else None,
                normalise_by=self.normalise_by if source else "anchors",
                negative_weights=self._negatives(targets, boxes[images], bool(source), anchors, grid),
            )
            total.append(torch.stack([result["loss_cls"], result["loss_box"]]))
        self._logged = source_losses("detection", total, targets)
        class_loss, box_loss = (shares[:, None] * torch.stack(total)).sum(dim=0)
        return {"loss_cls": class_loss, "loss_box": box_loss}

    def log_values(self) -> dict[str, Tensor]:
        """The last batch's class and box loss from each source alone, summed."""
        return self._logged

    def _negatives(
        self,
        targets: Sequence[Target],
        boxes: Sequence[Tensor],
        from_teacher: bool,
        anchors: Tensor,
        grid: AnchorGrid | None,
    ) -> Tensor | None:
        """(B, A) weights of negatives of a source whose boxes are ``boxes``; None: all weigh 1."""
        if not (from_teacher or self.doubt_ground_truth) or all(t.doubtful_boxes is None for t in targets):
            return None
        doubtful, scores = [], []
        for t, own in zip(targets, boxes):
            some, score = t.doubtful_boxes, t.doubtful_scores
            if some is None or score is None:
                some, score = own.new_zeros(0, 4), own.new_zeros(0)
            elif not from_teacher and len(own) and len(some):
                new = iou_matrix(some, own).amax(dim=1) < self.iou_threshold
                some, score = some[new], score[new]
            doubtful.append(some)
            scores.append(score)
        return negative_weights(
            anchors,
            doubtful,
            scores,
            iou_threshold=self.doubt_iou,
            ignore_score=self.doubt_ignore,
            grid=grid,
        )


def _columns(targets: Sequence[Target], mine: Sequence[Tensor], name: str) -> list[Tensor | None] | None:
    """A column of each target's boxes of one source; None where no target has it."""
    columns = [getattr(t, name) for t in targets]
    if all(column is None for column in columns):
        return None
    return [None if column is None else column[own] for column, own in zip(columns, mine)]
