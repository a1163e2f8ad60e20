"""Any weighted sum of distillation losses between a student and a teacher, built from a list of mappings.

N: images; C: classes; H, W: size of the labels.

A map of the student's is brought to the size of the teacher's, bilinear, before they are compared. Losses that look
at each pixel (hinton, pixel, dkd, dist) bring both to the size of the labels; for those that look at a whole map
(pair, cwd, holistic) void is told by the nearest label. Feature losses see all positions: a layer's position sees much
more of the image than one label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .distillation_options import Entry, read_entries
from .distillation_terms import TERMS, Batch, feature_pair, label_term, logit_pair, rank
from .features import FeatureTaps, channels_of, named_layer
from .holistic import HolisticLoss
from .masked_generation import MaskedGeneration, adaptor
from .positions import IGNORE_INDEX
from .schedules import weight_at

# Losses with a module of their own.
_CRITICS, _ADAPTED = ("holistic",), ("cwd", "mgd")


class DistillationLosses(nn.Module):
    """A list of distillation losses, each with its weight and schedule.

    Its parameters, below ``parts``, are those of adaptors and critics alone: student and teacher are no submodules, and
    features are kept by hooks that are there inside :meth:`watch` alone. Whose module it becomes saves it under one
    prefix. An optimizer takes what requires gradients; a critic does not, and trains itself in :meth:`after_step`.

    Args:
        specs: mappings with a TYPE and keys of :data:`.distillation_options.KINDS` and ``COMMON``.
        student, teacher: the networks; no teacher where its outputs are saved ones.
        num_classes: C of the logits. max_iter: iterations of the run, for the schedules; ≥ 1.
        seed: of initial weights, masks and the critic's interpolation.
        ignore_index: label of what is void.

    Attributes:
        needs_features: whether student and teacher must run inside :meth:`watch`, the teacher live.
        needs_images: whether ``images`` must be given.
        has_label_term: whether a loss brings the cross-entropy with labels along (hinton: (1 − α) · CE); else the
            caller adds it.

    Raises:
        UserError: an entry is wrong, see :func:`.distillation_options.read_entries`; a layer does not exist; a layer
            is named, and there is no teacher.
    """

    def __init__(
        self,
        specs: Sequence[Mapping[str, Any]],
        *,
        student: nn.Module,
        teacher: nn.Module | None,
        num_classes: int,
        max_iter: int,
        seed: int,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        if max_iter < 1:
            raise ValueError(f"max_iter must be positive, got {max_iter}")
        self.entries = read_entries(specs)
        self.num_classes, self.max_iter, self.seed = num_classes, max_iter, seed
        self.ignore_index = ignore_index
        self.needs_features = any(entry.on_features for entry in self.entries)
        self.needs_images = any(entry.kind == "holistic" for entry in self.entries)
        self.has_label_term = any(entry.kind == "hinton" for entry in self.entries)
        layers: dict[str, nn.Module] = {}
        for entry in self.entries:
            for key, net in _sides(entry, student, teacher):
                layers[_tap(entry, key)] = named_layer(net, entry[key], f"{entry.where}: {key}")
        self._taps = FeatureTaps(layers)
        self.parts = nn.ModuleDict()
        # New weights follow from the seed alone, and leave the state of torch's generator as it is.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for entry in self.entries:
                if entry.kind in _CRITICS or (entry.kind in _ADAPTED and entry.on_features):
                    self.parts[entry.name] = self._part(entry, student, teacher)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, the student's and the teacher's forward passes leave the features that the losses compare."""
        with self._taps.watch():
            yield

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor,
        *,
        iteration: int,
        images: Tensor | None = None,
        shown: Tensor | None = None,
        labelled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The weighted losses of a batch, by ``loss_<type>``, scalars.

        Args:
            student_logits: (N, C, h, w), or (N, C) of whole images. teacher_logits: likewise, of any size; None where
                no loss asks for it (those of features, and hinton at α = 0).
            labels: (N, H, W), or (N,), integer in 0…C−1 or 255.
            iteration: from 0.
            images: (N, 3, any, any) RGB in 0…255; for holistic.
            shown: (N, H, W) bool, the pixels that show an image; None for all. Others do not count even where
                DISTILL_IGNORED is set.
            labelled: (N,) bool, the images that have labels; None for all. In others no pixel is void: the teacher
                counts wherever an image is shown (dkd, which needs the true class, leaves them out).

        Raises:
            UserError: the teacher has other classes, or its logits are not finite; images are missing; a layer did not
                run inside :meth:`watch`.
            ValueError: the student's logits or the labels do not fit.
        """
        self._check(student_logits, teacher_logits, iteration)
        batch = Batch(
            student_logits, teacher_logits, labels, images, shown, labelled, iteration, self.ignore_index
        )
        features = self._taps.take() if self.needs_features else {}
        return {entry.name: entry["WEIGHT"] * self._value(entry, batch, features) for entry in self.entries}

    def after_step(self, iteration: int) -> None:
        """After the student's optimizer has stepped: holistic losses train their critics on the same batch. Without one
        nothing happens, nor in a second call."""
        for part in self.parts.values():
            if isinstance(part, HolisticLoss):
                part.step(iteration, rank())

    def _value(self, entry: Entry, batch: Batch, features: Mapping[str, Tensor]) -> Tensor:
        schedule = {"schedule": entry["SCHEDULE"], "warmup": entry["WARMUP"]}
        share = weight_at(batch.iteration, self.max_iter, **schedule)
        if entry.kind == "hinton" and entry["ALPHA"] * share == 0:
            return label_term(batch)  # plain training to the bit, whatever the teacher says
        if entry.on_features:
            student, teacher = (features[_tap(entry, key)] for key in ("STUDENT", "TEACHER"))
            pair = feature_pair(student, teacher, batch)
        else:
            pair = logit_pair(entry, batch)
        part = dict(self.parts.items()).get(entry.name)
        return TERMS[entry.kind](entry, pair, batch, part, share)

    def _part(self, entry: Entry, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        """The module of an entry."""
        if entry.kind in _CRITICS:
            options = {key.lower(): entry[key] for key in ("PENALTY", "LR", "WIDTH", "SIZE")}
            return HolisticLoss(self.num_classes, seed=self.seed, **options)
        channels = [
            entry[f"{key}_CHANNELS"] or channels_of(net, [entry[key]], f"{entry.where}: {key}")[entry[key]]
            for key, net in _sides(entry, student, teacher)
        ]
        if entry.kind == "cwd":
            return adaptor(*channels)
        return MaskedGeneration(*channels, mask_ratio=entry["MASK_RATIO"], seed=self.seed, use=entry.name)

    def _check(self, student: Tensor, teacher: Tensor | None, iteration: int) -> None:
        if student.shape[1] != self.num_classes:
            raise ValueError(f"student_logits have {student.shape[1]} classes, not {self.num_classes}")
        if teacher is None:
            return
        if teacher.shape[1] != self.num_classes:
            raise UserError(
                f"the teacher's logits have {teacher.shape[1]} classes, the student's {self.num_classes}; take a "
                "teacher of the same classes, or give it a class map"
            )
        check_finite(teacher, iteration)


def check_finite(teacher_logits: Tensor, iteration: int) -> None:
    """Refuse a teacher that says nothing a student could learn.

    Raises:
        UserError: a logit is not finite.
    """
    # One pass and one number: logits do not come near the largest float, so a sum is finite where its terms are.
    if not bool(teacher_logits.detach().sum(dtype=torch.float32).isfinite()):
        raise UserError(
            f"the teacher's logits at iteration {iteration} are not finite; check its weights and the normalisation of "
            "its images, and run it without mixed precision"
        )


def _sides(entry: Entry, student: nn.Module, teacher: nn.Module | None) -> list[tuple[str, nn.Module]]:
    """(key, network) of the layers that an entry names; none where it works on logits."""
    if not entry.on_features:
        return []
    if teacher is None:
        raise UserError(
            f"{entry.where}: TEACHER names a layer, and of the teacher only saved outputs are there; take a live "
            "teacher, or drop the entry"
        )
    return [("STUDENT", student), ("TEACHER", teacher)]


def _tap(entry: Entry, key: str) -> str:
    """How errors call a layer of an entry."""
    return f"{entry.where}: {key} {entry[key]}"
