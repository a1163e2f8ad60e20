"""The trunks: torchvision's classifiers without their classification layer, as maps at strides 4, 8, 16, 32; and
ResNets of Fourier convolutions, :mod:`.fourier`.

Every other trunk keeps torchvision's parameter names, so its weight files fit as they are, and torchvision's
preprocessing: RGB in 0…1 minus the mean (.485, .456, .406), over the deviation (.229, .224, .225). A map has
⌈size / stride⌉ cells a side (75, 38, 19, 10 at 300); torchvision's own pooling would round down in VGG and
DenseNet, here it rounds up.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import densenet121, vgg
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..errors import UserError
from .fourier import FourierTrunk
from .norms import check_norm, convert_norm

PIXEL_MEAN = (0.485, 0.456, 0.406)  # RGB, images in 0…1
PIXEL_STD = (0.229, 0.224, 0.225)
OUTPUT_STRIDES = (32, 16, 8)


class ResNetTrunk(nn.Module):
    """ResNet v1 (He et al., CVPR 2016) from torchvision's units, with the stride in the 3×3 convolution.

    torchvision fixes the stages at 64, 128, 256, 512 channels; here the first one is ``width``, for small
    students. ``stride_in_1x1`` moves a bottleneck's stride to its first 1×1 convolution, as in Caffe.

    Args:
        output_stride: 32, or 16 or 8: the stages that would go beyond are not strided, and their 3×3 convolutions
            dilated instead, so that the same weights see the same neighbourhood (Chen et al., "DeepLab", TPAMI 2018),
            as torchvision does it with bottleneck units.
    """

    def __init__(
        self,
        unit: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        *,
        width: int = 64,
        stride_in_1x1: bool = False,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output stride must be one of {OUTPUT_STRIDES}, got {output_stride}")
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.channels = [(width << stage) * unit.expansion for stage in range(4)]
        self.layer1 = _stage(unit, width, width, depths[0], stride=1)
        self.layer2 = _stage(unit, self.channels[0], width * 2, depths[1], stride=2)
        strides = [2 if output_stride >= reached else 1 for reached in (16, 32)]
        self.layer3 = _stage(unit, self.channels[1], width * 4, depths[2], stride=strides[0])
        self.layer4 = _stage(unit, self.channels[2], width * 8, depths[3], stride=strides[1])
        dilation = 1
        for stage, stride in zip((self.layer3, self.layer4), strides):
            before, dilation = dilation, dilation * 2 // stride
            _dilate(stage, before, dilation)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif stride_in_1x1 and isinstance(module, Bottleneck):
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8, 16, 32 (none above the output stride) with ``self.channels`` channels."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, stride=2, padding=1)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def _stage(
    unit: type[BasicBlock] | type[Bottleneck], in_channels: int, planes: int, depth: int, *, stride: int
) -> nn.Sequential:
    channels = planes * unit.expansion
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = unit(in_channels, planes, stride, downsample)
    return nn.Sequential(first, *(unit(channels, planes) for _ in range(depth - 1)))


def _dilate(stage: nn.Sequential, before: int, after: int) -> None:
    """Dilate a stage's 3×3 convolutions: all by ``after``, but the one that would be strided by ``before``."""
    convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    for i, module in enumerate(convolutions):
        dilation = before if i == 0 else after
        module.dilation = module.padding = (dilation, dilation)


