"""The loss of BlitzNet, for any mixture of ground truth and teachers.

B: images; A: anchors; C: object classes, K = C + 1: dense classes; h, w: size of the segmentation logits;
S = 2 sources: ground truth, teacher; n: images of the batch that learn from a source.

For each task: Σ_s share_s · L_s. L_s is the loss over the images that have a weight for source s, normalised
within them (by positive anchors, by valid pixels); share_s is the part of s in all weights of the batch. So
a batch in which r of the images take the teacher gives (1 − r) · L_gt + r · L_teacher, as in the thesis, and
two sources at ½ each on every image give ½ · L_gt + ½ · L_teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.balance import FixedBalance, build_balance
from scenekd.losses.reduce import Reduce, mean_over_processes
from scenekd.matching import AnchorGrid
from scenekd.sample import Target
from scenekd.teachers.options import our_classes

from .detection_term import DetectionTerm
from .segmentation_term import SegmentationTerm

TERMS = {"segmentation": ("loss_seg",), "detection": ("loss_cls", "loss_box")}


class BlitzCriterion(nn.Module):
    """Segmentation, class and box loss (Dvornik et al. 2017), each from ground truth, a teacher, or both.

    Args:
        iou_threshold: an anchor is positive from here on, in (0, 1].
        negative_ratio: hardest negatives for one positive, ≥ 0.
        loss_weights: of (segmentation, class, box), ≥ 0.
        segmentation: keyword arguments of :class:`.segmentation_term.SegmentationTerm`.
        detection: further ones of :class:`.detection_term.DetectionTerm`.
        balance: what weighs the terms beyond their fixed weights, see :mod:`scenekd.losses.balance`; default: nothing.
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
        segmentation: Mapping[str, Any] | None = None,
        detection: Mapping[str, Any] | None = None,
        balance: nn.Module | None = None,
        reduce: Reduce = mean_over_processes,
    ) -> None:
        super().__init__()
        if len(loss_weights) != 3 or not min(loss_weights) >= 0:
            raise ValueError(f"LOSS_WEIGHTS must be three numbers, none negative, got {loss_weights}")
        self.loss_weights = tuple(loss_weights)
        self.detection = DetectionTerm(
            iou_threshold=iou_threshold,
            negative_ratio=negative_ratio,
            reduce=reduce,
            **(detection or {}),
        )
        self.segmentation = SegmentationTerm(**(segmentation or {}), reduce=reduce)
        self.balance = FixedBalance() if balance is None else balance

    @classmethod
    def from_config(cls, cfg: CfgNode) -> BlitzCriterion:
        """From ``cfg.MODEL.BLITZNET`` and ``cfg.DISTILL``; a :class:`UserError` for a value out of range."""
        node, distill = cfg.MODEL.BLITZNET, cfg.DISTILL
        dense = len(our_classes(cfg)) + 1
        if dense < distill.SEGMENTATION.TOP_K:
            raise UserError(
                f"DISTILL.SEGMENTATION.TOP_K: {distill.SEGMENTATION.TOP_K} of {dense} dense classes"
            )
        try:
            return cls(
                iou_threshold=node.IOU_THRESHOLD,
                negative_ratio=node.NEGATIVE_RATIO,
                loss_weights=node.LOSS_WEIGHTS,
                segmentation={
                    "soft_target": distill.SEGMENTATION.TARGET,
                    "temperature": distill.SEGMENTATION.TEMPERATURE,
                    "temper_student": distill.SEGMENTATION.TEMPER_STUDENT,
                    "confidence": distill.SEGMENTATION.CONFIDENCE,
                    "top_k": distill.SEGMENTATION.TOP_K,
                    "tail": distill.SEGMENTATION.TAIL,
                    "void": distill.SEGMENTATION.VOID,
                },
                detection={
                    "doubt_iou": distill.DETECTION.NEGATIVES_IOU,
                    "doubt_ignore": distill.DETECTION.NEGATIVES_IGNORE,
                    "doubt_ground_truth": distill.DETECTION.NEGATIVES_GROUND_TRUTH,
                },
                balance=build_balance(
                    node.BALANCE,
                    [term for task in TERMS if task in node.TASKS for term in TERMS[task]],
                    alpha=node.BALANCE_ALPHA,
                    lr=node.BALANCE_LR,
                ),
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
            with a gradient of zeros where no image has a label for the task; and what the balance adds.
        """
        losses = {}
        weight_seg, weight_cls, weight_box = self.loss_weights
        if "sem_seg" in outputs:
            losses["loss_seg"] = weight_seg * self.segmentation(outputs["sem_seg"], targets)
        if "class_logits" in outputs:
            found = self.detection(outputs, targets, anchors, grid)
            losses["loss_cls"] = weight_cls * found["loss_cls"]
            losses["loss_box"] = weight_box * found["loss_box"]
        return self.balance(losses)
