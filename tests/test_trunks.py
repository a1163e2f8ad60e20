"""Trunks against torchvision's own networks with the same weights, and their size by arithmetic."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torchvision import models

from scenekd.errors import UserError
from scenekd.nets.norms import convert_norm
from scenekd.nets.trunks import TRUNKS, build_trunk

# torchvision's published parameter counts, less the classification layer (1000 classes)
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "densenet121": 7_978_856 - 1_025_000,
    # the convolutions of VGG16, then fc6 (3×3, 512 → 1024) and fc7 (1×1, 1024 → 1024) with bias
    "vgg16": 14_714_688 + 9 * 512 * 1024 + 1024 + 1024 * 1024 + 1024,
}


def _fourier(depths: tuple[int, ...]) -> int:
    """A unit's convolution from a to b channels, halves each: three 3×3 of a/2 × b/2, and the spectral part: a/2 → b/4
    with norm, b/2 → b/2 with norm, b/4 → b/2. Each is followed by a norm of b; a wider unit has a 1×1 shortcut."""
    total, a = 3 * 64 * 49 + 2 * 64, 64
    for stage, depth in enumerate(depths):
        b = 64 << stage
        for _ in range(depth):
            for source in (a, b):
                spectral = source // 2 * b // 4 + 2 * b // 4 + (b // 2) ** 2 + 2 * b // 2 + b // 4 * b // 2
                total += 3 * 9 * (source // 2) * (b // 2) + spectral + 2 * b
            total += a * b + 2 * b if a != b else 0
            a = b
    return total


PARAMETERS |= {"ffc18": _fourier((2, 2, 2, 2)), "ffc34": _fourier((3, 4, 6, 3))}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", TRUNKS)
@torch.no_grad()
def test_sizes_and_parameters(name):
    trunk = build_trunk(name).eval()
    assert count(trunk) == PARAMETERS[name]
    maps = trunk(torch.rand(1, 3, 300, 300))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, cells, cells) for channels, cells in zip(trunk.channels, (75, 38, 19, 10), strict=True)
    ]
    # 100 is no multiple of 32: ⌈100/4⌉, ⌈100/8⌉, ⌈100/16⌉, ⌈100/32⌉
    assert [m.shape[-1] for m in trunk(torch.rand(1, 3, 100, 100))] == [25, 13, 7, 4]


def torchvision_maps(name: str, model: nn.Module, x: torch.Tensor) -> dict[int, torch.Tensor]:
    """Some of the maps, by torchvision's own layers: index in our list → map."""
    if name == "vgg16":
        return {0: model.features[:16](x), 1: model.features[:23](x), 2: model.features[:30](x)}
    if name == "densenet121":
        stride4 = model.features.denseblock1(model.features[:4](x))
        return {0: F.relu(model.features.transition1.norm(stride4)), 3: F.relu(model.features(x))}
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    maps = {}
    for i in range(4):
        x = getattr(model, f"layer{i + 1}")(x)
        maps[i] = x
    return maps


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "vgg16"])
@torch.no_grad()
def test_equals_torchvision(name):
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "vgg16" else {}
    model = models.get_model(name, weights=None, **options).eval()
    trunk = build_trunk(name).eval()
    own = trunk.state_dict()
    # every entry but VGG's fresh convolutions has torchvision's name
    assert {key for key in own if not key.startswith("fc")} <= model.state_dict().keys()
    trunk.load_state_dict(model.state_dict(), strict=False)
    x = torch.rand(1, 3, 64, 64)
    maps = trunk(x)
    for i, expected in torchvision_maps(name, model, x).items():
        torch.testing.assert_close(maps[i], expected)


def test_width():
    # ResNet-18 at width w: 7×7 stem, then per stage two units of two 3×3 convolutions, a 1×1 shortcut where
    # the channels double; every convolution is followed by BN (2 parameters a channel).
    w = 24
    expected = 3 * w * 49 + 2 * w
    before = w
    for stage in range(4):
        c = w * 2**stage
        expected += (before * c + 3 * c * c) * 9 + 4 * 2 * c
        if before != c:
            expected += before * c + 2 * c
        before = c
    trunk = build_trunk("resnet18", width=w)
    assert trunk.channels == [24, 48, 96, 192]
    assert count(trunk) == expected


