"""BlitzNet layer by layer: map sizes and parameter counts by the paper's channel rules, computed apart."""

import pytest
import torch

from kd_mtl.blitznet import BlitzNet


def conv_bn(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel * kernel + 2 * outputs


def extra_block(inputs: int) -> int:
    """Two bottleneck units, 512 inner, 2048 out; the first has stride 2 and with it a 1×1 shortcut."""

    def unit(n: int) -> int:
        return conv_bn(n, 512, 1) + conv_bn(512, 512, 3) + conv_bn(512, 2048, 1)

    return unit(inputs) + conv_bn(inputs, 2048, 1) + unit(2048)


def res_skip(inputs: int, skip: int) -> int:
    """concat → 1×1 (128) → 3×3 (128) → 1×1 (512), and a 1×1 shortcut where the input has not 512 channels."""
    shortcut = conv_bn(inputs, 512, 1) if inputs != 512 else 0
    return shortcut + conv_bn(inputs + skip, 128, 1) + conv_bn(128, 128, 3) + conv_bn(128, 512, 1)


def detection_head(classes: int) -> int:
    """Of one scale: 3×3 convolutions to 6·4 offsets and 6·(C + 1) logits, with bias."""
    outputs = 6 * 4 + 6 * (classes + 1)
    return 512 * 9 * outputs + outputs


def segmentation_head(maps: int, classes: int) -> int:
    """Each map 1×1 to 64, then the concatenation 3×3 to C + 1, all with bias."""
    return maps * (512 * 64 + 64) + 9 * maps * 64 * (classes + 1) + classes + 1


RESNET50, RESNET18 = (23_508_032, (256, 512, 1024, 2048)), (11_176_512, (64, 128, 256, 512))


@pytest.mark.parametrize(
    ("trunk", "trunk_counts", "size", "x4", "extra", "maps", "shared"),
    [
        ("resnet50", RESNET50, 300, False, 3, [38, 19, 10, 5, 3, 1], False),
        ("resnet50", RESNET50, 300, True, 3, [75, 38, 19, 10, 5, 3, 1], True),
        ("resnet50", RESNET50, 512, False, 4, [64, 32, 16, 8, 4, 2, 1], False),
        ("resnet18", RESNET18, 512, True, 4, [128, 64, 32, 16, 8, 4, 2, 1], False),
        ("resnet18", RESNET18, 128, False, 2, [16, 8, 4, 2, 1], True),
    ],
)
def test_parameter_count(trunk, trunk_counts, size, x4, extra, maps, shared):
    trunk_parameters, trunk_channels = trunk_counts
    blocks = [*trunk_channels, *[2048] * extra]  # channels of block1, block2, …
    expected = trunk_parameters + extra_block(trunk_channels[-1]) + (extra - 1) * extra_block(2048)
    skips = blocks[0 if x4 else 1 : -1][::-1]  # deepest first, down to block2, or block1 with x4
    assert len(skips) == len(maps) - 1  # pool6 is the last map
    expected += res_skip(2048, skips[0]) + sum(res_skip(512, skip) for skip in skips[1:])
    expected += detection_head(20) * (1 if shared else len(maps)) + segmentation_head(len(maps), 20)
    net = BlitzNet(trunk=trunk, image_size=size, x4=x4, shared_head=shared)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.mark.parametrize(
    ("size", "x4", "downscale", "upscale"),
    [
        (300, True, [75, 38, 19, 10, 5, 3, 2], [75, 38, 19, 10, 5, 3, 1]),
        (300, False, [75, 38, 19, 10, 5, 3, 2], [38, 19, 10, 5, 3, 1]),
        (512, True, [128, 64, 32, 16, 8, 4, 2, 1], [128, 64, 32, 16, 8, 4, 2, 1]),
        (512, False, [128, 64, 32, 16, 8, 4, 2, 1], [64, 32, 16, 8, 4, 2, 1]),
        (100, False, [25, 13, 7, 4, 2, 1], [13, 7, 4, 2, 1]),
    ],
)
@torch.no_grad()
def test_map_sizes(size, x4, downscale, upscale):
    net = BlitzNet(
        image_size=size,
        x4=x4,
        num_classes=3,
        trunk="resnet18",
        trunk_width=8,
        block_channels=(8, 32),
        stream_channels=16,
    ).eval()
    x = torch.rand(1, 3, size, size)
    trunk_maps = net.trunk(x)
    sizes = [m.shape[-1] for m in trunk_maps]
    deepest = trunk_maps[-1]
    for block in net.streams.blocks:
        deepest = block(deepest)
        sizes.append(deepest.shape[-1])
    assert sizes == downscale
    assert [tuple(m.shape) for m in net.streams(trunk_maps)] == [(1, 16, m, m) for m in upscale]
    outputs = net.outputs(x)
    anchors = 6 * sum(m * m for m in upscale)
    assert outputs["class_logits"].shape == (1, anchors, 4)
    assert outputs["offsets"].shape == net.anchors[None].shape == (1, anchors, 4)
    assert outputs["sem_seg"].shape == (1, 4, upscale[0], upscale[0])
    assert net.segmentation_size == (upscale[0], upscale[0])
