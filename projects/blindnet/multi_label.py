"""Which classes are in the scene, seen or hidden: the multi-label classifier (the paper's section 3.4).

N: pictures; C: classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scenekd.sample import Target

from .context import ContextClassifier
from .network import Inputs


class MultiLabelClassifier(ContextClassifier):
    """Trunk → classes, each by a sigmoid of its own. The target is the set of all classes in the picture, the hidden
    one among them.

    The score of a class for the region is the logarithm of its sigmoid, so their softmax is its part of the sum of all;
    which region is asked about it learns from the hole alone, and a class that is seen elsewhere scores as well as one
    that is hidden. With ``POOL global`` and no ``GEOMETRY`` it is the paper's network.
    """

    def forward(self, inputs: Inputs) -> Tensor:
        return F.logsigmoid(super().forward(inputs).float())

    def losses(self, inputs: Inputs, targets: list[Target], weights: Tensor) -> dict[str, Tensor]:
        logits = super().forward(inputs)
        return {"loss_scene": scene_loss(logits, scene_classes(targets, logits.shape[1]), weights)}


def scene_classes(targets: list[Target], num_classes: int) -> Tensor:
    """(N, C) float32: 1 for each class of which the picture has a box, visible or hidden."""
    truth = torch.zeros(len(targets), num_classes, device=targets[0].boxes.device)
    for row, target in zip(truth, targets):
        row[target.labels] = 1
    return truth


def scene_loss(logits: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy, its mean over pictures and classes weighted by class.

    Args:
        logits, truth: (N, C). weights: (C,).
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return (loss * weights).sum() / (weights.sum() * len(loss))
