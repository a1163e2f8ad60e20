"""``SoftLabelCrossEntropy`` as a loss of MMSegmentation's decode heads.

A decode head hands its losses the masks alone. The hook gives each SoftLabelCrossEntropy of the model the teacher's
outputs of the batch before the model runs::

    decode_head=dict(..., loss_decode=[dict(type='CrossEntropyLoss'), dict(type='SoftLabelCrossEntropy')])
    custom_hooks=[dict(type='SceneKDSoftTargetHook')]

N: images; K: dense classes; H, W: size of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..errors import UserError
from ..losses import soft_label
from ..losses.reduce import safe_count


class SoftLabelCrossEntropy(soft_label.SoftLabelCrossEntropy):
    __doc__ = f"""{soft_label.SoftLabelCrossEntropy.__doc__}
        loss_name: key in the dictionary of losses; it must start with ``loss``.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        target_is: str = "probabilities",
        loss_weight: float = 1.0,
        loss_name: str = "loss_soft",
    ) -> None:
        super().__init__(temperature, target_is, loss_weight)
        self.loss_name = loss_name
        self.batch: tuple[list[Tensor | None], list[Tensor | None]] | None = None

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        valid: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (N, K, H, W).
            target: (N, K, H, W) soft labels; or, from a decode head, (N, H, W) masks, which are not used: the
                teacher also speaks where the mask is void or missing.
            valid: (N, H, W) bool, of soft labels.
            weight: (N, H, W), a decode head's sampler's; pixels count so many times.
            ignore_index: of the masks.

        Raises:
            UserError: masks are given, but the hook has brought no soft labels.
        """
        if not target.is_floating_point():
            target, valid = self._of_batch(logits)
        if weight is None:
            return super().forward(logits, target, valid)
        loss = soft_label.soft_label_map(
            logits, target, temperature=self.temperature, target_is=self.target_is, valid=valid
        )
        count = loss.new_tensor(loss.numel()) if valid is None else valid.sum().to(loss)
        return self.loss_weight * (loss * weight).sum() / safe_count(count)

    def _of_batch(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.batch is None:
            raise UserError(
                "SoftLabelCrossEntropy: a decode head passes masks only; add "
                "dict(type='SceneKDSoftTargetHook') to custom_hooks"
            )
        target = torch.zeros_like(logits)
        valid = torch.zeros((len(logits), *logits.shape[2:]), dtype=torch.bool, device=logits.device)
        for i, (soft, shown) in enumerate(zip(*self.batch)):
            if soft is None or shown is None:
                continue
            height, width = soft.shape[1:]
            if height > logits.shape[2] or width > logits.shape[3] or len(soft) != logits.shape[1]:
                raise UserError(
                    f"SoftLabelCrossEntropy: soft labels are {tuple(soft.shape)}, the logits "
                    f"{tuple(logits.shape[1:])}; check num_classes and leave SceneKDPack's soft_size unset"
                )
            # a data preprocessor pads to the right and below; there nothing is valid
            target[i, :, :height, :width] = soft.to(target)
            valid[i, :height, :width] = shown.to(valid.device)
        return target, valid


class SceneKDSoftTargetHook(Hook):
    """Brings the teacher's outputs of each batch to the model's SoftLabelCrossEntropy losses."""

    def before_train(self, runner: Any) -> None:
        """Attach to the model."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        attach_soft_targets(model)


def attach_soft_targets(model: nn.Module) -> None:
    """Whenever ``model(inputs, data_samples, mode='loss')`` is called, hand ``gt_soft_seg`` to its losses.

    Raises:
        UserError: the model has no SoftLabelCrossEntropy.
    """
    losses = [module for module in model.modules() if isinstance(module, SoftLabelCrossEntropy)]
    if not losses:
        raise UserError("SceneKDSoftTargetHook: the model has no loss of type SoftLabelCrossEntropy")

    def bring(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        samples = kwargs.get("data_samples", args[1] if len(args) > 1 else None)
        for loss in losses:
            loss.batch = _soft_of(samples) if samples else None

    def drop(_: nn.Module, args: Any, output: Any) -> None:
        for loss in losses:
            loss.batch = None

    model.register_forward_pre_hook(bring, with_kwargs=True)
    model.register_forward_hook(drop)


def _soft_of(samples: Sequence[Any]) -> tuple[list[Tensor | None], list[Tensor | None]]:
    values = [s.gt_soft_seg.data if "gt_soft_seg" in s else None for s in samples]
    valid = [s.gt_soft_valid.data[0].bool() if "gt_soft_valid" in s else None for s in samples]
    return values, valid
