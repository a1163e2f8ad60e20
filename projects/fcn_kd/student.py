"""The student: a bare network, the normalisation before it, and the losses it learns by.

B: images; K: dense classes, background first; C: classes; H, W: network input; h, w: the network's own grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.reduce import at_least_float32, zero_loss
from scenekd.nets.weights import load_pretrained
from scenekd.sample import IGNORE_INDEX, Prediction, Target
from scenekd.teachers.options import our_classes

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
    """

    image_size: int  # side of the square input; any other does as well
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: nn.Module, spec: NetworkSpec, *, loss_size: str = "image") -> None:
        super().__init__()
        if loss_size not in LOSS_SIZES:
            raise ValueError(f"LOSS_SIZE must be one of {', '.join(LOSS_SIZES)}, got {loss_size!r}")
        self.network, self.tasks, self.loss_size = network, (spec.task,), loss_size
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

    def logits(self, images: Tensor) -> Tensor:
        """Of (B, 3, H, W) float32 RGB in 0…255: (B, K, h, w), or (B, C)."""
        logits: Tensor = self.network((images - self.pixel_mean) / self.pixel_std)
        return logits

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The logits under the name of their task."""
        return {self.tasks[0]: self.logits(images)}

    def forward(
        self, images: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """Losses of a batch in training mode, else one Prediction an image, with its class logits or with dense ones
        on the network's own grid (:meth:`Prediction.resize` makes the one interpolation)."""
        if not self.training:
            size = (images.shape[-2], images.shape[-1])
            name = "class_scores" if self.tasks == ("classification",) else "sem_seg"
            return [Prediction(size=size, **{name: one}) for one in self.logits(images)]
        if targets is None:
            raise ValueError("training mode needs targets")
        logits, labels = self._on_one_grid(self.logits(images), self.labels(targets, images))
        return {"loss_ce": cross_entropy(logits, labels, self.ignore_index)}

    def labels(self, targets: list[Target], images: Tensor) -> Tensor:
        """(B, H, W) int64 of dense labels, or (B,) of classes; ``ignore_index`` where there is none."""
        if self.tasks == ("classification",):
            return class_labels(targets, images.device)
        return dense_labels(targets, images)

    def _on_one_grid(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.dim() == 1:
            return logits, labels
        if self.loss_size == "image":
            return resize_logits(logits, labels.shape[-2:]), labels
        return logits, resize_labels(labels, logits.shape[-2:])


def dense_labels(targets: list[Target], images: Tensor) -> Tensor:
    """(B, H, W) int64; void where an image has no mask."""
    void = torch.full(images.shape[-2:], IGNORE_INDEX, dtype=torch.long, device=images.device)
    return torch.stack([void if t.sem_seg is None else t.sem_seg for t in targets])


def class_labels(targets: list[Target], device: torch.device) -> Tensor:
    """(B,) int64; NO_CLASS where an image has no class."""
    labels = [NO_CLASS if t.class_label is None else t.class_label for t in targets]
    return torch.tensor(labels, device=device)


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean over what is not void; 0 with a gradient of zeros where all is void."""
    if not (labels != ignore_index).any():
        return zero_loss(logits)
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=ignore_index)


def resize_logits(logits: Tensor, size: torch.Size) -> Tensor:
    """(B, K, h, w) → (B, K, H, W), bilinear."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def resize_labels(labels: Tensor, size: torch.Size) -> Tensor:
    """(B, H, W) → (B, h, w), each the label of the nearest centre."""
    if labels.shape[-2:] == size:
        return labels
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def tasks_of(cfg: CfgNode) -> tuple[str, ...]:
    """The task of the configured network."""
    return (find_network(cfg.MODEL.FCN_KD.NETWORK).task,)


def build_model(cfg: CfgNode, *, pretrained: bool = True) -> SceneKDStudent:
    """What :func:`scenekd.models.build_model` calls for this system.

    Raises:
        UserError: no such network, or a value out of range.
    """
    node = cfg.MODEL.FCN_KD
    spec = find_network(node.NETWORK)
    outputs = len(our_classes(cfg)) + (spec.task == "segmentation")
    network = spec.build(cfg, outputs)
    try:
        student = SceneKDStudent(network, spec, loss_size=node.LOSS_SIZE)
    except ValueError as error:
        raise UserError(f"{KEY}: {error}") from None
    student.image_size = cfg.INPUT.SIZE
    if pretrained and cfg.MODEL.WEIGHTS == "torchvision":
        if not spec.zoo:
            raise UserError(f'MODEL.WEIGHTS: torchvision has none for {node.NETWORK}; set it to a file or ""')
        student.load_trunk("torchvision")
    return student
