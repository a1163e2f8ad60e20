"""The model of the system: normalisation, one of the networks, its losses and predictions.

N: pictures; C: object classes; H, W: network input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.nets.trunks import PIXEL_MEAN, PIXEL_STD, Trunk, build_trunk
from scenekd.nets.weights import load_pretrained
from scenekd.sample import Prediction, Target
from scenekd.teachers.options import our_classes

from .config import KEY
from .context import ContextClassifier
from .controls import ClassPrior, LayoutOnly, MaskOnly
from .data import class_shares
from .multi_label import MultiLabelClassifier
from .network import HiddenObjectNetwork, Inputs
from .pixel_id import PixelIdNetwork
from .transfer import TransferNet, build_transfer, is_transfer
from .transformer import MaskedTokenTransformer, PatchTransformer, TimmTransformer
from .unet import EncoderClassifier, UNet

CLASS_WEIGHTS = ("none", "objects", "pixels")


class BlindNet(nn.Module):
    """``net(images, targets)``: scalar losses ``loss_*`` in training mode, else a Prediction with ``class_scores`` for
    each picture. Images are (N, 4, H, W) float32: RGB in 0…255, and the hole, 255 inside, 128 in what else is hidden
    (:data:`scenekd.hidden.ALSO`), 0 elsewhere.

    Args:
        network: see :mod:`.network`. num_classes: C.
        class_weights: ``none``, or 1 − a class's share of all training ``objects``, or of their boxes' ``pixels``.

    Attributes:
        class_shares: (C,) of the training objects, kept in its checkpoints: the class prior, which is the first line
            to beat.
        wants_targets: whether :meth:`forward` needs them in evaluation, too.
    """

    tasks = ("hidden_object",)

    image_size: int  # side of the square input
    pixel_mean: Tensor
    pixel_std: Tensor
    class_shares: Tensor
    class_weights: Tensor

    def __init__(
        self, network: HiddenObjectNetwork, num_classes: int, *, class_weights: str = "none"
    ) -> None:
        super().__init__()
        if class_weights not in CLASS_WEIGHTS:
            raise ValueError(
                f"CLASS_WEIGHTS must be one of {', '.join(CLASS_WEIGHTS)}, got {class_weights!r}"
            )
        self.network, self.weights_by, self.wants_targets = network, class_weights, network.wants_targets
        self.register_buffer("class_shares", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("class_weights", torch.ones(num_classes), persistent=False)
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def observe_data(self, dataset: Dataset) -> None:
        """Count the classes of the training set."""
        shares = torch.from_numpy(class_shares(dataset)).float()
        self.class_shares.copy_(shares)
        self.network.observe_shares(shares)
        if self.weights_by != "none":
            self.class_weights.copy_(1 - torch.from_numpy(class_shares(dataset, self.weights_by)))

    def load_trunk(self, source: str) -> None:
        """Load the trunk alone, as :func:`scenekd.nets.weights.load_pretrained` does.

        Raises:
            UserError: the network has no trunk, or the weights do not fit it.
        """
        child, zoo = self.network.trunk
        if not child:
            raise UserError(f"{source}: weights of another network than {KEY}.NETWORK")
        load_pretrained(self.network.get_submodule(child), zoo, source, key=KEY)

    def inputs(self, images: Tensor, targets: list[Target] | None = None) -> Inputs:
        """What the network looks at.

        Raises:
            UserError: pictures without a hole.
        """
        if images.shape[1] != 4:
            raise UserError(
                "SYSTEM blindnet: its network wants a picture with a hole, which this tool does not make"
            )
        normalised = (images[:, :3] - self.pixel_mean) / self.pixel_std
        channel = images[:, 3:] / 255
        return Inputs(normalised, (channel > 0.75).to(channel), targets, (channel > 0.25).to(channel))

    def forward(
        self, images: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Prediction]:
        """See the class."""
        inputs = self.inputs(images, targets)
        if self.training:
            if targets is None:
                raise ValueError("training mode needs targets")
            return self.network.losses(inputs, targets, self.class_weights)
        size = (images.shape[-2], images.shape[-1])
        return [Prediction(size=size, class_scores=scores) for scores in self.network(inputs)]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The scores under the name of their task."""
        return {self.tasks[0]: self.network(self.inputs(images))}


def _trunk(node: CfgNode) -> Trunk:
    return build_trunk(
        node.TRUNK, width=node.TRUNK_WIDTH, norm=node.NORM, output_stride=node.OUTPUT_STRIDE, key=KEY
    )


def _context(cfg: CfgNode, classes: int) -> HiddenObjectNetwork:
    node = cfg.MODEL.BLINDNET
    kind = MultiLabelClassifier if node.NETWORK == "multi_label" else ContextClassifier
    return kind(
        _trunk(node), node.TRUNK, classes, pool=node.POOL, geometry=node.GEOMETRY, dropout=node.DROPOUT
    )


