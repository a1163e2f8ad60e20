"""Cross-entropy against a teacher's dense soft labels.

N: images; K: dense classes, background first; H, W: height and width of the logits.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import register
from .reduce import at_least_float32, safe_count
from .top_k import TAILS, bucket_cross_entropy, spread_tail

TARGET_FORMS = ("probabilities", "logits", "scores")
# How far interpolation and storage may push a probability or a score out of 0…1.
RANGE_TOLERANCE = 1e-2


def soft_target(target: Tensor, *, temperature: float, target_is: str) -> Tensor:
    """What the teacher's output asks for: a distribution over axis 1, shaped like ``target`` (N, K, …).

    ``logits``: softmax(z / T). ``probabilities``: p^(1/T), renormalised, which is the same for p =
    softmax(z); at T = 1 they are taken as they are. ``scores``: softmax(s / T) of raw confidences in 0…1, the
    thesis's form.

    Raises:
        ValueError: an unknown form, a temperature that is not positive, a probability or score outside 0…1.
    """
    if target_is not in TARGET_FORMS:
        raise ValueError(f"target_is must be one of {TARGET_FORMS}, got {target_is!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    target = at_least_float32(target.detach())
    if target_is != "logits" and target.numel():
        low, high = target.aminmax()
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            raise ValueError(
                f"{target_is} must be in 0…1, got {low.item():g}…{high.item():g}; are they logits?"
            )
    if target_is != "probabilities":
        return (target / temperature).softmax(dim=1)
    if temperature == 1:
        return target
    powered = target.clamp(min=0).pow(1 / temperature)
    return powered / safe_count(powered.sum(dim=1, keepdim=True))


def soft_label_map(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    target_is: str = "probabilities",
    valid: Tensor | None = None,
    temper_student: bool = False,
    top_k: int = 0,
    tail: str = "bucket",
) -> Tensor:
    """Cross-entropy of every pixel, (N, H, W), 0 where not ``valid``.

    Args:
        logits, target, temperature, target_is, valid: as in :func:`soft_label_cross_entropy`.
        temper_student: divide the student's logits by T too and multiply by T², so that the gradient keeps its size
            as T grows (Hinton, Vinyals and Dean 2015, section 2).
        top_k: only that many of the teacher's likeliest classes are kept in each pixel; 0: all.
        tail: what the others become, ``bucket`` (:func:`.top_k.bucket_cross_entropy`) or ``spread``.
    """
    if logits.ndim != 4 or logits.shape != target.shape:
        raise ValueError(
            f"logits and target must be (N, K, H, W), got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if valid is not None:
        if valid.dtype != torch.bool or valid.shape != (*logits.shape[:1], *logits.shape[2:]):
            raise ValueError(f"valid must be bool (N, H, W), got {valid.dtype} {tuple(valid.shape)}")
        # What stands in an invalid pixel may be anything.
        target = target.masked_fill(~valid[:, None], 0)
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {TAILS}, got {tail!r}")
    wanted = soft_target(target, temperature=temperature, target_is=target_is)
    logits = at_least_float32(logits)
    if temper_student:
        logits = logits / temperature
    if top_k and tail == "spread":
        wanted = spread_tail(wanted, top_k)
    if top_k and tail == "bucket":
        loss = bucket_cross_entropy(logits, wanted, top_k)
    else:
        loss = -(wanted * F.log_softmax(logits, dim=1)).sum(dim=1)
    if temper_student:
        loss = loss * temperature**2
    return loss if valid is None else loss.masked_fill(~valid, 0)


CONFIDENCES = ("none", "max", "entropy")


def pixel_confidence(target: Tensor, *, target_is: str, confidence: str) -> Tensor:
    """How sure the teacher is of each pixel, (N, H, W) in 0…1, at T = 1: the weight of the pixel in the loss.

    ``max``: its highest probability; of ``scores`` the highest score, so that a pixel without a box and without an
    explicit background weighs nothing. ``entropy``: 1 − H(p) / log K. ``none``: 1 everywhere. Ours; weighing a
    detector's boxes by their confidence is the thesis's (section 3.2), and this is the same for pixels.

    Args:
        target: (N, K, H, W). target_is: its form, see :func:`soft_target`.

    Raises:
        ValueError: an unknown form or confidence.
    """
    if confidence not in CONFIDENCES:
        raise ValueError(f"confidence must be one of {CONFIDENCES}, got {confidence!r}")
    if confidence == "none":
        return at_least_float32(target[:, 0]).new_ones(target[:, 0].shape)
    if target_is == "scores" and confidence == "max":
        return at_least_float32(target.detach()).amax(dim=1).clamp(0, 1)
    p = soft_target(target, temperature=1.0, target_is=target_is)
    if confidence == "max":
        return p.amax(dim=1).clamp(0, 1)
    return (1 + torch.special.xlogy(p, p).sum(dim=1) / math.log(p.shape[1])).clamp(0, 1)


def soft_label_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    target_is: str = "probabilities",
    valid: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the student against the teacher over the valid pixels; a scalar.

    Only the target is tempered: the student's logits are not divided by T, and there is no factor T².

    Args:
        logits: (N, K, H, W), the student's.
        target: (N, K, H, W), the teacher's; no gradient flows into it.
        temperature: T > 0.
        target_is: ``probabilities``, ``logits`` or ``scores``, see :func:`soft_target`.
        valid: (N, H, W) bool, the pixels that count; None for all. None valid: 0, with a gradient of zeros.

    Raises:
        ValueError: shapes differ, or an argument is outside its range.
    """
    loss = soft_label_map(logits, target, temperature=temperature, target_is=target_is, valid=valid)
    count = loss.new_tensor(loss.numel()) if valid is None else valid.sum().to(loss)
    return loss.sum() / safe_count(count)


@register("loss", "SoftLabelCrossEntropy")
class SoftLabelCrossEntropy(nn.Module):
    """:func:`soft_label_cross_entropy` as a module, times ``loss_weight``.

    With ``scores`` it is the thesis's segmentation loss: a softmax over 21 slots of box confidences, not of
    logits. The target on a pixel's class is e^(s/T) / (e^(s/T) + 20), which is flat unless T is low:

    ========== ======= ======= =====
    T          s = 1   s = .9  s = 0
    ========== ======= ======= =====
    .25        .732    .647    .048
    .4         .379    .322    .048
    1          .120    .110    .048
    ========== ======= ======= =====

    A pixel without a box asks for the uniform 1/21, unless the array has an explicit background.

    Args:
        temperature, target_is: as in :func:`soft_label_cross_entropy`.
        loss_weight: factor of the result.
    """

    def __init__(
        self, temperature: float = 1.0, target_is: str = "probabilities", loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        if target_is not in TARGET_FORMS or not temperature > 0:
            raise ValueError(f"target_is must be one of {TARGET_FORMS} and temperature positive")
        self.temperature = temperature
        self.target_is = target_is
        self.loss_weight = loss_weight

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        loss = soft_label_cross_entropy(
            logits, target, temperature=self.temperature, target_is=self.target_is, valid=valid
        )
        return self.loss_weight * loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, target_is={self.target_is!r}, loss_weight={self.loss_weight}"
