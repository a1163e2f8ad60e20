"""The loss of one entry of a list on one batch, see :mod:`.distillation`.

N: images; C: classes; H, W: size of the labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UserError
from .attention import attention_transfer
from .channel_wise import channel_wise_kd
from .correlation import correlation_kd
from .decoupled import decoupled_kd
from .distill import label_cross_entropy, pixel_wise_kd, tempered_kl
from .distillation_options import Entry
from .pair_wise import pair_wise_kd
from .positions import IGNORE_INDEX, resized, resized_labels, valid_positions

PER_PIXEL = ("hinton", "pixel", "dkd", "dist")


@dataclass
class Batch:
    """What all entries share.

    Attributes:
        student, teacher: logits, (N, C, …) of any size. labels: (N, …). images, shown, labelled: as in
            :meth:`.distillation.DistillationLosses.forward`. iteration: from 0. ignore_index: of the labels.
    """

    student: Tensor
    teacher: Tensor | None
    labels: Tensor
    images: Tensor | None
    shown: Tensor | None
    labelled: Tensor | None
    iteration: int
    ignore_index: int = IGNORE_INDEX


@dataclass
class Pair:
    """What one entry compares: maps of one size; labels and bool ``valid`` at that size, None where all counts."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    valid: Tensor | None


def rank() -> int:
    """Of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def label_term(batch: Batch) -> Tensor:
    """Cross-entropy of the student's logits, at the size of the labels, with them."""
    logits = _at(batch.student, batch.labels)
    return label_cross_entropy(logits, batch.labels, ignore_index=batch.ignore_index)


def feature_pair(student: Tensor, teacher: Tensor, batch: Batch) -> Pair:
    """Features, the student's at the teacher's size."""
    return Pair(resized(student, teacher.shape[2:]), teacher.detach(), batch.labels, None)


def logit_pair(entry: Entry, batch: Batch) -> Pair:
    """Logits: at the size of the labels for the losses of pixels, else at the teacher's where that is smaller.

    Raises:
        UserError: the teacher's are missing, or they are of whole images and the loss is of maps.
    """
    student, teacher, labels, shown = batch.student, batch.teacher, batch.labels, batch.shown
    if teacher is None:
        raise UserError(f"{entry.where}: needs the teacher's logits, and there are none")
    if entry.kind in PER_PIXEL:
        student, teacher = _at(student, labels), _at(teacher, labels)
    elif student.ndim != 4:
        raise UserError(
            f"{entry.where}: compares maps, and the logits are of whole images; take hinton, dkd or dist"
        )
    else:
        # A teacher's saved output is as large as its image: the loss of maps must not cost that much more.
        height, width = (min(sides) for sides in zip(teacher.shape[2:], labels.shape[1:], strict=True))
        size = (height, width)
        student, teacher, labels = (
            resized(student, size),
            resized(teacher, size),
            resized_labels(labels, size),
        )
        shown = None if shown is None else resized_labels(shown, size)
    if shown is not None:
        labels = labels.masked_fill(~shown, batch.ignore_index)
    valid = shown
    if not entry.options.get("DISTILL_IGNORED"):
        valid = valid_positions(labels, ignore_index=batch.ignore_index)
        if batch.labelled is not None:  # where nobody could have called a pixel void
            unlabelled = ~batch.labelled.view(-1, *[1] * (valid.ndim - 1))
            valid = valid | (unlabelled if shown is None else unlabelled & shown)
    return Pair(student, teacher.detach(), labels, valid)


def _at(logits: Tensor, labels: Tensor) -> Tensor:
    return resized(logits, labels.shape[1:]) if logits.ndim == 4 else logits


def _hinton(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    """The schedule is of α, so that the cross-entropy does not fade with the teacher."""
    alpha = entry["ALPHA"] * share
    kl = tempered_kl(
        pair.student,
        pair.teacher,
        temperature=entry["TEMPERATURE"],
        direction=entry["DIRECTION"],
        reduction=entry["REDUCTION"],
        valid=pair.valid,
    )
    return alpha * kl + (1 - alpha) * label_term(batch)


def _pixel(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    return share * pixel_wise_kd(pair.student, pair.teacher, valid=pair.valid)


def _pair(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    return share * pair_wise_kd(
        pair.student, pair.teacher, scale=entry["SCALE"], grid=entry["GRID"], valid=pair.valid
    )


def _holistic(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    if batch.images is None:
        raise UserError(f"{entry.where}: needs the images of the batch; give images")
    value: Tensor = part(pair.student, pair.teacher, batch.images, valid=pair.valid)
    return share * value


def _cwd(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    student = pair.student if part is None else part(pair.student)
    return share * channel_wise_kd(student, pair.teacher, temperature=entry["TEMPERATURE"], valid=pair.valid)


def _dkd(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    options = {"temperature": entry["TEMPERATURE"], "alpha": entry["ALPHA"], "beta": entry["BETA"]}
    return share * decoupled_kd(
        pair.student, pair.teacher, pair.labels, ignore_index=batch.ignore_index, **options
    )


def _dist(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    return share * correlation_kd(
        pair.student,
        pair.teacher,
        temperature=entry["TEMPERATURE"],
        beta=entry["BETA"],
        gamma=entry["GAMMA"],
        valid=pair.valid,
        over=entry["OVER"],
    )


def _mgd(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    value: Tensor = part(pair.student, pair.teacher, iteration=batch.iteration, rank=rank())
    return share * value


def _at_loss(entry: Entry, pair: Pair, batch: Batch, part: Any, share: float) -> Tensor:
    return share * attention_transfer(pair.student, pair.teacher)


# The loss of a TYPE: entry, what it compares, the batch, its module or None, and its schedule's share in 0…1.
TERMS: dict[str, Callable[[Entry, Pair, Batch, nn.Module | None, float], Tensor]] = {
    "hinton": _hinton,
    "pixel": _pixel,
    "pair": _pair,
    "holistic": _holistic,
    "cwd": _cwd,
    "dkd": _dkd,
    "dist": _dist,
    "mgd": _mgd,
    "at": _at_loss,
}
