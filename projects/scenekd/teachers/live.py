"""Dense teachers that are asked for the student's own batch, while it trains.

N: images; H, W: their size; K: dense classes, background first; h, w: a teacher's own grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from ..errors import UserError
from .label_map import BACKGROUND, canonical
from .scenekd_teacher import SceneKDTeacher
from .zoo_torchvision import TorchvisionSegmenter

TORCHVISION = "torchvision://"
_MEAN, _STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of images in 0…1, in all of torchvision's training


class LiveTeacher(Protocol):
    """A dense teacher that is a frozen network; no module of the student's, so in none of its state dicts.

    ``names`` are those of its K dense classes, in order; ``trained_on`` data sets, where they are known.
    """

    names: tuple[str, ...]
    trained_on: tuple[str, ...]
    net: nn.Module

    def logits(self, images: Tensor) -> Tensor:
        """(N, K, h, w) logits of (N, 3, H, W) float RGB images in 0…255; to be called within :func:`asked`."""
        ...


@contextmanager
def asked(teacher: LiveTeacher, device: torch.device) -> Iterator[None]:
    """The teacher on ``device``, in evaluation mode whatever was done to it meanwhile, without gradients.

    Not torch's inference mode: the student's backward pass keeps what the teacher said.
    """
    first = next(teacher.net.parameters(), None)
    if first is None or first.device != device:  # .to() looks at every tensor, which small networks feel
        teacher.net.to(device)
    teacher.net.eval()
    with torch.no_grad():
        yield


class LiveTorchvision:
    """A segmentation network of torchvision, see :class:`.zoo_torchvision.TorchvisionSegmenter`."""

    def __init__(self, name: str, weights: str = "", classes: Sequence[str] = ()) -> None:
        known = models.list_models(module=models.segmentation)
        if name not in known:
            raise UserError(
                f"{TORCHVISION}{name}: no segmentation network of torchvision; choose {', '.join(known)}"
            )
        teacher = TorchvisionSegmenter(name, weights, classes=_without_background(classes))
        self.net, self.names = teacher.net, (BACKGROUND, *teacher.classes)
        self.trained_on = tuple(teacher.info()["trained_on"])

    def logits(self, images: Tensor) -> Tensor:
        """At the images' size."""
        result: Tensor = self.net(normalize(images / 255, list(_MEAN), list(_STD)))["out"]
        return result


class LiveSceneKD:
    """A network of ours from its checkpoint; images are brought to its own input size.

    Args:
        task: ``segmentation``, or ``classification``, where ``names`` are those of the classes alone.
        untold: class names where neither ``classes`` nor its configuration tells them.
    """

    def __init__(
        self,
        weights: str,
        config: str = "",
        classes: Sequence[str] = (),
        *,
        task: str = "segmentation",
        untold: Sequence[str] = (),
    ) -> None:
        dense = task == "segmentation"
        own = _without_background(classes) if dense else classes
        teacher = SceneKDTeacher(weights, config, classes=own, untold=untold)
        if task not in teacher.tasks:
            raise UserError(f"{weights}: does {' and '.join(teacher.tasks)}, not {task}")
        self.net, self._dense = teacher.net, dense
        self.trained_on = tuple(teacher.info()["trained_on"])
        self.names = (BACKGROUND, *teacher.classes) if dense else teacher.classes
        self._size = (teacher.input_size, teacher.input_size)

    def logits(self, images: Tensor) -> Tensor:
        """On the network's grid; (N, C) of classes."""
        if tuple(images.shape[-2:]) != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", align_corners=False)
        return torch.stack([p.sem_seg if self._dense else p.class_scores for p in self.net(images, None)])


def _without_background(classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(classes[1:]) if classes and canonical(classes[0]) == BACKGROUND else tuple(classes)
