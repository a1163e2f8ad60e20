"""Cross-entropy against a teacher's dense soft labels.

N: images; K: dense classes, background first; H, W: height and width of the logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import register
from .reduce import at_least_float32, safe_count

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
) -> Tensor:
    """Cross-entropy of every pixel, (N, H, W), 0 where not ``valid``. Arguments as in
    :func:`soft_label_cross_entropy`."""
    if logits.ndim != 4 or logits.shape != target.shape:
        raise ValueError(
            f"logits and target must be (N, K, H, W), got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if valid is not None:
        if valid.dtype != torch.bool or valid.shape != (*logits.shape[:1], *logits.shape[2:]):
            raise ValueError(f"valid must be bool (N, H, W), got {valid.dtype} {tuple(valid.shape)}")
        # What stands in an invalid pixel may be anything.
        target = target.masked_fill(~valid[:, None], 0)
    wanted = soft_target(target, temperature=temperature, target_is=target_is)
    loss = -(wanted * F.log_softmax(at_least_float32(logits), dim=1)).sum(dim=1)
    return loss if valid is None else loss.masked_fill(~valid, 0)


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
