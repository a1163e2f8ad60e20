"""Losses against a teacher's dense output, for ``loss_decode`` and ``distill`` of SceneKDEncoderDecoder.

A new one is a subclass of :class:`DistillationLoss` with :meth:`~DistillationLoss.sums`, or, where each pixel has a
loss of its own, of :class:`PixelDistillationLoss` with :meth:`~PixelDistillationLoss.pixels`; registered as a ``loss``.
Losses of whole maps and of labels are in :mod:`.mmengine_loss_maps`.

n: images that have a target; K: dense classes; H, W: size of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..losses import soft_label
from ..losses.distill import DIRECTIONS, REDUCTIONS, divergence_map
from ..losses.positions import valid_positions
from ..losses.reduce import safe_count
from ..losses.top_k import TAILS
from ..registry import register


class DistillationLoss(nn.Module):
    """A loss between a student's logits and a teacher's dense output.

    Attributes:
        target_is: the form of the teacher's output that it takes: logits, probabilities or scores.
        loss_weight: factor of the result.
        loss_name: key in the dictionary of losses; it must start with ``loss``.
        takes_labels: whether :meth:`sums` is also given ``labels``, (n, H, W) with 255 where there is none, and pixels
            without a label do not count.
    """

    target_is = "logits"
    takes_labels = False
    loss_weight: float
    loss_name: str

    def __init__(self, loss_weight: float = 1.0, loss_name: str = "loss_kd") -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def sums(self, logits: Tensor, target: Tensor, valid: Tensor, **labels: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) each image's loss, summed over what counts in it, and (n,) how much counts.

        Args:
            logits, target: (n, K, H, W), the student's and the teacher's; what stands in an invalid pixel of the
                latter may be anything.
            valid: (n, H, W) bool, the pixels that count.
        """
        raise NotImplementedError

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        valid: Tensor | None = None,
        weight: Tensor | None = None,
        labels: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Σ weight · sum / Σ count over the images, a scalar; nothing valid: 0 with a gradient of zeros.

        Args:
            logits, target: (n, K, H, W).
            valid: (n, H, W) bool; None for all.
            weight: (n,), of the images; None for 1.
            labels: (n, H, W), 255 where there is none; for a loss that takes them.

        Raises:
            UserError: masks are given instead of a teacher's output, as the decode heads of a plain EncoderDecoder do.
        """
        if not target.is_floating_point():
            raise UserError(
                f"{type(self).__name__}: the segmentor hands it masks, no teacher's output; "
                "set the model's type to 'SceneKDEncoderDecoder'"
            )
        if valid is None:
            valid = torch.ones_like(logits[:, 0], dtype=torch.bool)
        if self.takes_labels:
            assert labels is not None
            valid = valid & valid_positions(labels)
            total, count = self.sums(logits, target, valid, labels=labels)
        else:
            total, count = self.sums(logits, target, valid)
        if weight is not None:
            total = total * weight
        return self.loss_weight * total.sum() / safe_count(count.sum().to(total))


class PixelDistillationLoss(DistillationLoss):
    """A distillation loss that is a mean over pixels."""

    def pixels(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """(n, H, W): the loss of each pixel, 0 where not valid. Arguments as in :meth:`sums`."""
        raise NotImplementedError

    def sums(self, logits: Tensor, target: Tensor, valid: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels' losses and their number."""
        return self.pixels(logits, target, valid).sum(dim=(1, 2)), valid.sum(dim=(1, 2))


class SoftLabelCrossEntropy(DistillationLoss, soft_label.SoftLabelCrossEntropy):
    __doc__ = f"""{soft_label.SoftLabelCrossEntropy.__doc__}
        loss_name: key in the dictionary of losses; it must start with ``loss``.
        temper_student, top_k, tail: as in :func:`scenekd.losses.soft_label.soft_label_map`.
        confidence: weight of each pixel, see :func:`scenekd.losses.soft_label.pixel_confidence`; the loss is the
            weighted mean.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        target_is: str = "probabilities",
        loss_weight: float = 1.0,
        loss_name: str = "loss_soft",
        temper_student: bool = False,
        confidence: str = "none",
        top_k: int = 0,
        tail: str = "bucket",
    ) -> None:
        soft_label.SoftLabelCrossEntropy.__init__(self, temperature, target_is, loss_weight)
        if confidence not in soft_label.CONFIDENCES or tail not in TAILS or top_k < 0:
            raise ValueError(
                f"SoftLabelCrossEntropy: confidence must be one of {', '.join(soft_label.CONFIDENCES)}, tail one of "
                f"{', '.join(TAILS)}, top_k not negative; got {confidence!r}, {tail!r}, {top_k}"
            )
        self.loss_name = loss_name
        self.confidence = confidence
        self.options: dict[str, Any] = {"temper_student": temper_student, "top_k": top_k, "tail": tail}

    def sums(self, logits: Tensor, target: Tensor, valid: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels' cross-entropies and their number, both weighed by the teacher's confidence."""
        target = target.masked_fill(~valid[:, None], 0)
        loss = soft_label.soft_label_map(
            logits,
            target,
            temperature=self.temperature,
            target_is=self.target_is,
            valid=valid,
            **self.options,
        )
        weight = valid * soft_label.pixel_confidence(
            target, target_is=self.target_is, confidence=self.confidence
        )
        return (loss * weight).sum(dim=(1, 2)), weight.sum(dim=(1, 2))

    def extra_repr(self) -> str:
        options = {"confidence": self.confidence, **self.options}
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in options.items())])


@register("loss", "SceneKDHintonLoss")
class SceneKDHintonLoss(PixelDistillationLoss):
    """α · T² · KL of the softmax at temperature T, mean over pixels (Hinton et al. 2015, section 2).

    It is :func:`scenekd.losses.distill.hinton_kd` without labels: a CrossEntropyLoss beside it in ``loss_decode``
    learns from the masks, and 1 − α is that loss's ``loss_weight``.

    Args:
        temperature: T > 0.
        alpha: in 0…1.
        direction: teacher_student is KL(teacher‖student), Hinton's; student_teacher the reverse.
        reduction: elements divides by the number of classes, too, see :func:`scenekd.losses.distill.hinton_kd`.
        loss_weight, loss_name: see :class:`DistillationLoss`.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 1.0,
        direction: str = "teacher_student",
        loss_weight: float = 1.0,
        loss_name: str = "loss_kd",
        reduction: str = "positions",
    ) -> None:
        super().__init__(loss_weight, loss_name)
        known = direction in DIRECTIONS and reduction in REDUCTIONS
        if not temperature > 0 or not 0 <= alpha <= 1 or not known:
            raise ValueError(
                "SceneKDHintonLoss: temperature must be positive, alpha in 0…1, direction one of "
                f"{', '.join(DIRECTIONS)}, reduction one of {', '.join(REDUCTIONS)}; "
                f"got {temperature}, {alpha}, {direction!r}, {reduction!r}"
            )
        self.temperature, self.alpha = temperature, alpha
        self.direction, self.reduction = direction, reduction

    def pixels(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """The tempered divergence of each pixel."""
        divergence = divergence_map(
            logits,
            target.masked_fill(~valid[:, None], 0),
            temperature=self.temperature,
            direction=self.direction,
        )
        classes = logits.shape[1] if self.reduction == "elements" else 1
        return self.alpha * self.temperature**2 / classes * divergence.masked_fill(~valid, 0)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, alpha={self.alpha}, direction={self.direction!r}, "
            f"reduction={self.reduction!r}, loss_weight={self.loss_weight}"
        )
