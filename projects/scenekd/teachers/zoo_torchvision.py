"""torchvision's models as teachers: box detectors, Mask R-CNN, FCN, DeepLabV3 and LR-ASPP.

h, w: the grid of the network's last convolution, before its last interpolation (stride 8 of its input for
FCN and DeepLabV3). torchvision enlarges it with half-pixel centres, so it is sampled as SoftSegmentation
says.
"""

from __future__ import annotations

import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from .. import checkpoint
from ..errors import UserError
from ..sample import SoftSegmentation
from .frozen import asking, freeze, to_array, to_tensor, weights_sha256
from .label_map import join_classes
from .masks import masks_to_scores
from .protocol import TeacherInfo, TeacherOutput
from .torchvision_vectors import HeadProbabilities

RANDOM = "random"
COCO_TRAINING = ("COCO train2017",)  # what torchvision trained all of these on
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NOT_A_CLASS = ("__background__", "N/A")


class TorchvisionDetector:
    """A box detector; Mask R-CNN has dense scores too, from its masks (form scores, at the image's size).

    Args:
        classes: without background; the network's label i + 1 is ``classes[i]``. Empty: COCO's 80, for
        weights
            with COCO's 91 labels.
        min_score, max_boxes: what the network itself keeps, before and after suppression.
    """

    def __init__(
        self,
        name: str,
        weights: str = "",
        *,
        classes: Sequence[str] = (),
        min_score: float = 0.0,
        max_boxes: int = 100,
        trained_on: Sequence[str] = (),
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        labels = ("__background__", *classes) if classes else _categories(name)
        self.classes = tuple(c for c in labels if c not in _NOT_A_CLASS)
        names = [c if c not in _NOT_A_CLASS else None for c in labels]
        # The place of each of the network's labels among the classes; −1 for gaps in COCO's numbering.
        order = {c: i for i, c in enumerate(self.classes)}
        self._place = np.array([-1 if c is None else order[c] for c in names])
        net = _build(name, weights, len(labels), seed)
        part = getattr(net, "roi_heads", net)
        part.score_thresh, part.detections_per_img = min_score, max_boxes
        self.net, self.device = freeze(net, device), device
        self._head = HeadProbabilities.of(net)
        self.has_masks = name.startswith("maskrcnn")
        self.tasks = ("detection", "segmentation") if self.has_masks else ("detection",)
        self._info = _info(name, weights, net, trained_on, "scores" if self.has_masks else "")

    def info(self) -> dict[str, Any]:
        """Fields of the teacher."""
        return self._info.as_dict()

    def set_nms(self, threshold: float, max_boxes: int) -> None:
        """Suppress at another IoU (1: hardly any) and keep the best ``max_boxes`` after it, for the cache."""
        part = getattr(self.net, "roi_heads", self.net)
        part.nms_thresh, part.detections_per_img = threshold, max_boxes
        self._info.extra["nms_threshold"] = threshold

    def predict(self, images: Sequence[np.ndarray]) -> list[TeacherOutput]:
        """Boxes of each image (and dense scores of Mask R-CNN) at the image's own size."""
        with asking(self.net):
            return [self._output(self.net([to_tensor(image, self.device)])[0]) for image in images]

    def _output(self, found: dict[str, Tensor]) -> TeacherOutput:
        labels = self._place[found["labels"].cpu().numpy()]
        keep = labels >= 0
        boxes, scores, labels = to_array(found["boxes"])[keep], to_array(found["scores"])[keep], labels[keep]
        soft = None
        if self.has_masks:
            masks = (found["masks"][:, 0] > 0.5).cpu().numpy()[keep]
            soft = masks_to_scores(masks, labels, scores, len(self.classes))
        rows = None if self._head is None else self._head.rows(found["labels"], found["scores"])
        vectors = rows if rows is None else join_classes(to_array(rows)[keep], self._place, len(self.classes))
        return TeacherOutput(boxes, labels, scores, soft, vectors)


class TorchvisionSegmenter:
    """A dense teacher; gives the logits before their last interpolation.

    Args:
        classes: without background. Empty: the 20 VOC classes of torchvision's weights.
        resize: shorter side to which images are brought, as in torchvision's training; 0 keeps their size.
    """

    tasks = ("segmentation",)

    def __init__(
        self,
        name: str,
        weights: str = "",
        *,
        classes: Sequence[str] = (),
        resize: int = 520,
        trained_on: Sequence[str] = (),
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        self.classes = tuple(classes) or _categories(name)[1:]
        net = _build(name, weights, len(self.classes) + 1, seed)
        self.net, self.device, self.resize = freeze(net, device), device, resize
        self._backbone, self._head = net.get_submodule("backbone"), net.get_submodule("classifier")
        self._whole = name.startswith("lraspp")  # its head takes both feature maps
        self._info = _info(name, weights, net, trained_on, "logits", resize=resize)

    def info(self) -> dict[str, Any]:
        """Fields of the teacher."""
        return self._info.as_dict()

    def predict(self, images: Sequence[np.ndarray]) -> list[TeacherOutput]:
        """Dense logits of each image, (C + 1, h, w)."""
        with asking(self.net):
            return [TeacherOutput(segmentation=self._logits(image)) for image in images]

    def _logits(self, image: np.ndarray) -> SoftSegmentation:
        pixels = to_tensor(image, self.device)[None]
        if self.resize:
            scale = self.resize / min(image.shape[:2])
            size = [max(round(side * scale), 1) for side in image.shape[:2]]
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        features = self._backbone(normalize(pixels, list(_MEAN), list(_STD)))
        logits = self._head(features if self._whole else features["out"])
        return SoftSegmentation(to_array(logits[0]), "logits")


def build_torchvision(
    name: str, weights: str = "", **options: Any
) -> TorchvisionDetector | TorchvisionSegmenter:
    """The teacher of a torchvision model name.

    Args:
        weights: "" for the zoo's default weights, the path of a state dict, or "random" (seeded).
        options: of :class:`TorchvisionDetector` and :class:`TorchvisionSegmenter`; those that the kind lacks
            are left out.

    Raises:
        UserError: an unknown name, weights that do not fit or cannot be had.
    """
    known = models.list_models(module=models.detection) + models.list_models(module=models.segmentation)
    known = [model for model in known if not model.startswith("keypoint")]
    if name not in known:
        raise UserError(
            f"TEACHER.NAME: torchvision has no teacher {name!r}; choose one of {', '.join(known)}"
        )
    if name in models.list_models(module=models.segmentation):
        for option in ("min_score", "max_boxes"):
            options.pop(option, None)
        return TorchvisionSegmenter(name, weights, **options)
    return TorchvisionDetector(name, weights, **options)


def _categories(name: str) -> tuple[str, ...]:
    return tuple(models.get_model_weights(name).DEFAULT.meta["categories"])


def _build(name: str, weights: str, num_classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
    if weights == RANDOM:
        return net
    if weights:
        state = checkpoint.weights_of(checkpoint.read(weights))
    else:
        state = _download(name)
    # The auxiliary head serves training alone.
    state = {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
    checkpoint.load_state(net, state, weights or name, strict=True)
    return net


def _download(name: str) -> dict[str, Tensor]:
    source = models.get_model_weights(name).DEFAULT
    file_name = source.url.rsplit("/", 1)[-1]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return dict(source.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{name}: its weights cannot be downloaded ({reason}); place {file_name} in {folder}, "
            "or set TEACHER.<TASK>.WEIGHTS to a local state dict"
        ) from None


def _info(
    name: str, weights: str, net: nn.Module, trained_on: Sequence[str], form: str, **extra: Any
) -> TeacherInfo:
    training = tuple(trained_on) or (() if weights else COCO_TRAINING)
    return TeacherInfo("torchvision", name, weights_sha256(net), training, form, extra)
