"""The mask loss of a batch, from ground truth, a teacher, or both (YOLACT, Bolya et al., ICCV 2019, section 3).

B: images; A: anchors; P: prototypes; M: positive anchors of an image; h, w: the prototypes' grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.losses.reduce import Reduce, at_least_float32, mean_over_processes, safe_count, zero_loss
from scenekd.matching import AnchorGrid, AnchorMatch, match_batch
from scenekd.sample import IGNORE_INDEX, Target

from .sources import present, weigh_sources


class InstanceTerm(nn.Module):
    """Binary cross-entropy of the masks of positive anchors, within their boxes; see :mod:`.criterion`.

    Σ_i w_i Σ_positive confidence · (mean cross-entropy over the known cells that the box touches) / N, where N =
    Σ_i w_i · positives_i. An anchor counts where its box has a mask; anchors are matched as for detection, to all
    boxes of the source. A box's own number of cells is the divisor, so small objects count like large ones.

    Args:
        iou_threshold, reduce: as in :class:`.criterion.BlitzCriterion`.
        max_positives: of more in one image, so many are taken, spread evenly over the anchors' order; at least 1.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        *,
        iou_threshold: float = 0.5,
        max_positives: int = 100,
        reduce: Reduce = mean_over_processes,
    ) -> None:
        super().__init__()
        if max_positives < 1:
            raise ValueError(f"INSTANCES.MAX_POSITIVES must be at least 1, got {max_positives}")
        self.iou_threshold, self.max_positives, self.reduce = iou_threshold, max_positives, reduce

    def forward(
        self,
        outputs: dict[str, Tensor],
        targets: Sequence[Target],
        anchors: Tensor,
        grid: AnchorGrid | None = None,
    ) -> dict[str, Tensor]:
        """``loss_mask``; arguments as in :meth:`.criterion.BlitzCriterion.forward`, where ``grid`` is needed: it
        tells the size of the image that the prototypes cover.
        """
        if grid is None:
            raise ValueError("the mask loss needs the anchors' grid")
        prototypes, coefficients = outputs["prototypes"], outputs["mask_coefficients"]
        weights, shares = weigh_sources("instance_segmentation", targets, prototypes, self.reduce)
        total = [zero_loss(prototypes) + zero_loss(coefficients)]
        for from_teacher, (weight, share) in enumerate(zip(weights, shares)):
            sums, count = [zero_loss(prototypes)], weight.new_zeros(())
            for i in weight.nonzero().squeeze(1).tolist():
                loss, positives = self._image(
                    prototypes[i], coefficients[i], targets[i], bool(from_teacher), anchors, grid
                )
                sums.append(weight[i] * loss)
                count = count + weight[i] * positives
            total.append(share * torch.stack(sums).sum() / safe_count(self.reduce(count)))
        return {"loss_mask": torch.stack(total).sum()}

    def _image(
        self,
        prototypes: Tensor,
        coefficients: Tensor,
        target: Target,
        from_teacher: bool,
        anchors: Tensor,
        grid: AnchorGrid,
    ) -> tuple[Tensor, int]:
        """The summed loss of one image, and the number of positives that it is over."""
        own = target.from_teacher == from_teacher
        boxes, masks = target.boxes[own], present(target.masks)[own]
        match = match_batch(
            anchors,
            [boxes],
            [target.labels[own]],
            [target.confidences[own]],
            iou_threshold=self.iou_threshold,
            grid=grid,
        )[0]
        match = self._choose(match, (masks != IGNORE_INDEX).flatten(1).any(dim=1))
        if not len(match.anchor):
            return zero_loss(prototypes), 0
        prototypes = at_least_float32(prototypes)
        logits = torch.einsum("mp,phw->mhw", at_least_float32(coefficients[match.anchor]), prototypes)
        labels = F.interpolate(masks[:, None].float(), size=logits.shape[1:], mode="nearest-exact")[:, 0]
        labels = labels[match.box].to(logits.dtype)
        inside = touched_cells(boxes, grid.image_size, (logits.shape[1], logits.shape[2]))[match.box]
        counted = inside & (labels != IGNORE_INDEX)
        loss = F.binary_cross_entropy_with_logits(logits, labels.clamp(max=1), reduction="none")
        cells = counted.sum(dim=(1, 2))
        mean = (loss * counted).sum(dim=(1, 2)) / safe_count(cells)
        return (match.confidence * mean).sum(), int((cells > 0).sum())

    def _choose(self, match: AnchorMatch, has_mask: Tensor) -> AnchorMatch:
        """The positives whose box has a mask, at most ``max_positives`` of them."""
        chosen = has_mask[match.box].nonzero().squeeze(1)
        if len(chosen) > self.max_positives:
            places = torch.linspace(0, len(chosen) - 1, self.max_positives, device=chosen.device)
            chosen = chosen[places.round().long()]
        parts = (match.anchor, match.box, match.label, match.confidence)
        return AnchorMatch(match.num_anchors, *(part[chosen] for part in parts))


def touched_cells(boxes: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(N, h, w) bool: the cells of an h × w grid over the image that each box overlaps.

    Args:
        boxes: (N, 4) xyxy pixels of an image of ``image_size`` (H, W).
    """
    per_pixel = boxes.new_tensor([size[1] / image_size[1], size[0] / image_size[0]]).repeat(2)
    x1, y1, x2, y2 = (boxes * per_pixel)[:, :, None].unbind(1)  # (N, 1) each, in cells
    x, y = (torch.arange(n, device=boxes.device) for n in (size[1], size[0]))
    across, down = (x + 1 > x1) & (x < x2), (y + 1 > y1) & (y < y2)
    return down[:, :, None] & across[:, None]
