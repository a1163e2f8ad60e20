"""A second student under the same recipe: any trunk, a feature pyramid, BlitzNet's heads (Lin et al., CVPR 2017).

    trunk (strides 4, 8, 16, 32) → FPN → levels at 4 (with ``x4``), 8, 16, 32 → 64, … to one cell by 3×3, stride 2

Every level predicts from six anchors a cell, whose scales rise from level to level as BlitzNet's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from scenekd.errors import UserError
from scenekd.nets.norms import group_norm
from scenekd.registry import register

from .anchors import MIN_IMAGE_SIZE, grid_of
from .feature_trunks import build_feature_trunk, is_timm, load_feature_trunk, map_sizes
from .multitask import DEFAULT_TASKS, NUM_VOC_CLASSES, MultiTaskNet, shared_options


@register("model", "SceneKDFPN")
class SceneKDFPN(MultiTaskNet):
    """``net(images, targets)``: scalar losses ``loss_*`` in training mode, else a list of Prediction; see
    :class:`.multitask.MultiTaskNet`.

    Args:
        image_size: side of the square input, at least 64.
        num_classes, tasks, criterion, postprocess: see :class:`.multitask.MultiTaskNet`.
        trunk, trunk_width, norm, pretrained: see :func:`.feature_trunks.build_feature_trunk`.
        x4: predict at stride 4 too.
        channels: of every level. Levels are normalised in groups of eight channels, which no batch is too small for.
        seg_channels, shared_head, prototypes, mask_channels: of the heads, see :mod:`.heads`.

    Raises:
        ValueError: the image is smaller than 64 pixels.
        UserError: the trunk cannot be had, or does not fit the image.
    """

    def __init__(
        self,
        *,
        image_size: int = 300,
        num_classes: int = NUM_VOC_CLASSES,
        tasks: Sequence[str] = DEFAULT_TASKS,
        trunk: str = "timm:convnext_tiny",
        trunk_width: int = 64,
        norm: str = "BN",
        pretrained: str = "",
        x4: bool = False,
        channels: int = 256,
        seg_channels: int = 64,
        shared_head: bool = True,
        prototypes: int = 32,
        mask_channels: int = 64,
        criterion: nn.Module | None = None,
        postprocess: dict[str, Any] | None = None,
    ) -> None:
        if image_size < MIN_IMAGE_SIZE:
            raise ValueError(f"image size must be at least {MIN_IMAGE_SIZE}, got {image_size}")
        body = build_feature_trunk(trunk, image_size, width=trunk_width, norm=norm, pretrained=pretrained)
        first = 0 if x4 else 1
        sizes = map_sizes(body, image_size)[first:]
        while sizes[-1] > 1:
            sizes.append((sizes[-1] + 1) // 2)
        super().__init__(
            grid=grid_of(image_size, sizes),
            num_classes=num_classes,
            tasks=tasks,
            criterion=criterion,
            postprocess=postprocess,
        )
        self.trunk_name, self.first = trunk, first
        self.trunk = body
        widths: list[int] = list(body.channels)[first:]  # type: ignore[arg-type]
        self.fpn = FeaturePyramidNetwork(widths, channels, norm_layer=group_norm)
        self.extra = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2, padding=1), group_norm(channels))
            for _ in sizes[len(widths) :]
        )
        self.add_heads(
            channels,
            last_shared=self.fpn,
            shared=shared_head,
            seg_channels=seg_channels,
            prototypes=prototypes,
            mask_channels=mask_channels,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, *, pretrained: bool = True) -> SceneKDFPN:
        """The network of ``cfg.MODEL.SCENEKD_FPN``, with the tasks, loss and detection output of
        ``cfg.MODEL.BLITZNET``; ``pretrained`` as in :meth:`.blitznet.BlitzNet.from_config`."""
        node = cfg.MODEL.SCENEKD_FPN
        if cfg.MODEL.WEIGHTS == "torchvision" and is_timm(node.TRUNK):
            raise UserError(
                'MODEL.WEIGHTS: torchvision has no weights of a timm trunk; set it to "", '
                "and MODEL.SCENEKD_FPN.PRETRAINED timm"
            )
        if cfg.INPUT.SIZE < MIN_IMAGE_SIZE:
            raise UserError(f"INPUT.SIZE: must be at least {MIN_IMAGE_SIZE}, got {cfg.INPUT.SIZE}")
        return cls(**shared_options(cfg, node, pretrained=pretrained), channels=node.CHANNELS)

    def load_trunk(self, source: str) -> None:
        """Load a weight file of the trunk alone, as ``pretrained`` does."""
        load_feature_trunk(self.trunk, self.trunk_name, source)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The levels, finest first."""
        levels = {str(i): level for i, level in enumerate(self.trunk(x)[self.first :])}
        maps = [F.relu(level) for level in self.fpn(levels).values()]
        for block in self.extra:
            maps.append(F.relu(block(maps[-1])))
        return maps
