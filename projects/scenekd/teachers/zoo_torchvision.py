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
from torch import Tensor, nn
from torchvision import models

from .. import checkpoint
from ..errors import UserError
from ..sample import SoftSegmentation
from .frozen import RANDOM, NetworkTeacher, to_array, to_bytes, to_tensor
from .label_map import join_classes
from .masks import masks_to_scores
from .protocol import SAVED_TASKS, TeacherOutput
from .torchvision_vectors import HeadProbabilities
from .uri import nearest

NO_LIMIT = 1 << 20  # boxes: more than any network proposes
COCO_TRAINING = ("COCO train2017",)  # what torchvision trained all of these on
_NOT_A_CLASS = ("__background__", "N/A")


class TorchvisionDetector(NetworkTeacher):
    """A box detector; Mask R-CNN has masks of its boxes, and dense scores from them (form scores, at the
    image's size).

    Args:
        classes: without background; the network's label i + 1 is ``classes[i]``. Empty: COCO's 80, for
        weights
            with COCO's 91 labels.
        min_score, max_boxes: what the network itself keeps, before and after suppression; 0 boxes: no limit.
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
        amp: bool = False,
        seed: int = 0,
    ):
        labels = ("__background__", *classes) if classes else _categories(name, weights)
        self.classes = tuple(c for c in labels if c not in _NOT_A_CLASS)
        names = [c if c not in _NOT_A_CLASS else None for c in labels]
        # The place of each of the network's labels among the classes; −1 for gaps in COCO's numbering.
        order = {c: i for i, c in enumerate(self.classes)}
        self._place = np.array([-1 if c is None else order[c] for c in names])
        net = build_network(name, weights, len(labels), seed)
        part = getattr(net, "roi_heads", net)
        part.score_thresh, part.detections_per_img = min_score, max_boxes or NO_LIMIT
        self._take(net, device, amp)
        self._head = HeadProbabilities.of(net)
        self.has_masks = name.startswith("maskrcnn")
        self.tasks = SAVED_TASKS if self.has_masks else ("detection",)
        form = "scores" if self.has_masks else ""
        self._describe("torchvision", name, trained_on or _training_data(name, weights), form)

    def set_nms(self, threshold: float, max_boxes: int) -> None:
        """Suppress at another IoU (1: hardly any) and keep the best ``max_boxes`` after it, for the cache."""
        part = getattr(self.net, "roi_heads", self.net)
        part.nms_thresh, part.detections_per_img = threshold, max_boxes or NO_LIMIT
        self._info.extra["nms_threshold"] = threshold

    def _ask(self, images: list[np.ndarray]) -> list[TeacherOutput]:
        found = self.net([to_tensor(image, self.device) for image in images])
        return [self._output(one) for one in found]  # in their order, as the head's listener has them

    def _output(self, found: dict[str, Tensor]) -> TeacherOutput:
        labels = self._place[found["labels"].cpu().numpy()]
        keep = labels >= 0
        boxes, scores, labels = to_array(found["boxes"])[keep], to_array(found["scores"])[keep], labels[keep]
        soft = masks = None
        if self.has_masks:
            masks = (found["masks"][:, 0] > 0.5).cpu().numpy()[keep]
            soft = masks_to_scores(masks, labels, scores, len(self.classes))
        rows = None if self._head is None else self._head.rows(found["labels"], found["scores"])
        vectors = rows if rows is None else join_classes(to_array(rows)[keep], self._place, len(self.classes))
        return TeacherOutput(boxes, labels, scores, soft, vectors, masks)


class TorchvisionSegmenter(NetworkTeacher):
    """A dense teacher; gives the logits before their last interpolation.

    Args:
        classes: without background. Empty: the 20 VOC classes of torchvision's weights.
        resize: shorter side to which images are brought, as in torchvision's evaluation; 0 keeps their size.
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
        amp: bool = False,
        seed: int = 0,
    ):
        self.classes = tuple(classes) or _categories(name, weights)[1:]
        net = build_network(name, weights, len(self.classes) + 1, seed)
        self._take(net, device, amp)
        # The weights' own preparation, on their images' bytes: resizing rounds to bytes again.
        self._prepare = zoo_weights(name, weights).transforms(resize_size=resize or None)
        self._backbone, self._head = net.get_submodule("backbone"), net.get_submodule("classifier")
        self._whole = name.startswith("lraspp")  # its head takes both feature maps
        training = trained_on or _training_data(name, weights)
        self._describe("torchvision", name, training, "logits", resize=resize)

    def _ask(self, images: list[np.ndarray]) -> list[TeacherOutput]:
        pixels = torch.stack([self._prepare(to_bytes(image)) for image in images]).to(self.device)
        features = self._backbone(pixels)
        logits = self._head(features if self._whole else features["out"])
        return [TeacherOutput(segmentation=SoftSegmentation(to_array(part), "logits")) for part in logits]


