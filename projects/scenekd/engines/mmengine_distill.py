"""The list of distillation losses, see :mod:`scenekd.losses.distillation`, in SceneKDEncoderDecoder.

N: images; K: dense classes; H, W: size of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mmengine.registry import DefaultScope
from mmseg.registry import MODELS as SEG_MODELS
from torch import Tensor, nn

from ..errors import UserError
from ..losses.distillation import DistillationLosses
from .mmengine_loss import DistillationLoss
from .mmengine_model import progress

Config = Mapping[str, Any]


def split_losses(distill: Sequence[Config] | Config) -> tuple[list[DistillationLoss], list[Config]]:
    """The losses of ``distill`` that are built by their ``type``, and the mappings with a ``TYPE``.

    Raises:
        UserError: a type that is no loss between logits.
    """
    configs = [distill] if isinstance(distill, Mapping) else list(distill)
    listed = [config for config in configs if "TYPE" in config]
    return [_build_loss(config) for config in configs if "TYPE" not in config], listed


class ListedLosses(nn.Module):
    """:class:`scenekd.losses.distillation.DistillationLosses` of a segmentor, driven by MMEngine's runner.

    Args:
        specs: mappings with a TYPE. student: the segmentor. teacher: its network; needed where layers are named.
        num_classes: K. seed: see DistillationLosses.
    """

    def __init__(
        self,
        specs: Sequence[Config],
        *,
        student: nn.Module,
        teacher: nn.Module | None,
        num_classes: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.losses = DistillationLosses(
            [dict(spec) for spec in specs],
            student=student,
            teacher=teacher,
            num_classes=num_classes,
            max_iter=1,
            seed=seed,
        )

    def watch(self) -> AbstractContextManager[None]:
        """Around the forward passes of student and teacher."""
        return self.losses.watch() if self.losses.needs_features else nullcontext()

    def forward(
        self, logits: Tensor, said: Tensor, labels: Tensor, images: Tensor, shown: Tensor, labelled: Tensor
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            logits: (N, K, H, W). said: the teacher's, of any size. labels: (N, H, W), 255 where there is none.
            images: (N, 3, H, W) RGB in 0…255. shown: (N, H, W) bool, the pixels that show an image.
            labelled: (N,) bool, the images that have a mask; in others no pixel is void.
        """
        iteration, self.losses.max_iter = progress()
        # A wrapper of several processes takes the step itself, and does not ask the segmentor; then it ends here.
        self.losses.after_step(iteration - 1)
        found: dict[str, Tensor] = self.losses(
            logits, said, labels, iteration=iteration, images=images, shown=shown, labelled=labelled
        )
        return found

    def after_step(self) -> None:
        """After the optimizer's step."""
        self.losses.after_step(progress()[0])


def _build_loss(config: Config) -> DistillationLoss:
    with DefaultScope.overwrite_default_scope("mmseg"):
        loss = SEG_MODELS.build(config)
    if not isinstance(loss, DistillationLoss) or loss.target_is == "scores":
        raise UserError(
            f"SceneKDEncoderDecoder: distill: {config.get('type')} is no loss between the logits of a student and of a "
            "teacher; use SceneKDHintonLoss, or SoftLabelCrossEntropy with target_is='logits'"
        )
    return loss
