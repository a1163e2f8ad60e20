"""The loss of BlitzNet, for any mixture of ground truth and teachers.

B: images; A: anchors; C: object classes, K = C + 1: dense classes; h, w: size of the segmentation logits;
S = 2 sources: ground truth, teacher; n: images of the batch that learn from a source.

For each task: Σ_s share_s · L_s. L_s is the loss over the images that have a weight for source s, normalised
within them (by positive anchors, by valid pixels); share_s is the part of s in all weights of the batch. So
a batch in which r of the images take the teacher gives (1 − r) · L_gt + r · L_teacher, as in the thesis, and
two sources at ½ each on every image give ½ · L_gt + ½ · L_teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.multibox import multibox_loss
from scenekd.losses.reduce import Reduce, at_least_float32, mean_over_processes, safe_count, zero_loss
from scenekd.losses.soft_label import TARGET_FORMS, soft_label_map
from scenekd.matching import AnchorGrid, match_batch
from scenekd.sample import IGNORE_INDEX, Target


class BlitzCriterion(nn.Module):
    """Segmentation, class and box loss (Dvornik et al. 2017), each from ground truth, a teacher, or both.

    Args:
        iou_threshold: an anchor is positive from here on, in (0, 1].
        negative_ratio: hardest negatives for one positive, ≥ 0.
        loss_weights: of (segmentation, class, box), ≥ 0.
        use_confidence: False lets the teacher's boxes weigh like ground truth.
        soft_target, temperature: form of ``Target.soft_seg`` and T, see ``soft_label_cross_entropy``.
        reduce: averages counts over processes.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        *,
        iou_threshold: float = 0.5,
        negative_ratio: float = 3.0,
        loss_weights: Sequence[float] = (1.0, 1.0, 1.0),
        use_confidence: bool = True,
        soft_target: str = "probabilities",
        temperature: float = 1.0,
        reduce: Reduce = mean_over_processes,
    ) -> None:
        super().__init__()
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"IOU_THRESHOLD must be in (0, 1], got {iou_threshold}")
        if not negative_ratio >= 0:
            raise ValueError(f"NEGATIVE_RATIO must not be negative, got {negative_ratio}")
        if len(loss_weights) != 3 or not min(loss_weights) >= 0:
            raise ValueError(f"LOSS_WEIGHTS must be three numbers, none negative, got {loss_weights}")
        if soft_target not in TARGET_FORMS:
            raise ValueError(f"TARGET must be one of {', '.join(TARGET_FORMS)}, got {soft_target!r}")
        if not temperature > 0:
            raise ValueError(f"TEMPERATURE must be positive, got {temperature}")
        self.iou_threshold = iou_threshold
        self.negative_ratio = negative_ratio
        self.loss_weights = tuple(loss_weights)
        self.use_confidence = use_confidence
        self.soft_target = soft_target
        self.temperature = temperature
        self.reduce = reduce

    @classmethod
    def from_config(cls, cfg: CfgNode) -> BlitzCriterion:
        """From ``cfg.MODEL.BLITZNET`` and ``cfg.DISTILL``; a :class:`UserError` for a value out of range."""
        node, distill = cfg.MODEL.BLITZNET, cfg.DISTILL
        try:
            return cls(
                iou_threshold=node.IOU_THRESHOLD,
                negative_ratio=node.NEGATIVE_RATIO,
                loss_weights=node.LOSS_WEIGHTS,
                use_confidence=distill.DETECTION.USE_CONFIDENCE,
                soft_target=distill.SEGMENTATION.TARGET,
                temperature=distill.SEGMENTATION.TEMPERATURE,
            )
        except ValueError as error:
            raise UserError(f"MODEL.BLITZNET or DISTILL: {error}") from None

    def forward(
        self,
        outputs: dict[str, Tensor],
        targets: Sequence[Target],
        anchors: Tensor,
        grid: AnchorGrid | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch; every process of a run must call it equally often.

        Args:
            outputs: of the heads that exist: ``class_logits`` (B, A, C + 1), background last, and ``offsets``
                (B, A, 4); ``sem_seg`` (B, K, h, w) logits, background first.
            targets: one an image, on the device of the outputs.
            anchors: (A, 4) absolute xyxy. grid: their layout, for speed.

        Returns:
            ``loss_seg``, and ``loss_cls`` and ``loss_box``, of the tasks in ``outputs``: finite scalars, 0
            with a gradient of zeros where no image has a label for the task.
        """
        losses = {}
        weight_seg, weight_cls, weight_box = self.loss_weights
        if "sem_seg" in outputs:
            losses["loss_seg"] = weight_seg * self._segmentation(outputs["sem_seg"], targets)
        if "class_logits" in outputs:
            class_loss, box_loss = self._detection(outputs, targets, anchors, grid)
            losses["loss_cls"] = weight_cls * class_loss
            losses["loss_box"] = weight_box * box_loss
        return losses

    def _detection(
        self, outputs: dict[str, Tensor], targets: Sequence[Target], anchors: Tensor, grid: AnchorGrid | None
    ) -> tuple[Tensor, Tensor]:
        ground_truth = [t.weights.detection_gt * t.has_boxes for t in targets]
        teacher = [t.weights.detection_teacher * t.has_teacher_boxes for t in targets]
        weights, shares = self._weigh(ground_truth, teacher, outputs["class_logits"])
        total = []
        for from_teacher, weight in enumerate(weights):
            mine = [t.from_teacher == bool(from_teacher) for t in targets]
            boxes = [t.boxes[own] for t, own in zip(targets, mine)]
            confidences = [t.confidences[own] for t, own in zip(targets, mine)]
            if from_teacher and not self.use_confidence:
                confidences = [torch.ones_like(own) for own in confidences]
            labels = [t.labels[own] for t, own in zip(targets, mine)]
            matches = match_batch(
                anchors, boxes, labels, confidences, iou_threshold=self.iou_threshold, grid=grid
            )
            result = multibox_loss(
                outputs["class_logits"],
                outputs["offsets"],
                anchors,
                matches,
                boxes,
                image_weights=weight,
                negative_ratio=self.negative_ratio,
                reduce=self.reduce,
            )
            total.append(torch.stack([result["loss_cls"], result["loss_box"]]))
        class_loss, box_loss = (shares[:, None] * torch.stack(total)).sum(dim=0)
        return class_loss, box_loss

    def _segmentation(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        ground_truth = [t.weights.segmentation_gt * (t.sem_seg is not None) for t in targets]
        teacher = [t.weights.segmentation_teacher * (t.soft_seg is not None) for t in targets]
        weights, shares = self._weigh(ground_truth, teacher, logits)
        total = []
        for pixel_loss, weight in zip((_hard_pixels, self._soft_pixels), weights):
            chosen = weight.nonzero().squeeze(1)
            if not len(chosen):
                self.reduce(weight.sum())  # the other processes wait for it
                total.append(zero_loss(logits))
                continue
            loss, valid = pixel_loss(logits[chosen], [targets[i] for i in chosen.tolist()])
            count = self.reduce((weight[chosen] * valid.sum(dim=(1, 2))).sum())
            total.append((weight[chosen] * loss.sum(dim=(1, 2))).sum() / safe_count(count))
        return (shares * torch.stack(total)).sum()

    def _soft_pixels(self, logits: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Cross-entropy against the teacher's soft labels (n, h, w), 0 where void, and which pixels count."""
        size = logits.shape[-2:]
        soft = _resize(torch.stack([_present(t.soft_seg) for t in targets]), size)
        seen = [
            torch.ones_like(_present(t.soft_seg)[0], dtype=torch.bool)
            if t.soft_valid is None
            else t.soft_valid
            for t in targets
        ]
        valid = _resize(torch.stack(seen)[:, None].float(), size)[:, 0] > 0
        loss = soft_label_map(
            logits, soft, temperature=self.temperature, target_is=self.soft_target, valid=valid
        )
        return loss, valid

    def _weigh(
        self, ground_truth: Sequence[float], teacher: Sequence[float], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weight of every source and image (S, B), and every source's share in the loss (S,)."""
        weights = torch.tensor(
            [ground_truth, teacher], dtype=at_least_float32(like[:0]).dtype, device=like.device
        )
        amount = self.reduce(weights.sum(dim=1))
        return weights, amount / safe_count(amount.sum())


def _hard_pixels(logits: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Cross-entropy against the labels (n, h, w), 0 where void, and which pixels count."""
    labels = torch.stack([_present(t.sem_seg) for t in targets])
    labels = _resize(labels[:, None].float(), logits.shape[-2:])[:, 0].long()
    loss = F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE_INDEX, reduction="none")
    return loss, labels != IGNORE_INDEX


def _resize(values: Tensor, size: Sequence[int]) -> Tensor:
    """(n, ·, H, W) → (n, ·, h, w), each pixel that of the nearest centre."""
    if values.shape[-2:] == tuple(size):
        return values
    return F.interpolate(values, size=tuple(size), mode="nearest-exact")


def _present(value: Tensor | None) -> Tensor:
    assert value is not None  # only images that have it carry a weight
    return value
