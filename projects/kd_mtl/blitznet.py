"""BlitzNet: one network, detection and segmentation (Dvornik et al., ICCV 2017).

    trunk (block1 … block4) → block5, block6, …            downscale stream
                                   ↓
    rev1 ← rev2 ← …       ←       ResSkip                  upscale stream, each beside the same-numbered block
      └──────┴── pool6 ──→ detection head, segmentation head

with anchors on every map; what the heads make of the maps is :mod:`.multitask`'s. C: object classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.nets.trunks import build_trunk
from scenekd.nets.weights import load_pretrained
from scenekd.registry import register

from .anchors import anchor_grid, block_sizes, prediction_sizes
from .blocks import Streams
from .multitask import DEFAULT_TASKS, NUM_VOC_CLASSES, MultiTaskNet, shared_options

_KEY = "MODEL.BLITZNET"


@register("model", "BlitzNet")
class BlitzNet(MultiTaskNet):
    """``net(images, targets)``: scalar losses ``loss_*`` in training mode, else a list of Prediction; see
    :class:`.multitask.MultiTaskNet`.

    Args:
        image_size: side of the square input, at least 64; see :mod:`.anchors` for what it decides.
        num_classes, tasks, criterion, postprocess: see :class:`.multitask.MultiTaskNet`.
        trunk, trunk_width, norm, stride_in_1x1: see :func:`scenekd.nets.trunks.build_trunk`.
        pretrained: weights of the trunk, see :func:`scenekd.nets.weights.load_pretrained`; "" for none.
        x4: predict at stride 4 too.
        block_channels: (inner, outer) of the downscale stream's bottleneck units.
        stream_channels, neck_channels, resize: of the upscale stream, see :class:`.blocks.ResSkip`.
        seg_channels, shared_head, prototypes, mask_channels: of the heads, see :mod:`.heads`.
    """

    def __init__(
        self,
        *,
        image_size: int = 300,
        num_classes: int = NUM_VOC_CLASSES,
        tasks: Sequence[str] = DEFAULT_TASKS,
        trunk: str = "resnet50",
        trunk_width: int = 64,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        pretrained: str = "",
        x4: bool = False,
        block_channels: Sequence[int] = (512, 2048),
        stream_channels: int = 512,
        neck_channels: int = 128,
        resize: str = "bilinear",
        seg_channels: int = 64,
        shared_head: bool = False,
        prototypes: int = 32,
        mask_channels: int = 64,
        criterion: nn.Module | None = None,
        postprocess: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            grid=anchor_grid(image_size, x4),
            num_classes=num_classes,
            tasks=tasks,
            criterion=criterion,
            postprocess=postprocess,
        )
        self.trunk_name, self.norm = trunk, norm
        map_sizes = prediction_sizes(image_size, x4)
        self.trunk = build_trunk(trunk, width=trunk_width, norm=norm, stride_in_1x1=stride_in_1x1, key=_KEY)
        self.streams = Streams(
            self.trunk.channels,
            num_blocks=len(block_sizes(image_size)),
            num_skips=len(map_sizes) - 1,
            block_channels=block_channels,
            channels=stream_channels,
            neck_channels=neck_channels,
            norm=norm,
            resize=resize,
        )
        self.add_heads(
            stream_channels,
            last_shared=self.streams.skips[-1],
            shared=shared_head,
            seg_channels=seg_channels,
            prototypes=prototypes,
            mask_channels=mask_channels,
        )
        if pretrained:
            load_pretrained(self.trunk, trunk, pretrained, key=_KEY)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, pretrained: bool = True) -> BlitzNet:
        """The network of ``cfg.MODEL.BLITZNET``, for ``cfg.INPUT.SIZE`` and ``cfg.DATASETS.CLASSES``.

        With ``pretrained`` the trunk's weights are read, of ``PRETRAINED`` or of ``MODEL.WEIGHTS`` where that is
        ``torchvision``; a file in ``MODEL.WEIGHTS`` is for :func:`scenekd.models.load_initial_weights`.
        """
        node = cfg.MODEL.BLITZNET
        if node.RESIZE not in ("bilinear", "nearest"):
            raise UserError(f"MODEL.BLITZNET.RESIZE: {node.RESIZE!r}; choose bilinear or nearest")
        if len(node.BLOCK_CHANNELS) != 2:
            raise UserError(
                f"MODEL.BLITZNET.BLOCK_CHANNELS: {tuple(node.BLOCK_CHANNELS)}; give (inner, outer)"
            )
        try:
            block_sizes(cfg.INPUT.SIZE)
        except ValueError as error:
            raise UserError(f"INPUT.SIZE: {error}") from None
        return cls(
            **shared_options(cfg, node, pretrained=pretrained),
            stride_in_1x1=node.STRIDE_IN_1X1,
            block_channels=node.BLOCK_CHANNELS,
            stream_channels=node.STREAM_CHANNELS,
            neck_channels=node.NECK_CHANNELS,
            resize=node.RESIZE,
        )

    def load_trunk(self, source: str) -> None:
        """Load a weight file of the trunk alone, see :func:`scenekd.nets.weights.load_pretrained`."""
        load_pretrained(self.trunk, self.trunk_name, source, key=_KEY)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The upscale stream's maps and pool6, see :class:`.blocks.Streams`."""
        one_cell = block_sizes(self.image_size)[-1] == 1
        if self.training and len(x) == 1 and one_cell and self.norm != "GN":
            raise UserError(
                f"SOLVER.IMS_PER_BATCH: at INPUT.SIZE {self.image_size} the deepest map is one cell, so that "
                "batch normalisation needs two images a process and step; raise it, or set MODEL.BLITZNET.NORM GN"
            )
        return self.streams(self.trunk(x))