def test_stride_in_1x1():
    trunk = build_trunk("resnet50", stride_in_1x1=True).eval()
    strides = [(unit.conv1.stride[0], unit.conv2.stride[0]) for unit in trunk.layer2]
    assert strides == [(2, 1), (1, 1), (1, 1), (1, 1)]
    assert trunk.layer2[0].downsample[0].stride == (2, 2)
    with torch.no_grad():
        assert [m.shape[-1] for m in trunk(torch.rand(1, 3, 300, 300))] == [75, 38, 19, 10]


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_frozen_norm(name):
    torch.manual_seed(0)
    plain = build_trunk(name)
    for module in plain.modules():  # statistics other than the initial ones
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    frozen = copy.deepcopy(plain)
    convert_norm(frozen, "FrozenBN")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    convolutions = sum(m.weight.numel() for m in plain.modules() if isinstance(m, nn.Conv2d))
    assert count(frozen) == convolutions  # scale and shift are no parameters

    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    x = torch.rand(2, 3, 64, 64)
    for ours, expected in zip(frozen.train()(x), plain.eval()(x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in frozen.state_dict().items())
    # the same entries, so that a checkpoint fits either
    assert before.keys() == {key for key in plain.state_dict() if not key.endswith("num_batches_tracked")}


def test_sync_norm_on_the_cpu_is_plain_norm():
    """torch's SyncBatchNorm refuses CPU tensors once a process group exists; ours uses its own batch."""
    torch.manual_seed(0)
    plain = build_trunk("resnet18", width=8).train()
    synced = copy.deepcopy(plain)
    convert_norm(synced, "SyncBN")
    x = torch.rand(2, 3, 64, 64)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        maps = synced(x)
    finally:
        dist.destroy_process_group()
    for ours, expected in zip(maps, plain(x), strict=True):
        assert torch.equal(ours, expected)
    assert all(torch.equal(value, synced.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("output_stride", [16, 8])
@torch.no_grad()
def test_dilation_equals_torchvision(output_stride):
    """torchvision dilates stages 3 and 4 where their place in its list is True."""
    torch.manual_seed(0)
    model = models.resnet50(replace_stride_with_dilation=[False, output_stride == 8, True]).eval()
    trunk = build_trunk("resnet50", output_stride=output_stride).eval()
    trunk.load_state_dict(model.state_dict(), strict=False)
    x = torch.rand(1, 3, 97, 65)
    maps = trunk(x)
    for i, expected in torchvision_maps("resnet50", model, x).items():
        torch.testing.assert_close(maps[i], expected)
    assert maps[3].shape[-2:] == (-(-97 // output_stride), -(-65 // output_stride))


@torch.no_grad()
def test_a_dilated_trunk_sees_what_a_strided_one_sees():
    """Every second cell of a dilated ResNet-18's last stage is the strided one's, as its convolutions skip the cells
    between."""
    torch.manual_seed(0)
    strided, dilated = (build_trunk("resnet18", width=8, output_stride=s).eval() for s in (32, 16))
    dilated.load_state_dict(strided.state_dict())
    x = torch.rand(1, 3, 128, 128)
    torch.testing.assert_close(dilated(x)[3][..., ::2, ::2], strided(x)[3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet152"}, "TRUNK: unknown trunk 'resnet152'"),
        ({"name": "resnet18", "norm": "LN"}, "NORM: unknown norm 'LN'"),
        ({"name": "vgg16", "width": 32}, "TRUNK_WIDTH: vgg16"),
        ({"name": "resnet18", "stride_in_1x1": True}, "STRIDE_IN_1X1: resnet18"),
        ({"name": "resnet18", "output_stride": 4}, "OUTPUT_STRIDE: 4; resnet18 has 32, 16, 8"),
        ({"name": "vgg16", "output_stride": 16}, "OUTPUT_STRIDE: 16; vgg16 has 32"),
        ({"name": "resnet99", "key": "MODEL.FCN_KD"}, "MODEL.FCN_KD.TRUNK: unknown trunk"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UserError, match=message):
        build_trunk(**options)
