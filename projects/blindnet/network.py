"""The interface of every model: a picture with a hole in, a score for each class of what was hidden out.

N: pictures; C: object classes; H, W: network input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scenekd.sample import Target


@dataclass
class Inputs:
    """What a network may look at.

    Attributes:
        images: (N, 3, H, W) float32, normalised; something else stands in the hole.
        hole: (N, 1, H, W) float32, 1 in the hole and 0 elsewhere.
        targets: for a network that ``wants_targets``, and in training; else None.
        hidden: (N, 1, H, W) float32, 1 where anything is hidden: the hole, and where several regions are hidden at
            once, the others; None for the hole alone.
    """

    images: Tensor
    hole: Tensor
    targets: list[Target] | None = None
    hidden: Tensor | None = None


class HiddenObjectNetwork(nn.Module):
    """Base class: a subclass has :meth:`forward`, and another :meth:`losses` where it learns otherwise.

    Attributes:
        wants_targets: whether it is told the boxes and classes of the other, visible objects.
        shares_trunk: whether it has ``features(inputs) -> (N, F, h, w)``, which know what is hidden but not which hole
            is asked for, and ``classify(features, hole) -> (N, C)``: one pass of the trunk answers for several holes.
        trunk: the name of the child whose weights may be loaded alone, and torchvision's name of it; "" for none.
    """

    wants_targets = False
    shares_trunk = False
    trunk: tuple[str, str] = ("", "")

    def forward(self, inputs: Inputs) -> Tensor:
        """(N, C) scores, whose softmax is the probability of each class."""
        raise NotImplementedError

    def observe_shares(self, shares: Tensor) -> None:
        """Told the (C,) share of each class among the training objects, before training."""

    def losses(self, inputs: Inputs, targets: list[Target], weights: Tensor) -> dict[str, Tensor]:
        """Scalar losses of a batch; ``weights`` (C,) of the classes."""
        return {"loss_class": class_loss(self(inputs), hidden_classes(targets), weights)}


def hidden_classes(targets: list[Target]) -> Tensor:
    """(N, C) float32, 1 for each class under the hole.

    Raises:
        ValueError: a target from which nothing was hidden.
    """
    rows = [target.hidden_classes for target in targets if target.hidden_classes is not None]
    if len(rows) != len(targets):
        raise ValueError("every target needs a hidden object")
    return torch.stack(rows)


def class_loss(scores: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with the classes under the hole, each as likely: with q = classes / Σ_c classes,
    − Σ_nc w_c q_nc log p_nc / Σ_nc w_c q_nc; with one class each, torch's weighted cross-entropy.

    Args:
        scores: (N, C). classes: (N, C) of 0 and 1, at least one 1 in each row. weights: (C,), positive.
    """
    likely = classes / classes.sum(dim=1, keepdim=True) * weights
    return -(likely * scores.float().log_softmax(dim=1)).sum() / likely.sum()