def _pixel_id(cfg: CfgNode, classes: int) -> HiddenObjectNetwork:
    node = cfg.MODEL.BLINDNET
    return PixelIdNetwork(
        _trunk(node),
        node.TRUNK,
        classes,
        stride=node.PIXEL_STRIDE,
        target=node.PIXEL_TARGET,
        mask_weight=node.MASK_WEIGHT,
        background=node.BACKGROUND_WEIGHT,
        dropout=node.DROPOUT,
    )


def _transformer(cfg: CfgNode, classes: int) -> HiddenObjectNetwork:
    node = cfg.MODEL.BLINDNET
    tokens: PatchTransformer | TimmTransformer
    if node.VIT:
        tokens = TimmTransformer(node.VIT, cfg.INPUT.SIZE, node.VIT_WEIGHTS)
    else:
        tokens = PatchTransformer(
            cfg.INPUT.SIZE,
            patch=node.TOKEN_PATCH,
            width=node.TOKEN_WIDTH,
            depth=node.TOKEN_DEPTH,
            heads=node.TOKEN_HEADS,
        )
    return MaskedTokenTransformer(
        tokens, classes, read=node.TOKEN_READ, geometry=node.GEOMETRY, dropout=node.DROPOUT
    )


def _unet(cfg: CfgNode, classes: int) -> HiddenObjectNetwork:
    node = cfg.MODEL.BLINDNET
    if cfg.INPUT.SIZE % 16:
        raise UserError(f"INPUT.SIZE: {cfg.INPUT.SIZE}; the unet wants a multiple of 16")
    return UNet(classes, width=node.WIDTH, upsampling=node.UPSAMPLING, mask_weight=node.MASK_WEIGHT)


def _cnn(cfg: CfgNode, classes: int) -> HiddenObjectNetwork:
    node = cfg.MODEL.BLINDNET
    return EncoderClassifier(classes, width=node.WIDTH, image_size=cfg.INPUT.SIZE, dropout=node.DROPOUT)


NETWORKS: dict[str, Callable[[CfgNode, int], HiddenObjectNetwork]] = {
    "context": _context,
    "multi_label": _context,
    "pixel_id": _pixel_id,
    "transformer": _transformer,
    "cnn": _cnn,
    "unet": _unet,
    "mask_only": lambda cfg, classes: MaskOnly(classes, cfg.MODEL.BLINDNET.CONTROL_WIDTH),
    "layout_only": lambda cfg, classes: LayoutOnly(classes, cfg.MODEL.BLINDNET.CONTROL_WIDTH),
    "class_prior": lambda cfg, classes: ClassPrior(classes),
}


def build_network(cfg: CfgNode) -> HiddenObjectNetwork:
    """The network of ``cfg.MODEL.BLINDNET``, without its normalisation.

    Raises:
        UserError: no such network, or a value out of range.
    """
    name = cfg.MODEL.BLINDNET.NETWORK
    if name not in NETWORKS:
        raise UserError(f"{KEY}.NETWORK: {name!r}; choose one of {', '.join(NETWORKS)}, transfer")
    try:
        return NETWORKS[name](cfg, len(our_classes(cfg)))
    except ValueError as error:
        raise UserError(f"{KEY}: {error}") from None


def build_model(cfg: CfgNode, *, pretrained: bool = True) -> BlindNet | TransferNet:
    """What :func:`scenekd.models.build_model` calls for this system.

    Raises:
        UserError: no such network, or a value out of range.
    """
    if is_transfer(cfg):
        return build_transfer(cfg, pretrained=pretrained)
    return build_blindnet(cfg, pretrained=pretrained)


def build_blindnet(
    cfg: CfgNode, *, pretrained: bool = True, kind: Callable[..., BlindNet] = BlindNet
) -> BlindNet:
    """A model of hidden objects.

    Args:
        kind: makes the model of the arguments of :class:`BlindNet`.

    Raises:
        UserError: no such network, or a value out of range.
    """
    chosen = cfg
    if cfg.MODEL.BLINDNET.VIT_WEIGHTS and not pretrained:
        chosen = cfg.clone()
        chosen.defrost()
        chosen.MODEL.BLINDNET.VIT_WEIGHTS = ""
    network = build_network(chosen)
    try:
        net = kind(network, len(our_classes(cfg)), class_weights=cfg.MODEL.BLINDNET.CLASS_WEIGHTS)
    except ValueError as error:
        raise UserError(f"{KEY}: {error}") from None
    net.image_size = cfg.INPUT.SIZE
    if pretrained and cfg.MODEL.WEIGHTS == "torchvision":
        net.load_trunk("torchvision")
    return net
