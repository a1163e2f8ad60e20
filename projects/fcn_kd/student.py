"""The student: a bare network, the normalisation before it, and the losses it learns by.

B: images; K: dense classes, background first; C: classes; H, W: network input; h, w: the network's own grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.distill import label_cross_entropy
from scenekd.losses.positions import resized, resized_labels
from scenekd.nets.weights import load_pretrained
from scenekd.sample import IGNORE_INDEX, Prediction, Target
from scenekd.teachers.options import our_classes

from .distiller import Distiller, build_distiller
from .networks import find_network
from .spec import KEY, NetworkSpec

LOSS_SIZES = ("image", "logits")
NO_CLASS = -100  # label of an image without a class; 255 may be one


class SceneKDStudent(nn.Module):
    """``net(images, targets)``: scalar losses ``loss_*`` in training mode, else a list of Prediction.

    Args:
        network: turns normalised images into logits, see :mod:`.networks`. spec: what it is.
        loss_size: ``image``: logits are resized to the labels (bilinear), as torchvision and MMSegmentation do;
            ``logits``: labels are taken at the nearest pixel of the network's own grid, which is much cheaper.

    Attributes:
        tasks: (task,), which says what is evaluated. network: the bare network, whose module paths the losses name.
        distiller: what it learns by beside the labels, once :meth:`prepare_training` was called; no part of
            ``model_final.pth``.
    """

    training_only = ("distiller",)

    image_size: int  # side of the square input; any other does as well
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: nn.Module, spec: NetworkSpec, *, loss_size: str = "image") -> None:
        super().__init__()
        if loss_size not in LOSS_SIZES:
            raise ValueError(f"LOSS_SIZE must be one of {', '.join(LOSS_SIZES)}, got {loss_size!r}")
        self.network, self.tasks, self.loss_size = network, (spec.task,), loss_size
        self.distiller: Distiller | None = None
        self.ignore_index = NO_CLASS if spec.task == "classification" else IGNORE_INDEX
        self._trunk, self._zoo = spec.trunk, spec.zoo
        for name, values in (("pixel_mean", spec.mean), ("pixel_std", spec.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def load_trunk(self, source: str) -> None:
        """Load the trunk alone, as :func:`scenekd.nets.weights.load_pretrained` does.

        Raises:
            UserError: the network has no trunk of its own, or the weights do not fit it.
        """
        if not self._trunk:
            raise UserError(f"{source}: weights of another network than {KEY}.NETWORK")
        load_pretrained(self.network.get_submodule(self._trunk), self._zoo, source, key=KEY)

    def prepare_training(self, cfg: CfgNode) -> None:
        """Load the teacher and build the losses that ``DISTILL`` names.

        Raises:
            UserError: see :func:`.distiller.build_distiller`.
        """
        outputs = count_outputs(cfg, self.tasks[0])
        self.distiller = build_distiller(
            cfg, self.network, self.tasks[0], outputs=outputs, ignore_index=self.ignore_index
        )

    def logits(self, images: Tensor) -> Tensor:
        """Of (B, 3, H, W) float32 RGB in 0…255: (B, K, h, w), or (B, C)."""
        normalised = (images - self.pixel_mean) / self.pixel_std
        if normalised.device.type == "cpu":  # a sixth faster there; the layers keep the layout
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(normalised)
        return logits

    @property
    def output(self) -> str:
        """The field of a Prediction that holds the logits."""
        return "class_scores" if self.tasks == ("classification",) else "sem_seg"

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The logits under the name that a Prediction has for them."""
        return {self.output: self.logits(images)}

    def forward(
        self, images: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a batch in training mode, else one Prediction an image, with its class logits or with dense ones
        on the network's own grid (:meth:`Prediction.resize` makes the one interpolation)."""
        if not self.training:
            size = (images.shape[-2], images.shape[-1])
            return [Prediction(size=size, **{self.output: one}) for one in self.logits(images)]
        if targets is None:
            raise ValueError("training mode needs targets")
        labels = self.labels(targets, images)
        if self.distiller is None:
            return {"loss_ce": self._cross_entropy(self.logits(images), labels)}
        logits, losses = self.distiller(
            self.logits, images, targets, lambda logits: self._fit(labels, logits)
        )
        if self.distiller.losses.has_label_term:
            return losses
        return losses | {"loss_ce": self._cross_entropy(logits, labels)}

    def labels(self, targets: list[Target], images: Tensor) -> Tensor:
        """(B, H, W) int64 of dense labels, or (B,) of classes; ``ignore_index`` where there is none."""
        if self.tasks == ("classification",):
            return class_labels(targets, images.device)
        return dense_labels(targets, images)

    def _fit(self, labels: Tensor, logits: Tensor) -> Tensor:
        """The labels at the size at which they are held against the logits."""
        dense = labels.ndim > 1 and self.loss_size == "logits"
        return resized_labels(labels, tuple(logits.shape[2:])) if dense else labels

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over what is not void; 0 with a gradient of zeros where all is void."""
        labels = self._fit(labels, logits)
        if labels.ndim > 1:
            logits = resized(logits, tuple(labels.shape[1:]))
        return label_cross_entropy(logits, labels, ignore_index=self.ignore_index)


def dense_labels(targets: list[Target], images: Tensor) -> Tensor:
    """(B, H, W) int64; void where an image has no mask."""
    void = torch.full(images.shape[-2:], IGNORE_INDEX, dtype=torch.long, device=images.device)
    return torch.stack([void if t.sem_seg is None else t.sem_seg for t in targets])


def class_labels(targets: list[Target], device: torch.device) -> Tensor:
    """(B,) int64; NO_CLASS where an image has no class."""
    labels = [NO_CLASS if t.class_label is None else t.class_label for t in targets]
    return torch.tensor(labels, device=device)


def count_outputs(cfg: CfgNode, task: str) -> int:
    """Of a network for a task: the classes, and for dense ones background before them."""
    return len(our_classes(cfg)) + (task == "segmentation")


def tasks_of(cfg: CfgNode) -> tuple[str, ...]:
    """The task of the configured network."""
    return (find_network(cfg.MODEL.FCN_KD.NETWORK).task,)


def build_model(
    cfg: CfgNode, *, pretrained: bool = True, kind: Callable[..., SceneKDStudent] = SceneKDStudent
) -> SceneKDStudent:
    """What :func:`scenekd.models.build_model` calls for this system; ``kind`` makes the student of its network.

    Raises:
        UserError: no such network, or a value out of range.
    """
    node = cfg.MODEL.FCN_KD
    spec = find_network(node.NETWORK)
    network = spec.build(cfg, count_outputs(cfg, spec.task))
    try:
        student = kind(network, spec, loss_size=node.LOSS_SIZE)
    except ValueError as error:
        raise UserError(f"{KEY}: {error}") from None
    student.image_size = cfg.INPUT.SIZE
    if pretrained and cfg.MODEL.WEIGHTS == "torchvision":
        if not spec.zoo:
            raise UserError(f'MODEL.WEIGHTS: torchvision has none for {node.NETWORK}; set it to a file or ""')
        student.load_trunk("torchvision")
    return student
