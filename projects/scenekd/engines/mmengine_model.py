"""Our networks as MMEngine models: targets in, MMSegmentation's data samples out."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..models import predict
from ..sample import Prediction, SourceWeights, Target
from .keys import BareKeys
from .mmengine_data import image_id_of


class SceneKDDataPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the device and makes float RGB 0…255 of it; the network normalises.

    Takes our loader's batches (inputs (N, 3, H, W) RGB, data_samples: Targets) and those of MMSegmentation's
    pipelines (inputs: list of (3, H, W) uint8 BGR of one size, data_samples: SegDataSamples).

    Args:
        bgr_to_rgb: whether list inputs are BGR, as MMSegmentation's LoadImageFromFile gives them.
    """

    def __init__(self, bgr_to_rgb: bool = True) -> None:
        super().__init__()
        self.bgr_to_rgb = bgr_to_rgb

    def forward(self, data: Any, training: bool = False) -> dict[str, Any]:
        """The batch as {'inputs': (N, 3, H, W) float32, 'data_samples': list or None}."""
        inputs, samples = data["inputs"], data.get("data_samples")
        if not isinstance(inputs, Tensor):
            inputs = torch.stack(list(inputs))
            if self.bgr_to_rgb:
                inputs = inputs.flip(1)
        if samples is not None:
            samples = [sample.to(self.device) for sample in samples]
        return {"inputs": inputs.to(self.device).float(), "data_samples": samples}


class SceneKDModel(BareKeys, BaseModel):
    """Adapter of a SceneKD network, under the contract ``net(images, targets)``, to MMEngine's ``BaseModel``."""

    def __init__(
        self, net: nn.Module, data_preprocessor: dict[str, Any] | nn.Module | None = None, **_: Any
    ) -> None:
        if data_preprocessor is None:
            data_preprocessor = SceneKDDataPreprocessor()
        super().__init__(data_preprocessor=data_preprocessor)
        self._adopt(net)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """``loss``: dict of losses; ``predict``: SegDataSamples at the original size; ``tensor``: raw outputs."""
        if mode == "loss":
            return self.net(inputs, [to_target(sample) for sample in data_samples])
        if mode == "tensor":
            return self.net.outputs(inputs)  # type: ignore[operator]
        if mode != "predict":
            raise ValueError(f"mode must be loss, predict or tensor, got {mode!r}")
        samples = data_samples or [SegDataSample() for _ in inputs]
        told = None
        if getattr(self.net, "wants_targets", False):
            told = [to_target(sample) for sample in samples]
        predictions = predict(self.net, inputs, told)
        return [to_sample(p, s, inputs.shape[-2:]) for p, s in zip(predictions, samples)]


class NativeModel(SceneKDModel):
    """The adapter under MMEngine's own runner, which does not tell a network of ours when training begins and which
    step it takes."""

    def init_weights(self) -> None:
        """MMEngine calls it when training begins: what a network learns by is loaded."""
        super().init_weights()
        if hasattr(self.net, "begin_training"):
            self.net.begin_training()  # type: ignore[operator]

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """As in :class:`SceneKDModel`."""
        # Not in train_step: a wrapper of several processes takes the step itself, and does not ask the model.
        if mode == "loss" and hasattr(self.net, "begin_step"):
            self.net.begin_step(*progress())  # type: ignore[operator]
        return super().forward(inputs, data_samples, mode)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """As in BaseModel; then what trains itself, a critic, takes its own step."""
        logs: dict[str, Tensor] = super().train_step(data, optim_wrapper)
        self.end_step()
        return logs

    def end_step(self) -> None:
        """After the optimizer's step; a second call does nothing."""
        if hasattr(self.net, "end_step"):
            self.net.end_step()  # type: ignore[operator]


def progress() -> tuple[int, int]:
    """(iteration, iterations of the run), as the runner tells; (0, 1) without one."""
    info = MessageHub.get_current_instance().runtime_info
    return int(info.get("iter", 0)), max(1, int(info.get("max_iters", 1)))


def to_target(sample: Target | BaseDataElement) -> Target:
    """A data sample of MMSegmentation's (``gt_sem_seg``, and ``gt_instances`` where a pipeline packs boxes).

    Which labels exist is told by SceneKDPackInputs; where another transform packed, by the fields themselves.
    """
    if isinstance(sample, Target):
        return sample
    meta = sample.metainfo
    has_boxes = meta.get("has_boxes", "gt_instances" in sample)
    has_sem_seg = meta.get("has_sem_seg", "gt_sem_seg" in sample)
    device = sample.gt_sem_seg.data.device if "gt_sem_seg" in sample else torch.device("cpu")
    instances = sample.gt_instances if "gt_instances" in sample else InstanceData()
    boxes = instances.get("bboxes", torch.zeros((0, 4), device=device)).float()
    labels = instances.get("labels", torch.zeros(0, device=device)).long()
    none = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    soft = sample.get("gt_soft_seg")
    shown = sample.get("gt_shown" if soft is None else "gt_soft_valid")
    height, width = meta.get("ori_shape", (0, 0))[:2]
    weights = SourceWeights(
        detection_gt=float(has_boxes),
        segmentation_gt=float(has_sem_seg),
        segmentation_teacher=float(soft is not None),
        instance_segmentation=(float(meta.get("has_instance_masks", False)), 0.0),
    )
    return Target(
        image_id=image_id_of(meta),
        boxes=boxes,
        labels=labels,
        confidences=instances.get("scores", torch.ones_like(none, dtype=torch.float32)),
        from_teacher=instances.get("from_teacher", none),
        difficult=instances.get("difficult", none),
        masks=instances.get("masks"),
        sem_seg=sample.gt_sem_seg.data[0].long() if has_sem_seg else None,
        soft_seg=None if soft is None else soft.data.float(),
        soft_valid=None if shown is None else shown.data[0].bool(),
        has_boxes=has_boxes,
        has_sem_seg=has_sem_seg,
        has_instance_masks=meta.get("has_instance_masks", False),
        has_teacher_masks=meta.get("has_teacher_masks", False),
        has_teacher_boxes=meta.get("has_teacher_boxes", False),
        weights=meta.get("scenekd_weights", weights),
        height=height,
        width=width,
        file_name=str(meta.get("img_path", "")),
    )


def to_sample(
    prediction: Prediction, sample: Target | BaseDataElement, input_shape: torch.Size
) -> SegDataSample:
    """A prediction at the original size as MMSegmentation's SegDataSample, ground truth kept beside it."""
    if isinstance(sample, Target):
        height, width = sample.height, sample.width
        output = SegDataSample(
            metainfo={
                "image_id": sample.image_id,
                "img_path": sample.file_name,
                "ori_shape": (height, width),
                "img_shape": tuple(input_shape),
                "reduce_zero_label": False,
            }
        )
    else:
        output = sample if isinstance(sample, SegDataSample) else SegDataSample()
        height, width = output.metainfo.get("ori_shape", tuple(input_shape))[:2]
    resized = prediction.resize(height, width)
    if resized.sem_seg is not None:
        output.seg_logits = PixelData(data=resized.sem_seg)
        output.pred_sem_seg = PixelData(data=resized.sem_seg.argmax(0, keepdim=True))
    if resized.boxes is not None:
        output.pred_instances = InstanceData(
            bboxes=resized.boxes, labels=resized.labels, scores=resized.scores
        )
        if resized.masks is not None:
            output.pred_instances.masks = resized.masks
    if resized.class_scores is not None:
        output.class_scores = resized.class_scores
    if resized.hidden is not None:
        output.hidden_objects = resized.hidden
    return output
