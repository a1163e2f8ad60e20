"""Networks for segmentation: trunk and head, under torchvision's names (``backbone``, ``classifier``).

B: images; K: dense classes, background first; H, W: network input; h, w: the head's grid. Logits are not enlarged
here: that is done once, to whatever size they are compared or shown at.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.lraspp import LRASPPHead

from scenekd.errors import UserError
from scenekd.nets.norms import check_norm, convert_norm
from scenekd.nets.trunks import build_trunk

from .espnetv2 import SCALES, ESPNetv2
from .spec import KEY, NetworkSpec

# What settings say that have no meaning for a network.
_USUAL = {"TRUNK_WIDTH": 64, "OUTPUT_STRIDE": 32, "NORM": "BN"}
_MOBILENET = "mobilenet_v3_large"


class MobileNetTrunk(nn.Sequential):
    """MobileNetV3-large (Howard et al., ICCV 2019) without its classifier: the map at stride 8 after the first unit
    there, which LR-ASPP takes, and the last one.

    Args:
        output_stride: 32, or 16: the last stage dilated.
    """

    channels = (40, 960)
    _taken = (4, 16)

    def __init__(self, output_stride: int = 32) -> None:
        super().__init__(*mobilenet_v3_large(weights=None, dilated=output_stride == 16).features)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Two maps with ``self.channels`` channels."""
        maps = []
        for i, layer in enumerate(self):
            x = layer(x)
            if i in self._taken:
                maps.append(x)
        return maps


class TrunkAndHead(nn.Module):
    """Logits (B, K, h, w) of normalised images (B, 3, H, W), by a head on the trunk's last map."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.backbone(images)[-1])
        return out


class DeepLab(TrunkAndHead):
    """With the pyramid of DeepLabV3 (Chen et al., 2017), which sees the mean of the whole map too."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) == 1 and any(isinstance(m, nn.BatchNorm2d) for m in self.modules()):
            raise UserError(
                "SOLVER.IMS_PER_BATCH: DeepLabV3 normalises one value an image and channel, which takes two images a "
                f"process and step; raise it, or set {KEY}.NORM GN"
            )
        return super().forward(images)


class LRASPP(TrunkAndHead):
    """With the light pyramid of MobileNetV3 (Howard et al., ICCV 2019, section 6.4), on maps of two strides."""

    def forward(self, images: Tensor) -> Tensor:
        low, high = self.backbone(images)
        out: Tensor = self.classifier({"low": low, "high": high})
        return out


def fcn_head(in_channels: int, outputs: int, *, channels: int, dropout: float) -> nn.Sequential:
    """3×3, normalisation, ReLU, dropout, 1×1 (Long et al., CVPR 2015, as torchvision has it)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(channels, outputs, 1),
    )


def _trunk(name: str, node: CfgNode) -> Any:
    if name != _MOBILENET:
        return build_trunk(
            name, width=node.TRUNK_WIDTH, norm=node.NORM, output_stride=node.OUTPUT_STRIDE, key=KEY
        )
    if node.OUTPUT_STRIDE not in (32, 16):
        raise UserError(f"{KEY}.OUTPUT_STRIDE: {node.OUTPUT_STRIDE}; {name} has 32, 16")
    trunk = MobileNetTrunk(node.OUTPUT_STRIDE)
    convert_norm(trunk, node.NORM)
    return trunk


def _check(node: CfgNode, name: str, *lacks: str) -> None:
    """Values out of range, and settings that the network does not have."""
    check_norm(node.NORM, KEY)
    if node.HEAD_CHANNELS < 1:
        raise UserError(f"{KEY}.HEAD_CHANNELS: {node.HEAD_CHANNELS} must be at least 1")
    if not 0 <= node.DROPOUT < 1:
        raise UserError(f"{KEY}.DROPOUT: {node.DROPOUT} is not in 0…1, below 1")
    if node.HEAD_LR_FACTOR <= 0:
        raise UserError(f"{KEY}.HEAD_LR_FACTOR: {node.HEAD_LR_FACTOR} must be above 0")
    for key in lacks:
        if node[key] != _USUAL[key]:
            raise UserError(f"{KEY}.{key}: {node[key]}; {name} is built as it is, leave it at {_USUAL[key]}")


def _teach_heads_faster(network: nn.Module, trunk: str, factor: float) -> None:
    """Whatever is not the trunk's learns at ``factor`` times its rate."""
    for name, child in network.named_children():
        if name != trunk:
            child.lr_factor = factor  # type: ignore[assignment]  # read by scenekd.optim


