"""Models that do not see the picture: what they reach is not context that was seen.

N: pictures; C: classes; M: visible objects of all pictures of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenekd.sample import Target

from .hole_geometry import GEOMETRY, hole_boxes, hole_geometry
from .network import HiddenObjectNetwork, Inputs

_SMALLEST = 1e-6  # share of a class that training never showed
_OUTLINE = 16  # side of the grid on which mask_only sees the shape of the hole


class ClassPrior(HiddenObjectNetwork):
    """The share of each class among the training objects, whatever is shown."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_classes))

    def observe_shares(self, shares: Tensor) -> None:
        with torch.no_grad():
            self.scores.copy_(shares.clamp(min=_SMALLEST).log())

    def forward(self, inputs: Inputs) -> Tensor:
        return self.scores.expand(len(inputs.hole), -1)


class MaskOnly(HiddenObjectNetwork):
    """Place, size and shape of the hole, and nothing else.

    Args:
        num_classes: C. width: units of each of two layers.
    """

    def __init__(self, num_classes: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(GEOMETRY + _OUTLINE**2, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, num_classes),
        )

    def forward(self, inputs: Inputs) -> Tensor:
        outline = F.adaptive_avg_pool2d(inputs.hole, _OUTLINE).flatten(1)
        scores: Tensor = self.layers(torch.cat([hole_geometry(inputs.hole), outline], dim=1))
        return scores


class LayoutOnly(HiddenObjectNetwork):
    """Classes and boxes of the visible objects, and the hole's box: what a perfect detector would know of the scene.

    Each object becomes a vector of its class and its box, absolute and as seen from the hole; their sum and mean
    stand beside the hole's geometry (Zaheer et al., Deep Sets, 2017).

    Args:
        num_classes: C. width: units of a layer.
    """

    wants_targets = True

    def __init__(self, num_classes: int, width: int = 128) -> None:
        super().__init__()
        self.of_class = nn.Embedding(num_classes, width)
        self.of_box = nn.Linear(8, width)
        self.of_object = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.layers = nn.Sequential(
            nn.Linear(2 * width + GEOMETRY, width), nn.ReLU(), nn.Linear(width, num_classes)
        )

    def forward(self, inputs: Inputs) -> Tensor:
        if inputs.targets is None:
            raise ValueError("the layout of the visible objects is missing")
        boxes, labels, picture = visible_objects(inputs.targets, inputs.hole.shape[-2:])
        hole = hole_boxes(inputs.hole)[picture]
        vectors = self.of_object(self.of_class(labels) + self.of_box(_relations(boxes, hole)))
        total = vectors.new_zeros(len(inputs.hole), vectors.shape[1]).index_add(0, picture, vectors)
        count = torch.bincount(picture, minlength=len(inputs.hole)).clamp(min=1)[:, None]
        scores: Tensor = self.layers(torch.cat([total, total / count, hole_geometry(inputs.hole)], dim=1))
        return scores


def visible_objects(targets: list[Target], size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (M, 4) as fractions of width and height, labels (M,) and picture (M,) of what can be seen.

    Raises:
        ValueError: a target from which nothing was hidden.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for place, target in enumerate(targets):
        if target.visible is None:
            raise ValueError("every target needs a hidden object")
        labels = target.labels[target.visible]
        parts.append((target.boxes[target.visible], labels, torch.full_like(labels, place)))
    boxes, labels, picture = (torch.cat(column) for column in zip(*parts))
    return boxes / boxes.new_tensor([size[1], size[0]] * 2), labels, picture


def _relations(boxes: Tensor, hole: Tensor) -> Tensor:
    """(M, 8): centre and sides of each box, and both relative to its hole's."""
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    from_centre, from_side = (hole[:, :2] + hole[:, 2:]) / 2, (hole[:, 2:] - hole[:, :2]).clamp(min=1e-3)
    return torch.cat([centre, side, (centre - from_centre) / from_side, (side / from_side).log()], dim=1)
