"""A SceneKD checkpoint as a teacher: any network of ours, with the configuration inside the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from .. import checkpoint
from ..config import config_from_text, load_config
from ..data.transforms import build_transforms
from ..data.voc import VOC_CLASSES
from ..errors import UserError
from ..models import build_model
from ..sample import Prediction, Sample, SoftSegmentation
from .frozen import amp_note, asking, freeze, to_array, weights_sha256
from .protocol import TeacherInfo, TeacherOutput


def load_network(
    weights: str | Path, config: str | Path = "", *, classes: Sequence[str] = (), untold: Sequence[str] = ()
) -> tuple[nn.Module, CfgNode]:
    """The network of a checkpoint, whichever system it belongs to, and its configuration; arguments and errors as of
    :class:`SceneKDTeacher`."""
    state = checkpoint.read(weights)
    if config:
        cfg = load_config(config)
    elif isinstance(state.get("config"), str):
        cfg = config_from_text(state["config"], source=str(weights))
    else:
        raise UserError(f"{weights}: holds no configuration; set TEACHER.<TASK>.CONFIG to the teacher's YAML")
    if not cfg.DATASETS.CLASSES:  # a foreign file tells none, and they are the network's outputs
        cfg.defrost()
        cfg.DATASETS.CLASSES = tuple(classes) or tuple(untold)
        cfg.freeze()
    net = build_model(cfg, pretrained=False)
    checkpoint.load_state(net, checkpoint.weights_of(state), str(weights), strict=True)
    return net, cfg


class SceneKDTeacher:
    """A network of ours. Its input is prepared as in its own evaluation.

    Args:
        weights: checkpoint. config: YAML file, where the one inside the checkpoint is not wanted.
        classes: names of its classes, in their order. untold: the same, where its configuration names none either.

    Raises:
        UserError: no such checkpoint, no configuration, weights of another network, or another number of names.
    """

    def __init__(
        self,
        weights: str | Path,
        config: str | Path = "",
        *,
        classes: Sequence[str] = (),
        untold: Sequence[str] = (),
        trained_on: Sequence[str] = (),
        device: torch.device | str = "cpu",
        amp: bool = False,
    ):
        net, cfg = load_network(weights, config, classes=classes, untold=untold)
        self.classes = tuple(classes) or tuple(cfg.DATASETS.CLASSES) or VOC_CLASSES
        self.net, self.device, self.amp = freeze(net, device), device, amp
        self.input_size: int = cfg.INPUT.SIZE
        self._transforms = build_transforms(cfg, train=False)
        probe = self._ask([np.zeros((cfg.INPUT.SIZE, cfg.INPUT.SIZE, 3), np.uint8)])[0]
        has = {
            "detection": probe.boxes is not None,
            "segmentation": probe.sem_seg is not None,
            "instance_segmentation": probe.mask_logits is not None,
            "classification": probe.class_scores is not None,
        }
        self.tasks = tuple(task for task, present in has.items() if present)
        if probe.sem_seg is not None and len(probe.sem_seg) != len(self.classes) + 1:
            raise UserError(
                f"{weights}: {len(probe.sem_seg)} dense classes, but {len(self.classes)} names and background"
            )
        if probe.class_scores is not None and len(probe.class_scores) != len(self.classes):
            raise UserError(
                f"{weights}: {len(probe.class_scores)} classes, but {len(self.classes)} names; correct "
                "TEACHER.<TASK>.CLASSES"
            )
        self._info = TeacherInfo(
            "scenekd",
            cfg.SYSTEM,
            weights_sha256(net),
            tuple(trained_on) or tuple(cfg.DATASETS.TRAIN),
            "logits" if has["segmentation"] else "",
            amp_note(amp),
        )

    def info(self) -> dict[str, Any]:
        """Fields of the teacher."""
        return self._info.as_dict()

    def set_nms(self, threshold: float, max_boxes: int) -> None:
        """Suppress at another IoU (1: hardly any) and keep the best ``max_boxes`` after it, for the cache.

        Raises:
            UserError: the network has no such step.
        """
        step = getattr(self.net, "postprocess", None)
        if not dataclasses.is_dataclass(step) or isinstance(step, type) or not hasattr(step, "nms_threshold"):
            raise UserError("TEACHER.DETECTION.NMS_THRESHOLD: this teacher's cannot be set; set it to 0")
        changed = {"nms_threshold": threshold, "topk_per_class": max_boxes, "topk": max_boxes}
        setattr(self.net, "postprocess", dataclasses.replace(step, **changed))  # noqa: B010 - no module
        self._info.extra["nms_threshold"] = threshold

    def predict(self, images: Sequence[np.ndarray]) -> list[TeacherOutput]:
        """Boxes in pixels of each image, masks of theirs, and dense logits on the network's own grid."""
        # The network's input has one size, so that all images make one batch.
        found = self._ask(images) if images else []
        return [self._output(said, *image.shape[:2]) for said, image in zip(found, images)]

    def _ask(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        pixels = torch.stack([self._prepare(image) for image in images])
        with asking(self.net, self.amp):
            return list(self.net(pixels.to(self.device).float(), None))

    def _prepare(self, image: np.ndarray) -> Tensor:
        sample = self._transforms(Sample(image=image, image_id="teacher"), np.random.default_rng(0))
        return torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))

    @staticmethod
    def _output(prediction: Prediction, height: int, width: int) -> TeacherOutput:
        output = TeacherOutput()
        if prediction.boxes is not None and prediction.labels is not None and prediction.scores is not None:
            resized = dataclasses.replace(prediction, sem_seg=None).resize(height, width)
            assert resized.boxes is not None
            output.boxes, output.scores = to_array(resized.boxes), to_array(prediction.scores)
            output.masks = None if resized.masks is None else resized.masks.cpu().numpy()
            output.labels = prediction.labels.cpu().numpy()
            if prediction.class_probabilities is not None:
                output.class_probabilities = to_array(prediction.class_probabilities)
        if prediction.sem_seg is not None:
            output.segmentation = SoftSegmentation(to_array(prediction.sem_seg), "logits")
        return output
