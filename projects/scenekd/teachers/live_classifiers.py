"""Classifiers of torchvision and timm that are asked for the student's own batch.

N: images; H, W: their size; C: classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from .. import checkpoint
from ..errors import UserError, first_line
from .frozen import RANDOM, freeze, require
from .uri import nearest
from .zoo_torchvision import build_network, is_zoo, zoo_weights

IMAGENET = ("ImageNet-1k train",)  # what the zoos' own classifiers were trained on
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LiveClassifier:
    """A network with its normalisation and, where it is a zoo's own, its input size; another's weights see the images
    at the size at which they come.

    Args:
        net: frozen; (N, 3, H, W) normalised → (N, C). names: C. size: side of the square input; 0: as they come.
    """

    def __init__(
        self,
        net: nn.Module,
        names: Sequence[str],
        trained_on: Sequence[str],
        *,
        size: int = 0,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
    ) -> None:
        self.net, self.names, self.trained_on = freeze(net), tuple(names), tuple(trained_on)
        self._size, self._mean, self._std = size, list(mean), list(std)

    def logits(self, images: Tensor) -> Tensor:
        """(N, C) of (N, 3, H, W) float RGB images in 0…255."""
        if self._size and tuple(images.shape[-2:]) != (self._size, self._size):
            shape = (self._size, self._size)
            images = F.interpolate(images, shape, mode="bilinear", align_corners=False, antialias=True)
        result: Tensor = self.net(normalize(images / 255, self._mean, self._std))
        return result


def torchvision_classifier(
    name: str, weights: str, classes: Sequence[str], *, untold: Sequence[str] = (), seed: int = 0
) -> LiveClassifier:
    """A classification network of torchvision.

    Args:
        weights: "" for the zoo's default, the name of others of this model, the path of a state dict, or ``random``.
        classes: its class names, in order; untold: those of a file's where ``classes`` is empty.

    Raises:
        UserError: an unknown name, weights that cannot be had or do not fit, or nothing that names the classes.
    """
    known = models.list_models(module=models)
    if name not in known:
        close = ", ".join(nearest(name, known, 8))
        raise UserError(f"TEACHER.<TASK>.NAME: torchvision has no classifier {name!r}; nearest: {close}")
    if not is_zoo(name, weights):
        names = tuple(classes) or tuple(untold)
        _need_names(names, weights)
        return LiveClassifier(build_network(name, weights, len(names), seed), names, ())
    meta = zoo_weights(name, weights)
    names = tuple(classes) or tuple(meta.meta["categories"])
    net, prepare = build_network(name, weights, len(names), seed), meta.transforms()
    size = prepare.crop_size[0]
    return LiveClassifier(net, names, IMAGENET, size=size, mean=prepare.mean, std=prepare.std)


def timm_classifier(
    name: str, weights: str, classes: Sequence[str], *, untold: Sequence[str] = (), seed: int = 0
) -> LiveClassifier:
    """A network of timm; arguments and errors as of :func:`torchvision_classifier`, but that ``weights`` name no others
    of the zoo's: timm has them in the model's name, behind a point."""
    require("timm", "pip install timm")
    import timm
    from timm.data import ImageNetInfo, resolve_model_data_config

    if not timm.is_model(name):
        close = ", ".join(nearest(name.split(".")[0], timm.list_models(), 8))
        raise UserError(f"TEACHER.<TASK>.NAME: timm has no model {name!r}; nearest: {close}")

    def create(**options: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(name, **options)

    if weights:
        names = tuple(classes) or tuple(untold)
        _need_names(names, weights)
        net = create(pretrained=False, num_classes=len(names))
        if weights != RANDOM:
            state = checkpoint.weights_of(checkpoint.read(weights))
            checkpoint.load_state(net, state, weights, strict=True)
        told = resolve_model_data_config(net)
        return LiveClassifier(net, names, (), mean=told["mean"], std=told["std"])
    try:
        net = create(pretrained=True)
    except Exception as error:  # its hub's client has errors of many kinds
        raise UserError(
            f"{name}: its weights cannot be had ({first_line(error)}); set TEACHER.<TASK>.WEIGHTS to a local state dict"
        ) from None
    told, info = resolve_model_data_config(net), ImageNetInfo()
    if not classes and net.num_classes != info.num_classes():
        raise UserError(f"TEACHER.<TASK>.CLASSES: name the {net.num_classes} classes of {name}")
    names = tuple(classes) or tuple(info.index_to_description(i) for i in range(net.num_classes))
    size = told["input_size"][-1]
    return LiveClassifier(net, names, IMAGENET, size=size, mean=told["mean"], std=told["std"])


def _need_names(names: Sequence[str], weights: str) -> None:
    if not names:
        raise UserError(f"TEACHER.<TASK>.CLASSES: {weights} tells no class names; list them in their order")
