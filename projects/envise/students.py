"""The students by name. A builder ``(cfg, num_classes) -> nn.Module`` makes the bare network: (N, 3, S, S) normalised
images in, logits (N, C) out.

N: images; S: ``INPUT.SIZE``; C: classes; D, h, w: the feature map before pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.nets.packed import pack_network
from scenekd.sample import Prediction
from scenekd.teachers.options import our_classes

from .config import KEY
from .networks import build_network, network_names
from .tap import LayerTap


@dataclass(frozen=True)
class StudentSpec:
    """A network of :data:`STUDENTS`.

    Attributes:
        build: (cfg, num_classes) → the bare network.
        layer: path of the module whose output (N, D, h, w) is the feature map that attention is taken from.
        mean, std: of images in 0…1, per channel, by which they are normalised.
    """

    build: Callable[[CfgNode, int], nn.Module]
    layer: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class PlainCNN(nn.Module):
    """Three 3×3 convolutions of stride 2 (BN, ReLU), mean pooling, the classes: the smallest student, real-valued, for
    quick runs.

    Args:
        num_classes: C. width: channels of the first; the others have two and four times as many.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.features = nn.Sequential(*(_stage(a, b) for a, b in zip(widths, widths[1:])))
        self.classes = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C)."""
        logits: Tensor = self.classes(self.features(x).mean((2, 3)))
        return logits


def _stage(channels_in: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, 3, 2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def _binary(name: str) -> StudentSpec:
    def build(cfg: CfgNode, num_classes: int) -> nn.Module:
        node = cfg.MODEL.ENVISE
        options = {"scaling": node.SCALING, "gradient": node.GRADIENT}
        try:
            return build_network(name, num_classes, image_size=cfg.INPUT.SIZE, normalise=False, **options)
        except ValueError as error:
            raise UserError(f"{KEY}: {error}") from None

    return StudentSpec(build, "body")


STUDENTS: dict[str, StudentSpec] = {
    "plain_cnn": StudentSpec(lambda cfg, classes: PlainCNN(classes), "features"),
    **{name: _binary(name) for name in network_names()},
}


class StreamStudent(nn.Module):
    """A bare network with its normalisation and its feature map.

    Attributes:
        network: the bare network. layer: as in :class:`StudentSpec`.
        is_packed: whether it answers by bits, see :meth:`pack`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: nn.Module, spec: StudentSpec) -> None:
        super().__init__()
        self.network, self.layer, self._spec = network, spec.layer, spec
        self._packed: tuple[
            StreamStudent, ...
        ] = ()  # none or one; in a tuple, so that it is no part of the state
        self._tap = LayerTap(network, spec.layer)
        for name, values in (("pixel_mean", spec.mean), ("pixel_std", spec.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of (N, 3, S, S) float32 RGB in 0…255."""
        packed = self._answering()
        network = self.network if packed is None else packed.network
        logits: Tensor = network((images - self.pixel_mean) / self.pixel_std)
        return logits

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map (N, D, h, w) and the logits (N, C), in one pass; gradients flow through both."""
        packed = self._answering()
        if packed is not None:
            return packed.features_and_logits(images)
        with self._tap.listening() as heard:
            logits = self(images)
        return heard.output, logits

    @property
    def is_packed(self) -> bool:
        return bool(self._packed)

    def pack(self, backend: str = "auto") -> None:
        """From now on binary units are evaluated by XNOR and popcount wherever no gradients are asked for, to the same
        values, on the CPU; until the student is trained or given other weights.

        Args:
            backend: as of :func:`scenekd.nets.packed.pack_network`, which also tells what is raised.
        """
        self._packed = (StreamStudent(pack_network(self.network, backend), self._spec).eval(),)

    def train(self, mode: bool = True) -> StreamStudent:
        """As of any module; what was packed is dropped where it will no longer be true."""
        if mode:
            self._packed = ()
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; what was packed is dropped."""
        self._packed = ()
        return super().load_state_dict(*args, **kwargs)

    def _answering(self) -> StreamStudent | None:
        """The packed form, where it serves."""
        usable = self._packed and not self.training and not torch.is_grad_enabled()
        return self._packed[0] if usable else None


class StreamClassifier(StreamStudent):
    """A trained student under the library's contract for networks: ``net(images)`` gives a list of Prediction. It
    learns from a stream, never from a batch with labels.

    Attributes:
        tasks: (``classification``,). image_size: S.
    """

    tasks = ("classification",)
    output = "class_scores"

    def __init__(self, network: nn.Module, spec: StudentSpec, image_size: int = 32) -> None:
        super().__init__(network, spec)
        self.image_size = image_size

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The logits under the name that a Prediction has for them."""
        return {self.output: super().forward(images)}

    def forward(self, images: Tensor, targets: Any = None) -> Any:
        """One Prediction an image, with its class logits.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError("a student of envise learns from a stream, see envise.run.OnlineRun")
        size = (images.shape[-2], images.shape[-1])
        return [Prediction(size=size, class_scores=one) for one in super().forward(images)]


def build_model(cfg: CfgNode, *, pretrained: bool = True) -> StreamClassifier:
    """What :func:`scenekd.models.build_model` calls for this system; a stream's student has no pretrained trunk.

    Raises:
        UserError: no such network.
    """
    spec = _find(cfg)
    return StreamClassifier(spec.build(cfg, len(our_classes(cfg))), spec, cfg.INPUT.SIZE).eval()


def tasks_of(cfg: CfgNode) -> tuple[str, ...]:
    """The task of every student."""
    return StreamClassifier.tasks


def _find(cfg: CfgNode) -> StudentSpec:
    name = cfg.MODEL.ENVISE.NETWORK
    if name not in STUDENTS:
        raise UserError(f"{KEY}.NETWORK: {name!r}; choose one of {', '.join(sorted(STUDENTS))}")
    return STUDENTS[name]


def build_student(cfg: CfgNode, num_classes: int) -> StreamStudent:
    """The student of ``MODEL.ENVISE.NETWORK``, freshly initialised from ``SEED``.

    Raises:
        UserError: no such network.
    """
    spec = _find(cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.SEED)
        return StreamStudent(spec.build(cfg, num_classes), spec)
