"""The segmentation loss of a batch, from ground truth, a teacher, or both.

B: images; K: dense classes, background first; h, w: size of the logits; n: images that learn from a source.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.losses.reduce import Reduce, at_least_float32, mean_over_processes, safe_count, zero_loss
from scenekd.losses.soft_label import CONFIDENCES, TARGET_FORMS, pixel_confidence, soft_label_map
from scenekd.losses.top_k import TAILS
from scenekd.sample import IGNORE_INDEX, Target

from .sources import weigh_sources

VOIDS = ("none", "padding", "labels")


class SegmentationTerm(nn.Module):
    """Mean cross-entropy over valid pixels against masks and against soft labels; see :mod:`.criterion`.

    Args:
        soft_target, temperature: form of ``Target.soft_seg`` and T, see ``soft_label_cross_entropy``.
        temper_student, top_k, tail: see ``soft_label_map``.
        confidence: weight of each pixel of the teacher, see ``pixel_confidence``; the loss is the weighted mean.
        void: pixels of the teacher that do not count: ``none`` (the thesis's: padding asks for what an empty array
            asks for), ``padding`` (what shows no image), ``labels`` (those, and the void pixels of a mask that exists).
        reduce: averages counts over processes.

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
        void: str = "padding",
        reduce: Reduce = mean_over_processes,
    ) -> None:
        super().__init__()
        if soft_target not in TARGET_FORMS:
            raise ValueError(f"TARGET must be one of {', '.join(TARGET_FORMS)}, got {soft_target!r}")
        if not temperature > 0:
            raise ValueError(f"TEMPERATURE must be positive, got {temperature}")
        for name, value, known in (
            ("CONFIDENCE", confidence, CONFIDENCES),
            ("TAIL", tail, TAILS),
            ("VOID", void, VOIDS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if top_k < 0:
            raise ValueError(f"TOP_K must not be negative, got {top_k}")
        self.soft_target = soft_target
        self.temperature = temperature
        self.temper_student = temper_student
        self.confidence = confidence
        self.top_k = top_k
        self.tail = tail
        self.void = void
        self.reduce = reduce

    def forward(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        """A scalar.

        Args:
            logits: (B, K, h, w), background first. targets: one an image.
        """
        ground_truth = [t.weights.segmentation_gt * (t.sem_seg is not None) for t in targets]
        teacher = [t.weights.segmentation_teacher * (t.soft_seg is not None) for t in targets]
        weights, shares = weigh_sources(ground_truth, teacher, logits, self.reduce)
        total = []
        for pixel_loss, weight in zip((_hard_pixels, self._soft_pixels), weights):
            chosen = weight.nonzero().squeeze(1)
            if not len(chosen):
                self.reduce(weight.sum())  # the other processes wait for it
                total.append(zero_loss(logits))
                continue
            loss, counted = pixel_loss(logits[chosen], [targets[i] for i in chosen.tolist()])
            count = self.reduce((weight[chosen] * counted.sum(dim=(1, 2))).sum())
            total.append((weight[chosen] * loss.sum(dim=(1, 2))).sum() / safe_count(count))
        return (shares * torch.stack(total)).sum()

    def _soft_pixels(self, logits: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Cross-entropy against the teacher's soft labels (n, h, w), 0 where void, and how much a pixel counts."""
        size = logits.shape[-2:]
        soft = _resize(torch.stack([_present(t.soft_seg) for t in targets]), size)
        valid = self._valid(targets, size)
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

    def _valid(self, targets: Sequence[Target], size: Sequence[int]) -> Tensor:
        """The pixels that count, (n, h, w) bool."""
        everywhere = [torch.ones_like(_present(t.soft_seg)[0], dtype=torch.bool) for t in targets]
        shown = [all_ if t.soft_valid is None else t.soft_valid for t, all_ in zip(targets, everywhere)]
        seen = everywhere if self.void == "none" else shown
        valid = _resize(torch.stack(seen)[:, None].float(), size)[:, 0] > 0
        if self.void == "labels":
            for pixels, target in zip(valid, targets):
                if target.sem_seg is not None:
                    pixels &= _resize(target.sem_seg[None, None].float(), size)[0, 0] != IGNORE_INDEX
        return valid


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
