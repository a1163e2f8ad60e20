"""Where a network looks for a class: maps over its last features.

N: images; D: channels; C: classes; h, w: size of the map.

Both kinds weigh the channels by how much they speak for the class, α_d: the mean over the map of the gradient of its
logit (Grad-CAM, Selvaraju et al., ICCV 2017, section 3). Where the logits are a linear layer W of the features' spatial
mean, that gradient is W_d / (h · w) everywhere (CAM, Zhou et al., CVPR 2016), and no backward pass is run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

KINDS = ("grad_cam", "activation")
_CLOSE = 1e-4  # of the largest logit: how far a linear layer of the mean may be from the logits by rounding


@dataclass(frozen=True)
class Look:
    """What a network made of a batch.

    Attributes:
        features: (N, D, h, w), of the layer that is looked at. logits: (N, C).
        head: weights (C, D) where the logits are linear in the features' spatial mean, else None: then the logits must
            hang on the features by their graph.
    """

    features: Tensor
    logits: Tensor
    head: Tensor | None = None


def channel_weights(look: Look, classes: Tensor, *, create_graph: bool = False) -> Tensor:
    """(N, D): α of each image's class.

    Args:
        classes: (N,) int64. create_graph: whether a loss of maps is to be differentiated further.

    Raises:
        ValueError: shapes do not fit.
    """
    features, logits = look.features, look.logits
    if features.ndim != 4 or logits.ndim != 2 or not len(features) == len(logits) == len(classes):
        raise ValueError(
            f"attention needs features (N, D, h, w), logits (N, C) and classes (N,), got {tuple(features.shape)}, "
            f"{tuple(logits.shape)} and {tuple(classes.shape)}"
        )
    if look.head is not None:
        return look.head[classes] / features[0, 0].numel()
    chosen = logits.gather(1, classes[:, None]).sum()  # of one image each, so their gradients do not mix
    (gradient,) = torch.autograd.grad(chosen, features, create_graph=create_graph, retain_graph=True)
    return gradient.mean(dim=(2, 3))


def class_attention(
    look: Look, classes: Tensor, *, kind: str = "grad_cam", create_graph: bool = False
) -> Tensor:
    """(N, h, w) ≥ 0: where each image speaks for its class.

    Args:
        classes: (N,) int64.
        kind: ``grad_cam``: max(0, Σ_d α_d F_d); ``activation``: Σ_d max(0, α_d) F_d², the summed squares of attention
            transfer (Zagoruyko and Komodakis, ICLR 2017) over the channels that speak for the class. Without these
            weights all classes would have the same map.
        create_graph: see :func:`channel_weights`.

    Raises:
        ValueError: shapes do not fit, or an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    weights = channel_weights(look, classes, create_graph=create_graph)
    if kind == "activation":
        return torch.einsum("nd,ndhw->nhw", weights.relu(), look.features.square())
    return torch.einsum("nd,ndhw->nhw", weights, look.features).relu()


def top_wrong_class(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) int64: the likeliest class that is not the label, of (N, C) logits with C ≥ 2."""
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(dim=1)


def look_of(features: Tensor, logits: Tensor, head: nn.Linear | None) -> Look:
    """What a network made of a batch, with its head where the maps can be had from that without a backward pass.

    Args:
        features, logits: of one forward pass.
        head: its last linear layer, or None where it has none; whether the logits really are that layer of the
            features' mean is asked of the numbers (a dropout between says no).
    """
    if head is not None and is_linear_head(head, features, logits):
        return Look(features, logits, head.weight)
    return Look(features, logits)


def last_linear(net: nn.Module) -> nn.Linear | None:
    """The last linear layer of a network, None where it has none."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def is_linear_head(head: nn.Linear, features: Tensor, logits: Tensor) -> bool:
    """Whether ``logits`` (N, C) are ``head`` of the spatial mean of ``features`` (N, D, h, w), up to rounding."""
    if head.in_features != features.shape[1] or head.out_features != logits.shape[1]:
        return False
    with torch.no_grad():
        expected = head(features.mean(dim=(2, 3)).to(head.weight.dtype))
        return bool((expected - logits).abs().max() <= _CLOSE * logits.abs().max().clamp(min=1))
