"""What the multi-task students share: heads by task, normalisation, losses, predictions.

A student turns an image into prediction maps, finest first, all with as many channels and six anchors a cell. B:
images; A: anchors; C: object classes; K = C + 1: dense classes, background first; P: prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.anchor_grid import AnchorGrid
from scenekd.errors import UserError
from scenekd.losses.balance import GradNormBalance
from scenekd.nets.trunks import PIXEL_MEAN, PIXEL_STD
from scenekd.sample import Prediction, Target

from .criterion import BlitzCriterion
from .heads import DetectionHead, PrototypeHead, SegmentationHead
from .postprocess import PostProcess

DEFAULT_TASKS = ("detection", "segmentation")
NUM_VOC_CLASSES = 20  # an empty DATASETS.CLASSES means the 20 names of VOC

# The tasks, and what the head of each says, see MultiTaskNet.outputs.
OUTPUTS = {
    "detection": ("class_logits", "offsets"),
    "segmentation": ("sem_seg",),
    "instance_segmentation": ("prototypes", "mask_coefficients"),
}


class MultiTaskNet(nn.Module):
    """``net(images, targets)``: scalar losses ``loss_*`` in training mode, else a list of Prediction.

    A subclass builds its layers, then calls :meth:`add_heads`, and defines :meth:`maps`. The head of a task is the
    attribute of its name.

    Args:
        grid: layout of the anchors; the finest map is the first.
        num_classes: C.
        tasks: of detection, segmentation, instance_segmentation; the last needs the first.
        criterion: ``criterion(outputs, targets, anchors, grid)`` → losses; default BlitzCriterion().
        postprocess: keyword arguments of :class:`.postprocess.PostProcess`.

    Attributes:
        anchors: (A, 4) float32 xyxy pixels, moved with the module. anchor_grid: their layout.
        image_size: side of the square input. segmentation_size: (h, w) of the segmentation logits and prototypes.

    Raises:
        ValueError: no task, an unknown one, or masks without detection.
    """

    anchors: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        grid: AnchorGrid,
        num_classes: int,
        tasks: Sequence[str],
        criterion: nn.Module | None,
        postprocess: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        if problem := task_problem(tasks):
            raise ValueError(f"tasks must be known and complete, got {tuple(tasks)}; {problem}")
        self.tasks = tuple(task for task in OUTPUTS if task in tasks)
        self.num_classes = num_classes
        self.anchor_grid = grid
        self.image_size = int(grid.image_size[0])
        self.segmentation_size = grid.maps[0]
        self.postprocess = PostProcess(**(postprocess or {}))
        self.criterion = BlitzCriterion() if criterion is None else criterion
        self.register_buffer("anchors", grid.anchors(), persistent=False)
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def add_heads(
        self,
        channels: int,
        *,
        last_shared: nn.Module,
        shared: bool,
        seg_channels: int,
        prototypes: int,
        mask_channels: int,
    ) -> None:
        """The heads of the tasks, on maps of so many channels; what a task does not need is not built.

        Args:
            last_shared: the last layers that all tasks share, on which GradNorm compares their gradients.
            shared, seg_channels, prototypes, mask_channels: see :mod:`.heads`.
        """
        count = len(self.anchor_grid.maps)
        if "detection" in self.tasks:
            self.detection = DetectionHead(channels, self.num_classes, count, shared=shared)
        if "segmentation" in self.tasks:
            self.segmentation = SegmentationHead(channels, self.num_classes, count, seg_channels=seg_channels)
        if "instance_segmentation" in self.tasks:
            self.instance_segmentation = PrototypeHead(
                channels, count, shared=shared, prototypes=prototypes, mask_channels=mask_channels
            )
        balance = getattr(self.criterion, "balance", None)
        if isinstance(balance, GradNormBalance):
            balance.share(last_shared.parameters())

    def task_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Each task's own parameters, of its head; all others are shared."""
        return {task: list(self.get_submodule(task).parameters()) for task in self.tasks}

    def maps(self, x: Tensor) -> list[Tensor]:
        """The prediction maps (B, channels, h, w), finest first, of normalised images (B, 3, S, S)."""
        raise NotImplementedError

    def forward(
        self, images: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a batch in training mode, else one Prediction an image, in network-input pixels, with dense and
        mask logits at ``segmentation_size`` (:meth:`Prediction.resize` makes the one interpolation).

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
        ``offsets`` (B, A, 4); ``sem_seg`` (B, K, h, w) logits, background first; ``prototypes`` (B, P, h, w) and
        ``mask_coefficients`` (B, A, P)."""
        if images.shape[1:] != (3, self.image_size, self.image_size):
            size = self.image_size
            raise ValueError(f"images must be (B, 3, {size}, {size}), got {tuple(images.shape)}")
        x = (images - self.pixel_mean) / self.pixel_std
        if x.device.type == "cpu":  # a tenth faster there; the layers keep the layout
            x = x.contiguous(memory_format=torch.channels_last)
        maps = self.maps(x)
        outputs: dict[str, Tensor] = {}
        for task in self.tasks:
            said = self.get_submodule(task)(maps)
            outputs.update(zip(OUTPUTS[task], said if isinstance(said, tuple) else (said,)))
        return outputs

    def _predict(self, outputs: dict[str, Tensor], size: tuple[int, int]) -> list[Prediction]:
        count = len(next(iter(outputs.values())))
        predictions = [Prediction(size=size) for _ in range(count)]
        for i, prediction in enumerate(predictions):
            if "detection" in self.tasks:
                *found, chosen = self.postprocess.select(
                    outputs["class_logits"][i], outputs["offsets"][i], self.anchors, size
                )
                prediction.boxes, prediction.labels, prediction.scores, prediction.class_probabilities = found
            if "segmentation" in self.tasks:
                prediction.sem_seg = outputs["sem_seg"][i]
            if "instance_segmentation" in self.tasks:
                coefficients, maps = outputs["mask_coefficients"][i][chosen], outputs["prototypes"][i]
                prediction.mask_logits = torch.einsum("np,phw->nhw", coefficients.float(), maps.float())
        return predictions


def task_problem(tasks: Sequence[str]) -> str:
    """What is wrong with a list of tasks; "" where nothing is."""
    if not tasks or set(tasks) - set(OUTPUTS):
        return f"choose of {', '.join(OUTPUTS)}"
    if "instance_segmentation" in tasks and "detection" not in tasks:
        return "instance_segmentation needs detection; add it"
    return ""


def shared_options(cfg: CfgNode, own: CfgNode, *, pretrained: bool) -> dict[str, Any]:
    """The arguments that all students have: classes, of ``MODEL.BLITZNET`` tasks, heads, loss and detection output,
    and of the student's ``own`` node the trunk.

    Args:
        pretrained: with the trunk's weights, of ``PRETRAINED`` or of ``MODEL.WEIGHTS`` where that is ``torchvision``.

    Raises:
        UserError: a value out of range.
    """
    node = cfg.MODEL.BLITZNET
    if problem := task_problem(node.TASKS):
        raise UserError(f"MODEL.BLITZNET.TASKS: {tuple(node.TASKS)}; {problem}")
    zoo = "torchvision" if cfg.MODEL.WEIGHTS == "torchvision" else ""
    return {
        "image_size": cfg.INPUT.SIZE,
        "num_classes": len(cfg.DATASETS.CLASSES) or NUM_VOC_CLASSES,
        "tasks": node.TASKS,
        "trunk": own.TRUNK,
        "trunk_width": own.TRUNK_WIDTH,
        "norm": own.NORM,
        "pretrained": (own.PRETRAINED or zoo) if pretrained else "",
        "x4": own.X4,
        "shared_head": own.SHARED_HEAD,
        "seg_channels": node.SEG_CHANNELS,
        "prototypes": node.INSTANCES.PROTOTYPES,
        "mask_channels": node.INSTANCES.CHANNELS,
        "criterion": BlitzCriterion.from_config(cfg),
        "postprocess": {
            "score_threshold": node.SCORE_THRESHOLD,
            "topk_pre_nms": node.TOPK_PRE_NMS,
            "nms_threshold": node.NMS_THRESHOLD,
            "topk_per_class": node.TOPK_PER_CLASS,
            "topk": node.TOPK,
        },
    }
