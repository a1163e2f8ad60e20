"""The segmentation loss of a batch, from ground truth, a teacher, or both.

B: images; K: dense classes, background first; h, w: size of the logits; n: images that learn from a source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.losses.reduce import Reduce, at_least_float32, mean_over_processes, safe_count, zero_loss
from scenekd.losses.soft_pixels import SoftPixels
from scenekd.sample import IGNORE_INDEX, Target

from .sources import present, source_losses, weigh_sources

VOIDS = ("none", "padding", "labels")


class SegmentationTerm(nn.Module):
    """Mean cross-entropy over valid pixels against masks and against soft labels; see :mod:`.criterion`.

    Args:
        void: pixels of the teacher that do not count: ``none`` (the thesis's: padding asks for what an empty array
            asks for), ``padding`` (what shows no image), ``labels`` (those, and the void pixels of a mask that exists).
        reduce: averages counts over processes.
        soft: of :class:`scenekd.losses.soft_pixels.SoftPixels`; with a confidence the loss is the weighted mean.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, *, void: str = "padding", reduce: Reduce = mean_over_processes, **soft: Any) -> None:
        super().__init__()
        if void not in VOIDS:
            raise ValueError(f"VOID must be one of {', '.join(VOIDS)}, got {void!r}")
        self.soft_pixels = SoftPixels(**soft)
        self.void = void
        self.reduce = reduce
        self._logged: dict[str, Tensor] = {}

    def forward(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        """A scalar.

        Args:
            logits: (B, K, h, w), background first. targets: one an image.
        """
        weights, shares = weigh_sources("segmentation", targets, logits, self.reduce)
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
        self._logged = source_losses("segmentation", total, targets)
        return (shares * torch.stack(total)).sum()

    def log_values(self) -> dict[str, Tensor]:
        """The last batch's loss from each source alone."""
        return self._logged

    def _soft_pixels(self, logits: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Cross-entropy against the teacher's soft labels (n, h, w), 0 where void, and how much a pixel counts."""
        size = logits.shape[-2:]
        soft = _resize(torch.stack([present(t.soft_seg) for t in targets]), size)
        weighted: tuple[Tensor, Tensor] = self.soft_pixels(logits, soft, self._valid(targets, size))
        return weighted

    def _valid(self, targets: Sequence[Target], size: Sequence[int]) -> Tensor:
        """The pixels that count, (n, h, w) bool."""
        everywhere = [torch.ones_like(present(t.soft_seg)[0], dtype=torch.bool) for t in targets]
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
    labels = torch.stack([present(t.sem_seg) for t in targets])
    labels = _resize(labels[:, None].float(), logits.shape[-2:])[:, 0].long()
    loss = F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE_INDEX, reduction="none")
    return loss, labels != IGNORE_INDEX


def _resize(values: Tensor, size: Sequence[int]) -> Tensor:
    """(n, ·, H, W) → (n, ·, h, w), each pixel that of the nearest centre."""
    if values.shape[-2:] == tuple(size):
        return values
    return F.interpolate(values, size=tuple(size), mode="nearest-exact")