def _head_norm(head: nn.Module, norm: str) -> None:
    convert_norm(head, "BN" if norm == "FrozenBN" else norm)  # a fresh head has no statistics to freeze


def _build(kind: str, trunk_name: str, cfg: CfgNode, outputs: int) -> nn.Module:
    node = cfg.MODEL.FCN_KD
    _check(node, f"{kind}_{trunk_name}", *(("TRUNK_WIDTH",) if trunk_name == _MOBILENET else ()))
    trunk = _trunk(trunk_name, node)
    channels: int = trunk.channels[-1]
    network: nn.Module
    if kind == "fcn":
        head = fcn_head(channels, outputs, channels=node.HEAD_CHANNELS, dropout=node.DROPOUT)
        network = TrunkAndHead(trunk, head)
    elif kind == "deeplabv3":
        network = DeepLab(trunk, DeepLabHead(channels, outputs))
    else:
        network = LRASPP(trunk, LRASPPHead(trunk.channels[0], channels, outputs, inter_channels=128))
    _head_norm(network.get_submodule("classifier"), node.NORM)
    _teach_heads_faster(network, "backbone", node.HEAD_LR_FACTOR)
    return network


def _build_espnet(scale: float, cfg: CfgNode, outputs: int) -> nn.Module:
    node = cfg.MODEL.FCN_KD
    _check(node, "ESPNetv2", "TRUNK_WIDTH", "OUTPUT_STRIDE")
    network = ESPNetv2(outputs, scale=scale)
    for name, child in network.named_children():
        convert_norm(child, node.NORM) if name == "base_net" else _head_norm(child, node.NORM)
    _teach_heads_faster(network, "base_net", node.HEAD_LR_FACTOR)
    return network


def mmseg_spec(name: str) -> NetworkSpec:
    """Any ``EncoderDecoder`` of MMSegmentation, with the mean and deviation of its own data preprocessor.

    Raises:
        UserError: see :mod:`scenekd.engines.mmseg_network`.
    """
    from scenekd.engines.mmseg_network import build_network, read_segmentor, statistics

    config = read_segmentor(name, f"{KEY}.NETWORK")
    mean, std = statistics(config)

    def build(cfg: CfgNode, outputs: int) -> nn.Module:
        node = cfg.MODEL.FCN_KD
        _check(node, name, *_USUAL)
        network = build_network(config, outputs, name, f"{KEY}.NETWORK")
        _teach_heads_faster(network, "backbone", node.HEAD_LR_FACTOR)
        return network

    return NetworkSpec("segmentation", build, mean, std, trunk="backbone")


def _specs() -> dict[str, NetworkSpec]:
    resnets = ("resnet18", "resnet34", "resnet50", "resnet101")
    named = [("fcn", trunk) for trunk in (*resnets, _MOBILENET)]
    named += [("deeplabv3", trunk) for trunk in (*resnets, _MOBILENET)] + [("lraspp", _MOBILENET)]
    specs = {
        f"{kind}_{trunk}": NetworkSpec(
            "segmentation", partial(_build, kind, trunk), trunk="backbone", zoo=trunk
        )
        for kind, trunk in named
    }
    for scale in SCALES:
        build = partial(_build_espnet, scale)
        specs[f"espnetv2_{scale}"] = NetworkSpec("segmentation", build, trunk="base_net")
    return specs


SEGMENTATION = _specs()
