"""What is exported: a graph from pixels to named arrays, and the description that travels with it.

B: images; S: side of the input; A: anchors; N: boxes kept; C: classes; K = C + 1: dense classes, background first;
h, w: the grid of the dense output.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__
from .boxes import clip, decode
from .errors import UserError
from .teachers.frozen import weights_sha256

INPUT = "images"
# What a graph may give; a network may say more than these.
MEANINGS = {
    "class_probabilities": "of each box, C + 1 in 0…1, background last",
    "boxes": "x1, y1, x2, y2 in pixels of the S × S input, clipped to it",
    "labels": "class of each box, an index into classes",
    "scores": "of each box, 0…1, falling",
    "sem_seg": "logits of background and the C classes on a grid over the whole input",
    "class_scores": "logits of the C classes of the whole image",
    "mask_logits": "of each box, on the same grid; above 0 on the object, inside the box",
    "prototypes": "P maps on the same grid; a box's mask logits are their sum weighed by its coefficients",
    "mask_coefficients": "of each box, P",
}
# Of one box each, in a graph that chooses boxes.
ROW = "detections"


class ExportGraph(nn.Module):
    """(B, 3, S, S) float32 RGB in 0…255 → a tuple of arrays, named by :attr:`names`.

    Args:
        net: a network with ``outputs(images)``, ``image_size`` and ``tasks``, and ``anchors`` where it detects, as
            BlitzNet and the students of fcn_kd; it is put into evaluation mode.
        nms: False: ``class_probabilities`` (B, A, C + 1), ``boxes`` (B, A, 4), ``sem_seg`` (B, K, h, w) and
            ``class_scores`` (B, C), as far as there are tasks, and whatever else the network's heads say.
            True: the network's own prediction for one image (B = 1):
            ``boxes`` (N, 4), ``labels`` (N,) int64, ``scores`` (N,), ``class_probabilities`` (N, C + 1),
            ``sem_seg`` (K, h, w) and ``mask_logits`` (N, h, w), as far as there are tasks; N differs from image to
            image.

    Raises:
        UserError: a network that is not built so, or ``nms`` without a detection task.
    """

    def __init__(self, net: nn.Module, *, nms: bool) -> None:
        super().__init__()
        if not all(hasattr(net, name) for name in ("outputs", "image_size", "tasks")):
            raise UserError(
                f"MODEL: a {type(net).__name__} cannot be exported; take a network of SYSTEM kd_mtl or fcn_kd"
            )
        self.net: Any
        self.net = net.eval()
        self.tasks = tuple(self.net.tasks)
        if nms and "detection" not in self.tasks:
            raise UserError("--nms: the network has no detection task; leave it out")
        self.nms = nms
        with torch.no_grad():
            shown = self.named(self.example(1))
        self.names = tuple(shown)
        self.shapes = {name: tuple(value.shape) for name, value in shown.items()}

    def example(self, count: int) -> Tensor:
        """Any input of ``count`` images."""
        generator = torch.Generator().manual_seed(0)
        size = self.net.image_size
        return 255 * torch.rand(count, 3, size, size, generator=generator)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(images).values())

    def named(self, images: Tensor) -> dict[str, Tensor]:
        """What :meth:`forward` gives, by name."""
        if self.nms:
            prediction = self.net(images)[0]
            fields = {f.name: getattr(prediction, f.name) for f in dataclasses.fields(prediction)}
            return {name: value for name, value in fields.items() if isinstance(value, Tensor)}
        outputs = dict(self.net.outputs(images))
        named = {}
        if "class_logits" in outputs:
            named["class_probabilities"] = _probabilities(outputs.pop("class_logits"))
            boxes = decode(outputs.pop("offsets").float(), self.net.anchors)
            named["boxes"] = clip(boxes, *images.shape[-2:])
        return {**named, **outputs}

    def probabilities(self, images: Tensor) -> Tensor:
        """(B, A, C + 1) class probabilities of all anchors, background last."""
        return _probabilities(self.net.outputs(images)["class_logits"])

    def dimensions(self, name: str) -> list[int | str]:
        """The shape of an output, with names for the sizes that vary: ``batch``, and ``detections`` for N."""
        shape: list[int | str] = list(self.shapes[name])
        if not self.nms:
            shape[0] = "batch"
        elif name != "sem_seg":
            shape[0] = ROW
        return shape

    def description(self, classes: Sequence[str]) -> dict[str, str]:
        """What a user of the file must know, as text by key; lists and mappings are JSON."""
        size = self.net.image_size
        images = {
            "shape": [1 if self.nms else "batch", 3, size, size],
            "dtype": "float32",
            "meaning": "RGB in 0…255, resized to S × S; normalisation is inside",
        }
        outputs = {
            name: {"shape": self.dimensions(name), "meaning": MEANINGS.get(name, "")} for name in self.names
        }
        about: dict[str, Any] = {
            "inputs": {INPUT: images},
            "outputs": outputs,
            "classes": list(classes),
            "tasks": self.tasks,
            "nms": dataclasses.asdict(self.net.postprocess) if self.nms else None,
            "network": type(self.net).__name__,
        }
        text = {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}
        versions = {"scenekd_version": __version__, "torch_version": str(torch.__version__)}
        return {**text, **versions, "weights_sha256": weights_sha256(self.net)}


def _probabilities(class_logits: Tensor) -> Tensor:
    return class_logits.float().softmax(dim=-1)
