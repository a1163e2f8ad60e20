"""Our networks as detectron2 meta-architectures: dictionaries in, ``Instances`` and ``sem_seg`` out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..data.soft import nearest_exact
from ..models import predict
from ..sample import Prediction, SourceWeights, Target
from .keys import BareKeys


class SceneKDMetaArch(BareKeys):
    """Adapter of a SceneKD network, under the contract ``net(images, targets)``, to detectron2's conventions.

    Args:
        net: the network; ``net.image_size`` is the side of its square input.
        input_format: RGB or BGR, of the images in the dictionaries (detectron2's ``INPUT.FORMAT``). Images of our
            own mapper, which carry a ``target``, are RGB.
    """

    def __init__(self, net: nn.Module, input_format: str = "BGR") -> None:
        super().__init__()
        self._adopt(net)
        self.input_format = input_format

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.net.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, else one {'instances', 'sem_seg'} an image, at (height, width) of its input."""
        images = torch.stack([self._image(item) for item in batched_inputs])
        if self.training:
            return self.net(images, [self._target(item).to(self.device) for item in batched_inputs])
        told = None
        if getattr(self.net, "wants_targets", False):
            told = [self._target(item).to(self.device) for item in batched_inputs]
        predictions = predict(self.net, images, told)
        return [_output(p, item) for p, item in zip(predictions, batched_inputs)]

    def _image(self, item: dict[str, Any]) -> Tensor:
        image = item["image"].to(self.device, non_blocking=True).float()
        if "target" in item:
            return image
        if self.input_format == "BGR":
            image = image.flip(0)
        side = int(self.net.image_size)  # type: ignore[arg-type]
        if tuple(image.shape[-2:]) != (side, side):
            image = F.interpolate(image[None], size=(side, side), mode="bilinear", antialias=True)[0]
        return image

    def _target(self, item: dict[str, Any]) -> Target:
        return item["target"] if "target" in item else target_of(item, int(self.net.image_size))  # type: ignore[arg-type]


class NativeMetaArch(SceneKDMetaArch):
    """The adapter under detectron2's own trainer, which does not tell a network of ours which step it takes.

    Args:
        net, input_format: as above. iterations: of the run.
    """

    def __init__(self, net: nn.Module, input_format: str = "BGR", iterations: int = 1) -> None:
        super().__init__(net, input_format)
        self.iterations = iterations

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As in :class:`SceneKDMetaArch`."""
        if self.training and hasattr(self.net, "begin_step"):
            iteration = get_event_storage().iter if has_event_storage() else 0
            self.net.begin_step(iteration, self.iterations)  # type: ignore[operator]
        return super().forward(batched_inputs)

    def end_step(self) -> None:
        """After the optimizer's step: what trains itself, a critic, takes its own."""
        if hasattr(self.net, "end_step"):
            self.net.end_step()  # type: ignore[operator]


def target_of(item: dict[str, Any], side: int) -> Target:
    """The target in a dictionary of detectron2's own mappers (``instances``, ``sem_seg``), at side × side."""
    height, width = item["image"].shape[-2:]
    instances, mask = item.get("instances"), item.get("sem_seg")
    boxes, labels, masks = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), None
    if instances is not None:
        scale = torch.tensor([side / width, side / height]).repeat(2)
        boxes, labels = instances.gt_boxes.tensor.float() * scale, instances.gt_classes.long()
        if instances.has("gt_masks"):
            masks = _masks_of(instances.gt_masks, (height, width), side)
    if mask is not None:
        mask = F.interpolate(mask[None, None].float(), size=(side, side), mode="nearest-exact")[0, 0].long()
    flags = torch.zeros(len(boxes), dtype=torch.bool)
    has_boxes = item.get("has_boxes", instances is not None)  # told by the data sets that we register
    return Target(
        image_id=str(item.get("image_id", "")),
        boxes=boxes,
        labels=labels,
        confidences=torch.ones(len(boxes)),
        from_teacher=flags,
        difficult=flags.clone(),
        masks=masks,
        sem_seg=mask,
        has_boxes=has_boxes,
        has_sem_seg=mask is not None,
        has_instance_masks=masks is not None,
        weights=SourceWeights(
            detection_gt=float(has_boxes),
            segmentation_gt=float(mask is not None),
            instance_segmentation=(float(masks is not None), 0.0),
        ),
        height=item.get("height", height),
        width=item.get("width", width),
    )


def _masks_of(masks: BitMasks | PolygonMasks, size: tuple[int, int], side: int) -> Tensor:
    """detectron2's masks of an image of ``size`` as (N, side, side) uint8."""
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *size)
    rows, columns = (torch.from_numpy(nearest_exact(length, side)) for length in size)
    return masks.tensor[:, rows][:, :, columns].to(torch.uint8)


def _output(prediction: Prediction, item: dict[str, Any]) -> dict[str, Any]:
    height = item.get("height", item["image"].shape[-2])
    width = item.get("width", item["image"].shape[-1])
    resized = prediction.resize(height, width)
    output: dict[str, Any] = {}
    if resized.boxes is not None:
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(resized.boxes)
        instances.scores = resized.scores
        instances.pred_classes = resized.labels
        if resized.masks is not None:
            instances.pred_masks = resized.masks
        output["instances"] = instances
    if resized.sem_seg is not None:
        output["sem_seg"] = resized.sem_seg
    if resized.class_scores is not None:
        output["class_scores"] = resized.class_scores
    if resized.hidden is not None:
        output["hidden_objects"] = resized.hidden
    return output
