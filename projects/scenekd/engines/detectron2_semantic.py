"""detectron2's Panoptic-FPN semantic head with a teacher's soft labels, and the models that hand them over.

detectron2's models give their semantic head masks alone; these give it the dictionaries of the batch too, as
:class:`.detectron2_data.SceneKDDatasetMapper` makes them.

N: images; K: dense classes, background first; H, W: size of the padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    GeneralizedRCNN,
    PanopticFPN,
    SemanticSegmentor,
)
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.postprocessing import sem_seg_postprocess
from fvcore.common.config import CfgNode
from torch import Tensor

from ..errors import UserError
from ..losses.reduce import safe_count, zero_loss
from ..losses.soft_pixels import SoftPixels
from ..sample import SourceWeights

Item = dict[str, Any]


@SEM_SEG_HEADS_REGISTRY.register()
class SceneKDSemSegFPNHead(SemSegFPNHead):
    """detectron2's head: cross-entropy on images with a mask, soft-label cross-entropy on those with a teacher.

    Each is the mean over its valid pixels, an image's pixels counted by its weight for the source; the two are added
    by the sources' parts in all weights of the batch. Images without a mask are left out of the first.

    Args:
        soft_pixels: loss of the images with soft labels; None: masks alone, as detectron2's.
        input_shape, others: of detectron2's SemSegFPNHead.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        soft_pixels: SoftPixels | None = None,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, **options)
        self.soft_pixels = soft_pixels
        self.items: list[Item] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """detectron2's arguments, and the soft loss where ``DISTILL.SEGMENTATION.POLICY`` takes a teacher.

        Raises:
            UserError: an option of ``DISTILL.SEGMENTATION`` is outside its range.
        """
        arguments: dict[str, Any] = super().from_config(cfg, input_shape)
        node = cfg.DISTILL.SEGMENTATION if "DISTILL" in cfg else None
        if node is not None and node.POLICY != "ground_truth":
            if arguments["num_classes"] < node.TOP_K:
                raise UserError(
                    f"DISTILL.SEGMENTATION.TOP_K: {node.TOP_K} of {arguments['num_classes']} dense classes"
                )
            try:
                arguments["soft_pixels"] = SoftPixels(**SoftPixels.options(node))
            except ValueError as error:
                raise UserError(f"DISTILL.SEGMENTATION: {error}") from None
        return arguments

    @contextmanager
    def learning_from(self, items: list[Item] | None) -> Iterator[None]:
        """Meanwhile the losses are those of these images, in the order of the batch."""
        self.items = items
        try:
            yield
        finally:
            self.items = None

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss_sem_seg`` and, with a teacher, ``loss_sem_seg_soft``.

        Args:
            predictions: (N, K, h, w) logits at the head's stride. targets: (N, H, W) masks, all void where missing.

        Raises:
            UserError: a teacher's part, but the model handed over no soft labels; or their classes are not the head's.
        """
        if self.items is None:
            if self.soft_pixels is not None:
                raise UserError(
                    "MODEL.META_ARCHITECTURE: it hands the semantic head no soft labels; choose "
                    "SceneKDSemanticSegmentor or SceneKDPanopticFPN"
                )
            return super().losses(predictions, targets)
        weights = [_weights(item) for item in self.items]
        by_mask, by_teacher = predictions.new_tensor(weights, dtype=torch.float32).T
        total = safe_count(by_mask.sum() + by_teacher.sum())
        losses = {"loss_sem_seg": by_mask.sum() / total * self._hard(predictions, targets, by_mask)}
        if self.soft_pixels is not None:
            losses["loss_sem_seg_soft"] = by_teacher.sum() / total * self._soft(predictions, by_teacher)
        return losses

    def _hard(self, predictions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """detectron2's mean over the masks' pixels; of images that weigh alike at once, as is the rule."""
        amounts = weights * (targets != self.ignore_value).sum(dim=(1, 2))
        groups = [(weights == value) & (amounts > 0) for value in weights[amounts > 0].unique()]
        means = [
            super(SceneKDSemSegFPNHead, self).losses(predictions[g], targets[g])["loss_sem_seg"]
            for g in groups
        ]
        if len(groups) < 2:  # then not even rounding differs from detectron2's
            return means[0] if means else zero_loss(predictions)
        shares = torch.stack([amounts[rows].sum() for rows in groups]) / amounts.sum()
        return (shares * torch.stack(means)).sum()

    def _soft(self, predictions: Tensor, weights: Tensor) -> Tensor:
        """The mean over the pixels that the teachers of the batch show, each by its weight."""
        assert self.soft_pixels is not None and self.items is not None
        chosen = weights.nonzero()[:, 0]
        if not len(chosen):
            return zero_loss(predictions)
        logits = F.interpolate(
            predictions[chosen].float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )
        items = [self.items[i] for i in chosen.tolist()]
        soft, valid = (
            torch.stack([_padded(item[key], logits) for item in items])
            for key in ("soft_sem_seg", "soft_sem_seg_valid")
        )
        if soft.shape != logits.shape:
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES: {logits.shape[1]}, but the soft labels have {soft.shape[1]} "
                "classes, background among them"
            )
        loss, counted = self.soft_pixels(logits, soft, valid)
        weight = weights[chosen]
        count = (weight * counted.sum(dim=(1, 2))).sum()
        return self.loss_weight * (weight * loss.sum(dim=(1, 2))).sum() / safe_count(count)


def _weights(item: Item) -> tuple[float, float]:
    """(weight of the mask, weight of the soft labels) of one image; detectron2's own mapper gives masks alone."""
    has_mask = bool(item.get("has_sem_seg", "sem_seg" in item))
    weights = item.get("weights", SourceWeights())
    return weights.segmentation_gt * has_mask, weights.segmentation_teacher * ("soft_sem_seg" in item)


