"""MMSegmentation's EncoderDecoder, learning from masks where there are some and from teachers where they speak."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from ..errors import UserError
from ..losses.distillation import check_finite
from ..teachers.live_build import OnlineTeacher
from .mmengine_distill import ListedLosses, split_losses
from .mmengine_heads import check_head, head_losses, soft_loss
from .mmengine_live import build_online_teacher, class_names, original_images
from .mmengine_loss import DistillationLoss
from .mmengine_model import progress
from .mmengine_targets import Masks, SoftTargets, labels_of, masks_of, shown_of, soft_targets_of


class SceneKDEncoderDecoder(EncoderDecoder):
    """An EncoderDecoder for images of which some lack a mask and some have a teacher's output.

    Losses of masks in a head's ``loss_decode`` see the images that have a mask, distillation losses those that have a
    teacher's output from SceneKDLoadTeacher; each image counts by the weight that its policy gave the source. Where
    every image has a mask, all weights are 1 and no teacher speaks, the losses are EncoderDecoder's to the bit, and its
    checkpoints are EncoderDecoder's always.

    With ``teacher``, a network is asked for the same augmented batch, with its own normalisation, and the losses of
    ``distill`` hold the decode head's logits against its logits, on all pixels that show an image.

    Args:
        teacher: dict(config=…, checkpoint=…, classes=…, class_map=…, allow_unmapped=…), see
            :func:`.mmengine_live.build_online_teacher`. It is loaded when training begins, so that a trained student
            needs none.
        distill: losses against it; their names get the prefix ``distill.``. Configurations with a ``type`` are
            distillation losses that take logits or probabilities. Mappings with a ``TYPE`` are the list of
            :class:`scenekd.losses.distillation.DistillationLosses`, whose entries may name layers of both networks,
            such as ``backbone.layer4``; its adaptors and critics are trained and saved as ``distillation``, and a
            teacher whose layers are named is loaded at once.
        distill_seed: of what that list draws.
        classes: with ``teacher``, the data set's dense classes in order, held against the teacher's by name: names with
            background, or one of MMSegmentation's lists, such as 'voc'.
        options: of EncoderDecoder.

    Raises:
        UserError: a head with losses of its own kind; a teacher without losses or losses without one; class lists of
            another length, or classes without counterpart.
    """

    def __init__(
        self,
        *,
        teacher: dict[str, Any] | None = None,
        distill: Sequence[dict[str, Any]] | dict[str, Any] = (),
        distill_seed: int = 0,
        classes: Sequence[str] | str = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for head in (self.decode_head, *self._auxiliary_heads()):
            check_head(head)
        losses, listed = split_losses(distill)
        self.distill = nn.ModuleList(losses)
        self.classes = class_names(classes)
        self._teacher_options, self._teacher = teacher, None  # type: tuple[Any, OnlineTeacher | None]
        if bool(teacher) != bool(losses or listed):
            raise UserError(
                "SceneKDEncoderDecoder: teacher and distill belong together; give both or neither"
            )
        if teacher and len(self.classes) != self.out_channels:
            raise UserError(
                f"SceneKDEncoderDecoder: classes has {len(self.classes)} names for {self.out_channels} channels of the "
                "decode head; name the data set's classes, background first, or one of MMSegmentation's lists, 'voc'"
            )
        self.distillation = self._listed(listed, distill_seed) if listed else None

    def _listed(self, specs: Sequence[Any], seed: int) -> ListedLosses | None:
        """The list of losses; None where it names layers of a teacher that cannot be had: a trained student is tested
        without its teacher, and training begins with the error."""
        live = None
        if any(spec.get("TEACHER") for spec in specs):
            try:
                live = self.live_teacher()
            except UserError:
                return None
        net = None if live is None else live.net
        return ListedLosses(specs, student=self, teacher=net, num_classes=self.out_channels, seed=seed)

    def init_weights(self) -> None:
        """As in EncoderDecoder; MMEngine calls it when training begins, so the teacher is loaded here."""
        super().init_weights()
        self.live_teacher()

    def live_teacher(self) -> OnlineTeacher | None:
        """The online teacher, loaded at the first call; None without one. It is no submodule."""
        if self._teacher is None and self._teacher_options:
            self._teacher = build_online_teacher(self.classes, **self._teacher_options)
        return self._teacher

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """As in EncoderDecoder; then what trains itself, a critic, takes its own step."""
        logs: dict[str, Tensor] = super().train_step(data, optim_wrapper)
        self.end_step()
        return logs

    def end_step(self) -> None:
        """After the optimizer's step; a second call does nothing."""
        if self.distillation is not None:
            self.distillation.after_step()

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        """Losses of a batch: ``decode.…``, ``aux.…`` or ``aux_0.…``, and ``distill.…``.

        Args:
            inputs: (N, 3, H, W), from the data preprocessor. data_samples: one an image.
        """
        size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
        masks, soft = masks_of(data_samples, size), soft_targets_of(data_samples, size)
        with nullcontext() if self.distillation is None else self.distillation.watch():
            features = self.extract_feat(inputs)
            found, logits = head_losses(self.decode_head, features, masks, soft, size)
            losses = add_prefix(found, "decode")
            heads = self._auxiliary_heads()
            for i, head in enumerate(heads):
                name = f"aux_{i}" if isinstance(self.auxiliary_head, nn.ModuleList) else "aux"
                losses.update(add_prefix(head_losses(head, features, masks, soft, size)[0], name))
            teacher = self.live_teacher()
            if teacher is not None:
                images = original_images(self.data_preprocessor, inputs)
                said = teacher.logits(images)
        if teacher is not None:
            shown = shown_of(data_samples, size, inputs.device)
            losses.update(add_prefix(self._distill(logits, said, masks, shown), "distill"))
            if self.distillation is not None:
                labels = labels_of(masks, len(logits), self.decode_head.ignore_index).to(logits.device)
                labelled = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
                labelled[masks.images] = True
                more = self.distillation(logits, said, labels, images, shown, labelled)
                losses.update(add_prefix(more, "distill"))
        return dict(losses)

    def _distill(self, logits: Tensor, said: Tensor, masks: Masks, shown: Tensor) -> dict[str, Tensor]:
        """The losses that were built by their type.

        Raises:
            UserError: the teacher's logits are not finite.
        """
        if len(self.distill):
            check_finite(said, progress()[0])
        said = torch.nn.functional.interpolate(said, logits.shape[-2:], mode="bilinear", align_corners=False)
        everyone, ones = list(range(len(logits))), said.new_ones(len(logits))
        losses: dict[str, Tensor] = {}
        for loss in cast("list[DistillationLoss]", list(self.distill)):
            values = said.softmax(dim=1) if loss.target_is == "probabilities" else said
            target = SoftTargets(everyone, values, shown, ones, loss.target_is)
            value = soft_loss(loss, logits, target, masks, self.decode_head.ignore_index)
            losses[loss.loss_name] = losses[loss.loss_name] + value if loss.loss_name in losses else value
        return losses

    def _auxiliary_heads(self) -> Sequence[nn.Module]:
        if not self.with_auxiliary_head:
            return ()
        heads = self.auxiliary_head
        return list(heads) if isinstance(heads, nn.ModuleList) else [heads]