def build_torchvision(
    name: str, weights: str = "", **options: Any
) -> TorchvisionDetector | TorchvisionSegmenter:
    """The teacher of a torchvision model name.

    Args:
        weights: "" for the zoo's default weights, the name of others of this model (COCO_V1), the path of a
            state dict, or "random" (seeded).
        options: of :class:`TorchvisionDetector` and :class:`TorchvisionSegmenter`; those that the kind lacks
            are left out.

    Raises:
        UserError: an unknown name, weights that do not fit or cannot be had.
    """
    known = models.list_models(module=models.detection) + models.list_models(module=models.segmentation)
    known = [model for model in known if not model.startswith("keypoint")]
    if name not in known:
        raise UserError(
            f"TEACHER.<TASK>.NAME: torchvision has no teacher {name!r}; choose one of "
            f"{', '.join(nearest(name, known))}"
        )
    if name in models.list_models(module=models.segmentation):
        for option in ("min_score", "max_boxes"):
            options.pop(option, None)
        return TorchvisionSegmenter(name, weights, **options)
    return TorchvisionDetector(name, weights, **options)


def _categories(name: str, weights: str) -> tuple[str, ...]:
    return tuple(zoo_weights(name, weights).meta["categories"])


def zoo_weights(name: str, weights: str) -> Any:
    """torchvision's weights of that name, with or without their class before it; else its default."""
    known = models.get_model_weights(name)
    member = weights.removeprefix(f"{known.__name__}.")
    return known[member] if member in known.__members__ else known["DEFAULT"]


def is_zoo(name: str, weights: str) -> bool:
    """Whether ``weights`` are torchvision's own.

    Raises:
        UserError: they are neither that nor a file.
    """
    known = models.get_model_weights(name)
    if not weights or weights.removeprefix(f"{known.__name__}.") in known.__members__:
        return True
    if weights != RANDOM and "/" not in weights and "." not in weights:
        names = ", ".join(nearest(weights, known.__members__))
        raise UserError(
            f"TEACHER.<TASK>.WEIGHTS: {name} has no weights {weights!r}; choose {names}, or give a file"
        )
    return False


def build_network(name: str, weights: str, num_classes: int, seed: int) -> nn.Module:
    """A network of torchvision with its weights: the zoo's own, a file's, or seeded ones.

    Raises:
        UserError: they cannot be had or do not fit.
    """
    zoo = is_zoo(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Classifiers have no trunk apart from themselves.
        trunk = {} if name in models.list_models(module=models) else {"weights_backbone": None}
        net = models.get_model(name, weights=None, num_classes=num_classes, **trunk)
    if weights == RANDOM:
        return net
    if zoo:
        state = _download(name, weights)
    else:
        state = checkpoint.weights_of(checkpoint.read(weights))
    # The auxiliary head serves training alone.
    state = {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
    checkpoint.load_state(net, state, weights or name, strict=True)
    return net


def _download(name: str, weights: str) -> dict[str, Tensor]:
    source = zoo_weights(name, weights)
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


def _training_data(name: str, weights: str) -> tuple[str, ...]:
    return COCO_TRAINING if is_zoo(name, weights) else ()
