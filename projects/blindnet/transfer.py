"""Transfer: which classes a whole picture shows, told from the features of a trunk that was trained elsewhere.

The trunk may be random, ImageNet's, that of a masked-context classifier, or one trained on this task with the labels of
another split. A context classifier's trunk is the same but for the hole's weights, which a picture without a hole
multiplies by 0, so that dropping them changes nothing.

N: pictures; C: object classes; F: channels of the trunk's last map; H, W: network input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.nets.trunks import PIXEL_MEAN, PIXEL_STD, Trunk, build_trunk
from scenekd.nets.weights import load_pretrained
from scenekd.sample import Prediction, Target
from scenekd.teachers.options import our_classes

from .config import KEY

NETWORK = "transfer"


def is_transfer(cfg: CfgNode) -> bool:
    """Whether a configuration of this system is for whole pictures."""
    return bool(cfg.MODEL.BLINDNET.NETWORK == NETWORK)


class TransferNet(nn.Module):
    """``net(images, targets)``: ``loss_classes`` in training mode, else a Prediction whose ``class_scores`` are a logit
    for each class, whose sigmoid is the probability that the picture shows it. Images are (N, 3, H, W) float32 RGB in
    0…255.

    Args:
        trunk: see :func:`scenekd.nets.trunks.build_trunk`. zoo: torchvision's name of it. num_classes: C.
        frozen: train the last layer alone, a linear probe: on features that :meth:`take_features` was given, which are
            brought to mean 0 and deviation 1, as those of different trunks are of different sizes.
        dropout: before the classes.
    """

    tasks = ("multi_label",)

    image_size: int  # side of the square input
    pixel_mean: Tensor
    pixel_std: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self, trunk: Trunk, zoo: str, num_classes: int, *, frozen: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        width = trunk.channels[-1]
        self.trunk, self.zoo, self.frozen = trunk.requires_grad_(not frozen), zoo, frozen
        self.dropout, self.classes = nn.Dropout(dropout), nn.Linear(width, num_classes)
        nn.init.zeros_(self.classes.weight)
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
        self._features: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> TransferNet:
        """A frozen trunk stays in evaluation mode, its batch statistics untouched."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def observe_data(self, dataset: Dataset) -> None:
        """Begin at the training set's log-odds of each class, one picture with and one without it added."""
        presence = torch.stack([torch.from_numpy(record.presence) for record in dataset.records])
        shown, counted = (presence == 1).sum(dim=0) + 1.0, (presence >= 0).sum(dim=0) + 2.0
        with torch.no_grad():
            self.classes.bias.copy_(torch.logit(shown / counted))

    def load_trunk(self, source: str) -> None:
        """Load the trunk alone, as :func:`scenekd.nets.weights.load_pretrained` does.

        Raises:
            UserError: the weights do not fit it.
        """
        load_pretrained(self.trunk, self.zoo, source, key=KEY)

    def features(self, images: Tensor) -> Tensor:
        """(N, F): the mean over the trunk's last map."""
        features: Tensor = self.trunk((images - self.pixel_mean) / self.pixel_std)[-1].mean(dim=(2, 3))
        return features

    def take_features(self, features: dict[str, Tensor]) -> None:
        """The (F,) features of every training picture by its id, for a linear probe."""
        every = torch.stack(list(features.values()))
        self.feature_mean.copy_(every.mean(dim=0))
        self.feature_std.copy_(every.std(dim=0, unbiased=False).clamp(min=1e-6))
        self._features = features

    def classify(self, features: Tensor) -> Tensor:
        """(N, C) logits of features (N, F)."""
        scores: Tensor = self.classes(self.dropout((features - self.feature_mean) / self.feature_std))
        return scores

    def forward(
        self, images: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """See the class.

        Raises:
            ValueError: training mode without targets.
        """
        if not self.training:
            size = (images.shape[-2], images.shape[-1])
            return [
                Prediction(size=size, class_scores=scores) for scores in self.outputs(images)[self.tasks[0]]
            ]
        if targets is None:
            raise ValueError("training mode needs targets")
        if self.frozen:
            features = torch.stack([self._features[target.image_id] for target in targets])
        else:
            features = self.features(images)
        return {"loss_classes": presence_loss(self.classify(features), shown_classes(targets))}

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The logits under the name of their task."""
        return {self.tasks[0]: self.classify(self.features(images))}


def shown_classes(targets: list[Target]) -> Tensor:
    """(N, C) presence of each class, see :mod:`scenekd.data.presence`.

    Raises:
        ValueError: a target without it.
    """
    rows = [target.presence for target in targets if target.presence is not None]
    if len(rows) != len(targets):
        raise ValueError("every target needs the classes that its picture shows")
    return torch.stack(rows)


def presence_loss(logits: Tensor, presence: Tensor) -> Tensor:
    """Binary cross-entropy, its mean over the pairs of picture and class that count; 0 where none does.

    Args:
        logits: (N, C). presence: (N, C), 1 or 0, below 0 where it does not count.
    """
    counts = presence >= 0
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), presence.clamp(min=0).float(), reduction="none"
    )
    return (losses * counts).sum() / counts.sum().clamp(min=1)


def build_transfer(cfg: CfgNode, *, pretrained: bool) -> TransferNet:
    """The network of ``MODEL.BLINDNET``; with ``pretrained`` its trunk has the weights of ``PRETRAINED``, or of
    ``MODEL.WEIGHTS`` where that is ``torchvision``.

    Raises:
        UserError: a value out of range, or weights that do not fit.
    """
    node = cfg.MODEL.BLINDNET
    trunk = build_trunk(
        node.TRUNK, width=node.TRUNK_WIDTH, norm=node.NORM, output_stride=node.OUTPUT_STRIDE, key=KEY
    )
    try:
        net = TransferNet(
            trunk, node.TRUNK, len(our_classes(cfg)), frozen=node.FREEZE_TRUNK, dropout=node.DROPOUT
        )
    except ValueError as error:
        raise UserError(f"{KEY}: {error}") from None
    net.image_size = cfg.INPUT.SIZE
    zoo = "torchvision" if cfg.MODEL.WEIGHTS == "torchvision" else ""
    if pretrained and (source := node.PRETRAINED or zoo):
        net.load_trunk(source)
    return net
