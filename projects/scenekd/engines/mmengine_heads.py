"""The losses of MMSegmentation's decode heads where some masks are missing and teachers speak.

N: images; m: images with a mask; K: dense classes; H, W: size of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from torch import Tensor, nn

from ..errors import UserError
from ..losses.reduce import zero_loss
from .mmengine_loss import DistillationLoss
from .mmengine_targets import Masks, SoftTargets, labels_of


def check_head(head: nn.Module) -> None:
    """Refuse a head whose losses are not those of MMSegmentation's BaseDecodeHead.

    Raises:
        UserError: it computes its losses in its own way, or has one channel for two classes and a soft loss.
    """
    name = type(head).__name__
    for method in ("loss", "loss_by_feat"):
        if getattr(type(head), method, None) is not getattr(BaseDecodeHead, method):
            raise UserError(
                f"SceneKDEncoderDecoder: {name} has a {method} of its own, into which soft targets cannot be brought; "
                "use a head with BaseDecodeHead's, such as FCNHead, PSPHead, DepthwiseSeparableASPPHead, SegformerHead"
            )
    if any(isinstance(loss, DistillationLoss) for loss in losses_of(head)):
        if head.out_channels != head.num_classes:
            raise UserError(f"SceneKDEncoderDecoder: {name}: soft losses need out_channels = num_classes")
        if head.sampler is not None and getattr(head.sampler, "thresh", 0) is None:
            raise UserError(
                f"SceneKDEncoderDecoder: {name}: OHEMPixelSampler asks every loss where it has no thresh, soft losses "
                "too; give it thresh=0.7"
            )


def losses_of(head: nn.Module) -> Sequence[nn.Module]:
    """The modules of ``loss_decode``, which may be one or a list."""
    losses = head.loss_decode
    return list(losses) if isinstance(losses, nn.ModuleList) else [losses]  # type: ignore[list-item]


def head_losses(
    head: Any, features: Sequence[Tensor], masks: Masks, soft: SoftTargets | None, size: tuple[int, int]
) -> tuple[dict[str, Tensor], Tensor]:
    """What ``head.loss`` gives, with the losses of each source over the images that have it; and the logits.

    Losses of masks see the images with a mask: where all have one of weight 1, they are MMSegmentation's to the bit.
    Otherwise they are Σ_w w · m_w / m · L(the m_w images of weight w). Distillation losses see the images with a
    teacher's output. A head's pixel sampler chooses by the masks, so it serves the former alone.

    Returns:
        The losses and, where there is a mask, ``acc_seg``; (N, K, H, W) logits.

    Raises:
        UserError: the teacher has other classes, or its output another form than a loss takes.
    """
    logits = resize(head.forward(features), size=size, mode="bilinear", align_corners=head.align_corners)
    labelled = _take(logits, masks.images)
    pixel_weight = None
    if head.sampler is not None and masks.images:
        pixel_weight = head.sampler.sample(labelled, masks.labels[:, None])
    losses: dict[str, Tensor] = {}
    for loss in losses_of(head):
        name: str = loss.loss_name  # type: ignore[assignment]
        if isinstance(loss, DistillationLoss):
            value = soft_loss(loss, logits, soft, masks, head.ignore_index)
        else:
            value = _hard_loss(loss, labelled, masks, pixel_weight, head.ignore_index)
        losses[name] = losses[name] + value if name in losses else value
    if masks.images:
        losses["acc_seg"] = accuracy(labelled, masks.labels, ignore_index=head.ignore_index)
    return losses, logits


def soft_loss(
    loss: DistillationLoss, logits: Tensor, soft: SoftTargets | None, masks: Masks, ignore_index: int = 255
) -> Tensor:
    """A distillation loss of a batch; 0 with a gradient of zeros where no image has a teacher's output.

    Args:
        ignore_index: void in the masks, for a loss that takes labels.

    Raises:
        UserError: the teacher has other classes, or its output another form than the loss takes.
    """
    if soft is None:
        return zero_loss(logits)
    name = type(loss).__name__
    if soft.values.shape[1] != logits.shape[1]:
        raise UserError(
            f"{name}: the teacher's output has {soft.values.shape[1]} dense classes, the logits {logits.shape[1]}; "
            "check num_classes of the head and classes of SceneKDLoadTeacher"
        )
    if soft.form and soft.form != loss.target_is:
        raise UserError(
            f"{name}: takes {loss.target_is}, the pipeline gives {soft.form}; set TARGET={loss.target_is!r} in "
            "SceneKDLoadTeacher's distill=dict(SEGMENTATION=...)"
        )
    values = soft.values.to(logits.device)
    labels = None
    if loss.takes_labels:
        labels = _take(labels_of(masks, len(logits), ignore_index).to(logits.device), soft.images)
    result: Tensor = loss(
        _take(logits, soft.images),
        values,
        soft.valid.to(logits.device),
        soft.weights.to(values),
        labels=labels,
    )
    return result


def _hard_loss(
    loss: nn.Module, logits: Tensor, masks: Masks, pixel_weight: Tensor | None, ignore_index: int
) -> Tensor:
    """A loss of masks; ``logits`` are those of the m images with one."""
    if not masks.images:
        return zero_loss(logits)
    parts = []
    # Not every loss of MMSegmentation heeds weights of pixels, so images of one weight go together.
    for weight in sorted(set(masks.weights)):
        chosen = [i for i, each in enumerate(masks.weights) if each == weight]
        part = loss(
            _take(logits, chosen),
            _take(masks.labels, chosen),
            weight=None if pixel_weight is None else _take(pixel_weight, chosen),
            ignore_index=ignore_index,
        )
        parts.append(weight * (len(chosen) / len(masks.images)) * part)
    return torch.stack(parts).sum()


def _take(values: Tensor, chosen: list[int]) -> Tensor:
    """The rows of some images; the tensor itself where they are all."""
    return values if len(chosen) == len(values) else values[chosen]
