"""The soft-label loss of every pixel, with all its options, for those who weigh and average pixels themselves.

N: images; K: dense classes, background first; H, W: size of the logits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .soft_label import CONFIDENCES, TARGET_FORMS, pixel_confidence, soft_label_map
from .top_k import TAILS


class SoftPixels(nn.Module):
    """Cross-entropy of each pixel against a teacher, and how much the pixel counts.

    Args:
        soft_target, temperature: form of the teacher's output and T, see ``soft_label_cross_entropy``.
        temper_student, top_k, tail: see ``soft_label_map``.
        confidence: weight of each pixel of the teacher, see ``pixel_confidence``.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        *,
        soft_target: str = "probabilities",
        temperature: float = 1.0,
        temper_student: bool = False,
        confidence: str = "none",
        top_k: int = 0,
        tail: str = "bucket",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("TARGET", soft_target, TARGET_FORMS),
            ("CONFIDENCE", confidence, CONFIDENCES),
            ("TAIL", tail, TAILS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not temperature > 0:
            raise ValueError(f"TEMPERATURE must be positive, got {temperature}")
        if top_k < 0:
            raise ValueError(f"TOP_K must not be negative, got {top_k}")
        self.soft_target = soft_target
        self.temperature = temperature
        self.temper_student = temper_student
        self.confidence = confidence
        self.top_k = top_k
        self.tail = tail

    @staticmethod
    def options(node: Any) -> dict[str, Any]:
        """The arguments from ``cfg.DISTILL.SEGMENTATION``."""
        return {
            "soft_target": node.TARGET,
            "temperature": node.TEMPERATURE,
            "temper_student": node.TEMPER_STUDENT,
            "confidence": node.CONFIDENCE,
            "top_k": node.TOP_K,
            "tail": node.TAIL,
        }

    def forward(self, logits: Tensor, soft: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W) losses times weights, and (N, H, W) weights (bool where all are alike); 0 where not valid.

        Args:
            logits: (N, K, H, W), the student's. soft: likewise, the teacher's. valid: (N, H, W) bool.
        """
        loss = soft_label_map(
            logits,
            soft,
            temperature=self.temperature,
            target_is=self.soft_target,
            valid=valid,
            temper_student=self.temper_student,
            top_k=self.top_k,
            tail=self.tail,
        )
        if self.confidence == "none":
            return loss, valid
        weight = pixel_confidence(soft, target_is=self.soft_target, confidence=self.confidence) * valid
        return loss * weight, weight