class DenseNetTrunk(nn.Module):
    """DenseNet-121 (Huang et al., CVPR 2017). A dense block's map is taken after the normalisation and ReLU
    that follow it, since the block itself ends in raw sums."""

    channels = [256, 512, 1024, 1024]

    def __init__(self) -> None:
        super().__init__()
        self.features = densenet121(weights=None).features
        for i in (1, 2, 3):
            self.features.get_submodule(f"transition{i}").pool = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8, 16, 32 with ``self.channels`` channels."""
        stages = dict(self.features.named_children())
        for name in ("conv0", "norm0", "relu0", "pool0"):
            x = stages[name](x)
        maps = []
        for i in (1, 2, 3):
            x = stages[f"denseblock{i}"](x)
            transition = stages[f"transition{i}"]
            maps.append(F.relu(transition.norm(x)))
            x = transition.pool(transition.conv(maps[-1]))
        maps.append(F.relu(stages["norm5"](stages["denseblock4"](x))))
        return maps


class VGGTrunk(nn.Module):
    """VGG16 (Simonyan & Zisserman, 2015) without normalisation: conv3_3, conv4_3, conv5_3 and, at stride 32,
    two fresh convolutions fc6 (3×3) and fc7 (1×1) of 1024 channels
    in place of the dense layers, as in SSD."""

    channels = [256, 512, 512, 1024]
    _stage_ends = (16, 23, 30)  # positions in torchvision's ``features`` after conv3_3, conv4_3, conv5_3

    def __init__(self) -> None:
        super().__init__()
        # make_layers spares the 120 million weights of the dense layers that models.vgg16() would draw.
        self.features = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[:30]
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=1)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        for module in self.modules():
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8, 16, 32 with ``self.channels`` channels."""
        maps = []
        start = 0
        for end in self._stage_ends:
            x = self.features[start:end](x)
            maps.append(x)
            start = end
        x = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
        maps.append(F.relu(self.fc7(F.relu(self.fc6(x)))))
        return maps


_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
_FOURIER = {"ffc18": (2, 2, 2, 2), "ffc34": (3, 4, 6, 3)}  # see .fourier; nobody's weights fit them
_SCALABLE = (*_RESNETS, *_FOURIER)
Trunk = ResNetTrunk | DenseNetTrunk | VGGTrunk | FourierTrunk
TRUNKS = (*_RESNETS, "densenet121", "vgg16", *_FOURIER)


def build_trunk(
    name: str,
    *,
    width: int = 64,
    norm: str = "BN",
    stride_in_1x1: bool = False,
    output_stride: int = 32,
    key: str = "MODEL",
) -> Trunk:
    """A randomly initialised trunk by torchvision's name of it.

    Args:
        width, output_stride: of a ResNet, see :class:`ResNetTrunk`, also one of Fourier convolutions. stride_in_1x1:
            of a ResNet.
        norm: one of :data:`.norms.NORMS`.
        key: the configuration node whose TRUNK, NORM, TRUNK_WIDTH … these are, for errors.

    Raises:
        UserError: an unknown name or norm, or an option that this trunk does not have.
    """
    if name not in TRUNKS:
        raise UserError(f"{key}.TRUNK: unknown trunk {name!r}; choose one of {', '.join(TRUNKS)}")
    check_norm(norm, key)
    if name not in _SCALABLE and width != 64:
        raise UserError(f"{key}.TRUNK_WIDTH: {name} has no widths; set it to 64 or take a ResNet")
    if output_stride not in (OUTPUT_STRIDES if name in _SCALABLE else (32,)):
        known = ", ".join(map(str, OUTPUT_STRIDES)) if name in _SCALABLE else "32"
        raise UserError(f"{key}.OUTPUT_STRIDE: {output_stride}; {name} has {known}")
    unit, depths = _RESNETS.get(name, (None, ()))
    if stride_in_1x1 and unit is not Bottleneck:
        raise UserError(f"{key}.STRIDE_IN_1X1: {name} has no bottleneck units; set it to False")
    if unit is not None:
        trunk: Trunk = ResNetTrunk(
            unit, depths, width=width, stride_in_1x1=stride_in_1x1, output_stride=output_stride
        )
    elif name in _FOURIER:
        trunk = FourierTrunk(_FOURIER[name], width=width, output_stride=output_stride)
    else:
        trunk = DenseNetTrunk() if name == "densenet121" else VGGTrunk()
    convert_norm(trunk, norm)
    return trunk
