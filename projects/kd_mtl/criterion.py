"""The loss of BlitzNet, for any mixture of ground truth and teachers.

B: images; A: anchors; C: object classes, K = C + 1: dense classes; h, w: size of the segmentation logits;
S = 2 sources: ground truth, teacher; n: images of the batch that learn from a source.

For each task: Σ_s share_s · L_s. L_s is the loss over the images that have a weight for source s, normalised
within them (by positive anchors, by valid pixels); share_s is the part of s in all weights of the batch. So
a batch in which r of the images take the teacher gives (1 − r) · L_gt + r · L_teacher, as in the thesis, and
two sources at ½ each on every image give ½ · L_gt + ½ · L_teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.balance import FixedBalance, build_balance
from scenekd.losses.reduce import Reduce, mean_over_processes
from scenekd.losses.soft_pixels import SoftPixels
from scenekd.matching import AnchorGrid
from scenekd.sample import Target
from scenekd.teachers.options import our_classes

from .detection_term import DetectionTerm
from .instance_term import InstanceTerm
from .segmentation_term import SegmentationTerm

TERMS = {
    "segmentation": ("loss_seg",),
    "detection": ("loss_cls", "loss_box"),
    "instance_segmentation": ("loss_mask",),
}
# For each task the output that shows that the network has it.
NEEDS = {"segmentation": "sem_seg", "detection": "class_logits", "instance_segmentation": "prototypes"}


class BlitzCriterion(nn.Module):
    """Segmentation, class and box loss (Dvornik et al. 2017), and a mask loss (Bolya et al. 2019), each from
    ground truth, a teacher, or both.

    Args:
        iou_threshold: an anchor is positive from here on, in (0, 1].
        negative_ratio: hardest negatives for one positive, ≥ 0.
        loss_weights: of (segmentation, class, box), ≥ 0. mask_weight: of the mask loss, ≥ 0.
        segmentation: keyword arguments of :class:`.segmentation_term.SegmentationTerm`.
        detection: further ones of :class:`.detection_term.DetectionTerm`.
        balance: what weighs the terms beyond their fixed weights, see :mod:`scenekd.losses.balance`; default: nothing.
        max_positives: see :class:`.instance_term.InstanceTerm`.
        reduce: averages counts over processes.

    Attributes:
        terms: task → its term: ``term(outputs, targets, anchors, grid)`` → losses by name, not yet weighted.

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
        mask_weight: float = 6.125,
        max_positives: int = 100,
    ) -> None:
        super().__init__()
        if len(loss_weights) != 3 or not min(loss_weights) >= 0:
            raise ValueError(f"LOSS_WEIGHTS must be three numbers, none negative, got {loss_weights}")
        if not mask_weight >= 0:
            raise ValueError(f"INSTANCES.LOSS_WEIGHT must not be negative, got {mask_weight}")
        self.loss_weights = tuple(loss_weights)
        names = ("loss_seg", "loss_cls", "loss_box", "loss_mask")
        self.weight_of = dict(zip(names, (*loss_weights, mask_weight)))
        self.detection = DetectionTerm(
            iou_threshold=iou_threshold,
            negative_ratio=negative_ratio,
            reduce=reduce,
            **(detection or {}),
        )
        self.segmentation = SegmentationTerm(**(segmentation or {}), reduce=reduce)
        self.instance_segmentation = InstanceTerm(
            iou_threshold=iou_threshold, max_positives=max_positives, reduce=reduce
        )
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
                    **SoftPixels.options(distill.SEGMENTATION),
                    "void": distill.SEGMENTATION.VOID,
                },
                detection={
                    "doubt_iou": distill.DETECTION.NEGATIVES_IOU,
                    "doubt_ignore": distill.DETECTION.NEGATIVES_IGNORE,
                    "doubt_ground_truth": distill.DETECTION.NEGATIVES_GROUND_TRUTH,
                    "normalise_by": distill.DETECTION.NORMALIZER,
                },
                balance=build_balance(
                    node.BALANCE,
                    [term for task in TERMS if task in node.TASKS for term in TERMS[task]],
                    alpha=node.BALANCE_ALPHA,
                    lr=node.BALANCE_LR,
                ),
                mask_weight=node.INSTANCES.LOSS_WEIGHT,
                max_positives=node.INSTANCES.MAX_POSITIVES,
            )
        except ValueError as error:
            raise UserError(f"MODEL.BLITZNET or DISTILL: {error}") from None

    @property
    def terms(self) -> dict[str, Callable[..., dict[str, Tensor]]]:
        """Task → its term, in the order in which the losses are told."""
        return {
            "segmentation": lambda outputs, targets, *_: {
                "loss_seg": self.segmentation(outputs["sem_seg"], targets)
            },
            "detection": self.detection,
            "instance_segmentation": self.instance_segmentation,
        }

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
                (B, A, 4); ``sem_seg`` (B, K, h, w) logits, background first; ``prototypes`` (B, P, h, w) and
                ``mask_coefficients`` (B, A, P).
            targets: one an image, on the device of the outputs.
            anchors: (A, 4) absolute xyxy. grid: their layout, for speed; masks of boxes need it.

        Returns:
            ``loss_seg``; ``loss_cls`` and ``loss_box``; ``loss_mask``, of the tasks in ``outputs``: finite scalars, 0
            with a gradient of zeros where no image has a label for the task; and what the balance adds.
        """
        losses = {}
        for task, term in self.terms.items():
            if NEEDS[task] in outputs:
                for name, loss in term(outputs, targets, anchors, grid).items():
                    losses[name] = self.weight_of[name] * loss
        return self.balance(losses)
