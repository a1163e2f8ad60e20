"""BlitzNet: one network, detection and segmentation (Dvornik et al., ICCV 2017).

    trunk (block1 … block4) → block5, block6, …            downscale stream
                                   ↓
    rev1 ← rev2 ← …       ←       ResSkip                  upscale stream, each beside the same-numbered block
      └──────┴── pool6 ──→ detection head, segmentation head

B: images; A: anchors; C: object classes; K = C + 1: dense classes, background first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.balance import GradNormBalance
from scenekd.registry import register
from scenekd.sample import Prediction, Target

from .anchors import anchor_grid, block_sizes, prediction_sizes
from .blocks import Streams
from .criterion import BlitzCriterion
from .heads import DetectionHead, SegmentationHead
from .postprocess import PostProcess
from .trunks import PIXEL_MEAN, PIXEL_STD, build_trunk
from .weights import load_pretrained

TASKS = ("detection", "segmentation")
NUM_VOC_CLASSES = 20  # an empty DATASETS.CLASSES means the 20 names of VOC


@register("model", "BlitzNet")
class BlitzNet(nn.Module):
    """``net(images, targets)``: scalar losses ``loss_*`` in training mode, else a list of Prediction.

    Args:
        image_size: side of the square input, at least 64; see :mod:`.anchors` for what it decides.
        num_classes: C.
        tasks: detection, segmentation or both; what a single task does not need is not built.
        trunk, trunk_width, norm, stride_in_1x1: see :func:`.trunks.build_trunk`.
        pretrained: weights of the trunk, see :func:`.weights.load_pretrained`; "" for none.
        x4: predict at stride 4 too.
        block_channels: (inner, outer) of the downscale stream's bottleneck units.
        stream_channels, neck_channels, resize: of the upscale stream, see :class:`.blocks.ResSkip`.
        seg_channels, shared_head: of the heads.
        criterion: ``criterion(outputs, targets, anchors, anchor_grid)`` → losses; default BlitzCriterion().
        postprocess: keyword arguments of :class:`.postprocess.PostProcess`.

    Attributes:
        anchors: (A, 4) float32 xyxy pixels, moved with the module. anchor_grid: their layout.
        segmentation_size: (h, w) of the segmentation logits.
    """

    anchors: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        image_size: int = 300,
        num_classes: int = NUM_VOC_CLASSES,
        tasks: Sequence[str] = TASKS,
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
        criterion: nn.Module | None = None,
        postprocess: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not tasks or set(tasks) - set(TASKS):
            raise ValueError(f"tasks must be one or both of {TASKS}, got {tuple(tasks)}")
        self.image_size, self.num_classes = image_size, num_classes
        self.trunk_name, self.norm = trunk, norm
        self.tasks = tuple(task for task in TASKS if task in tasks)
        map_sizes = prediction_sizes(image_size, x4)
        self.segmentation_size = (map_sizes[0], map_sizes[0])
        self.anchor_grid = anchor_grid(image_size, x4)

        self.trunk = build_trunk(trunk, width=trunk_width, norm=norm, stride_in_1x1=stride_in_1x1)
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
        if "detection" in self.tasks:
            self.detection = DetectionHead(stream_channels, num_classes, len(map_sizes), shared=shared_head)
        if "segmentation" in self.tasks:
            self.segmentation = SegmentationHead(
                stream_channels, num_classes, len(map_sizes), seg_channels=seg_channels
            )
        self.postprocess = PostProcess(**(postprocess or {}))
        self.criterion = BlitzCriterion() if criterion is None else criterion
        balance = getattr(self.criterion, "balance", None)
        if isinstance(balance, GradNormBalance):
            balance.share(self.streams.skips[-1].parameters())
        self.register_buffer("anchors", self.anchor_grid.anchors(), persistent=False)
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
        if pretrained:
            load_pretrained(self.trunk, trunk, pretrained)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, pretrained: bool = True) -> BlitzNet:
        """The network of ``cfg.MODEL.BLITZNET``, for ``cfg.INPUT.SIZE`` and ``cfg.DATASETS.CLASSES``.

        With ``pretrained`` the trunk's weights are read, of ``PRETRAINED`` or of ``MODEL.WEIGHTS`` where that is
        ``torchvision``; a file in ``MODEL.WEIGHTS`` is for :func:`scenekd.models.load_initial_weights`.
        """
        node = cfg.MODEL.BLITZNET
        unknown = set(node.TASKS) - set(TASKS)
        if unknown or not node.TASKS:
            raise UserError(f"MODEL.BLITZNET.TASKS: {tuple(node.TASKS)}; choose one or both of {TASKS}")
        if node.RESIZE not in ("bilinear", "nearest"):
            raise UserError(f"MODEL.BLITZNET.RESIZE: {node.RESIZE!r}; choose bilinear or nearest")
        if len(node.BLOCK_CHANNELS) != 2:
            raise UserError(
                f"MODEL.BLITZNET.BLOCK_CHANNELS: {tuple(node.BLOCK_CHANNELS)}; give (inner, outer)"
            )
        zoo = "torchvision" if cfg.MODEL.WEIGHTS == "torchvision" else ""
        try:
            block_sizes(cfg.INPUT.SIZE)
        except ValueError as error:
            raise UserError(f"INPUT.SIZE: {error}") from None
        return cls(
            image_size=cfg.INPUT.SIZE,
            num_classes=len(cfg.DATASETS.CLASSES) or NUM_VOC_CLASSES,
            tasks=node.TASKS,
            trunk=node.TRUNK,
            trunk_width=node.TRUNK_WIDTH,
            norm=node.NORM,
            stride_in_1x1=node.STRIDE_IN_1X1,
            pretrained=(node.PRETRAINED or zoo) if pretrained else "",
            x4=node.X4,
            block_channels=node.BLOCK_CHANNELS,
            stream_channels=node.STREAM_CHANNELS,
            neck_channels=node.NECK_CHANNELS,
            resize=node.RESIZE,
            seg_channels=node.SEG_CHANNELS,
            shared_head=node.SHARED_HEAD,
            criterion=BlitzCriterion.from_config(cfg),
            postprocess={
                "score_threshold": node.SCORE_THRESHOLD,
                "topk_pre_nms": node.TOPK_PRE_NMS,
                "nms_threshold": node.NMS_THRESHOLD,
                "topk_per_class": node.TOPK_PER_CLASS,
                "topk": node.TOPK,
            },
        )

    def load_trunk(self, source: str) -> None:
        """Load a weight file of the trunk alone, see :func:`.weights.load_pretrained`."""
        load_pretrained(self.trunk, self.trunk_name, source)

    def task_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Each task's own parameters, of its head; all others are shared."""
        return {task: list(getattr(self, task).parameters()) for task in self.tasks}

    def forward(
        self, images: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a batch in training mode, else one Prediction an image, in network-input pixels, with the
        segmentation logits at ``segmentation_size`` (:meth:`Prediction.resize` makes the one interpolation).

        Args:
            images: (B, 3, S, S) float32 RGB in 0…255, S the network's ``image_size``.
            targets: one an image; needed in training mode, ignored else.
        """
        outputs = self.outputs(images)
        if not self.training:
            return self._predict(outputs, (images.shape[-2], images.shape[-1]))
        if targets is None:
            raise ValueError("training mode needs targets")
        return self.criterion(outputs, targets, self.anchors, self.anchor_grid)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What the heads say, one entry for each task's: ``class_logits`` (B, A, C + 1), background last;
        ``offsets`` (B, A, 4); ``sem_seg`` (B, K, h, w) logits, background first."""
        if images.shape[1:] != (3, self.image_size, self.image_size):
            size = self.image_size
            raise ValueError(f"images must be (B, 3, {size}, {size}), got {tuple(images.shape)}")
        one_cell = block_sizes(self.image_size)[-1] == 1
        if self.training and len(images) == 1 and one_cell and self.norm != "GN":
            raise UserError(
                f"SOLVER.IMS_PER_BATCH: at INPUT.SIZE {self.image_size} the deepest map is one cell, so that "
                "batch normalisation needs two images a process and step; raise it, or set MODEL.BLITZNET.NORM GN"
            )
        x = (images - self.pixel_mean) / self.pixel_std
        if x.device.type == "cpu":  # a tenth faster there; the layers keep the layout
            x = x.contiguous(memory_format=torch.channels_last)
        maps = self.streams(self.trunk(x))
        outputs = {}
        if "detection" in self.tasks:
            outputs["class_logits"], outputs["offsets"] = self.detection(maps)
        if "segmentation" in self.tasks:
            outputs["sem_seg"] = self.segmentation(maps)
        return outputs

    def _predict(self, outputs: dict[str, Tensor], size: tuple[int, int]) -> list[Prediction]:
        count = len(next(iter(outputs.values())))
        predictions = [Prediction(size=size) for _ in range(count)]
        for i, prediction in enumerate(predictions):
            if "detection" in self.tasks:
                found = self.postprocess.detect(
                    outputs["class_logits"][i], outputs["offsets"][i], self.anchors, size
                )
                prediction.boxes, prediction.labels, prediction.scores, prediction.class_probabilities = found
            if "segmentation" in self.tasks:
                prediction.sem_seg = outputs["sem_seg"][i]
        return predictions


def build_model(cfg: CfgNode, *, pretrained: bool = True) -> BlitzNet:
    """What :func:`scenekd.models.build_model` calls for this system."""
    return BlitzNet.from_config(cfg, pretrained=pretrained)