def _padded(values: Tensor, like: Tensor) -> Tensor:
    """Zeros, and False, to the right and below, up to the size of ``like``, on its device."""
    height, width = like.shape[-2:]
    return F.pad(values.to(like.device), (0, width - values.shape[-1], 0, height - values.shape[-2]))


class _HandsOver:
    """A model of detectron2's that tells its semantic head what it knows of the batch."""

    training: bool
    sem_seg_head: Any

    def forward(self, batched_inputs: list[Item]) -> Any:
        """As the model's."""
        if not (self.training and isinstance(self.sem_seg_head, SceneKDSemSegFPNHead)):
            return super().forward(batched_inputs)  # type: ignore[misc]
        with self.sem_seg_head.learning_from(batched_inputs):
            return super().forward(batched_inputs)  # type: ignore[misc]


@META_ARCH_REGISTRY.register()
class SceneKDSemanticSegmentor(_HandsOver, SemanticSegmentor):
    """detectron2's SemanticSegmentor that hands soft labels to :class:`SceneKDSemSegFPNHead`."""


@META_ARCH_REGISTRY.register()
class SceneKDPanopticFPN(_HandsOver, PanopticFPN):
    """detectron2's Panoptic FPN that hands soft labels to :class:`SceneKDSemSegFPNHead`.

    With MODEL.MASK_ON False it is a detector with a semantic head: it gives boxes and ``sem_seg``, no ``panoptic_seg``.
    """

    def inference(self, batched_inputs: list[Item], do_postprocess: bool = True) -> Any:
        """As detectron2's."""
        if self.roi_heads.mask_on or not do_postprocess:
            return super().inference(batched_inputs, do_postprocess)
        found, dense = super().inference(batched_inputs, do_postprocess=False)
        sizes = [tuple(item["image"].shape[-2:]) for item in batched_inputs]
        results = GeneralizedRCNN._postprocess(found, batched_inputs, sizes)
        for result, logits, item, size in zip(results, dense, batched_inputs, sizes):
            height, width = item.get("height", size[0]), item.get("width", size[1])
            result["sem_seg"] = sem_seg_postprocess(logits, size, height, width)
        return results
