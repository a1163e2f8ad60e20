"""ResSkip and the heads against their formulas, and the order of the heads' output."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mtl.blocks import ResSkip
from kd_mtl.heads import DetectionHead, SegmentationHead


def test_res_skip_without_residual_is_the_resized_input():
    block = ResSkip(4, 6, channels=4, neck_channels=2, norm="BN").eval()
    nn.init.zeros_(block.residual[-1][1].weight)  # the last norm's scale
    x = torch.tensor([0.0, 1.0, -1.0, 2.0]).view(1, 4, 1, 1) * torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    output, shortcut = block(x, torch.rand(1, 6, 1, 4))
    # [0, 1] at four half-pixel centres: 0, .25, .75, 1
    ramp = torch.tensor([0.0, 0.25, 0.75, 1.0])
    assert torch.allclose(shortcut[0, :, 0], torch.tensor([[0.0], [1.0], [-1.0], [2.0]]) * ramp)
    assert torch.allclose(output, shortcut.clamp(min=0))

    nearest = ResSkip(4, 6, channels=4, neck_channels=2, norm="BN", resize="nearest").eval()
    assert torch.equal(nearest(x, torch.rand(1, 6, 1, 4))[1][0, 1, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))


@torch.no_grad()
def test_res_skip_is_its_formula():
    torch.manual_seed(0)
    block = ResSkip(5, 3, channels=4, neck_channels=2, norm="BN").train()
    x, skip = torch.randn(2, 5, 2, 3), torch.randn(2, 3, 5, 6)

    def conv_bn(x: Tensor, layers: nn.Module) -> Tensor:
        weight = layers[0].weight
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        mean, var = y.mean(dim=(0, 2, 3), keepdim=True), y.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
        return (y - mean) / (var + 1e-5).sqrt()  # a fresh norm has scale 1 and shift 0

    resized = F.interpolate(x, size=(5, 6), mode="bilinear", align_corners=False)
    shortcut = conv_bn(resized, block.shortcut)
    y = torch.cat((resized, skip), dim=1)
    for i, layers in enumerate(block.residual):
        y = conv_bn(y, layers)
        y = y.relu() if i < 2 else y
    output, own_shortcut = block(x, skip)
    torch.testing.assert_close(own_shortcut, shortcut, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output, (shortcut + y).relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_detection_head_is_in_the_anchors_order(shared):
    """Maps that hold their cell's number, and kernels that copy it: the logit of an anchor names its cell."""
    head = DetectionHead(1, 2, 2, shared=shared)
    for conv in (*head.classes, *head.offsets):
        nn.init.zeros_(conv.weight)
        conv.weight[:, 0, 1, 1] = 1  # the kernel's centre
        per_anchor = conv.out_channels // 6
        conv.bias.copy_(
            100 * torch.arange(6.0).repeat_interleave(per_anchor) + torch.arange(per_anchor).repeat(6)
        )
    maps = [10_000.0 + torch.arange(6.0).view(1, 1, 2, 3) * 1000, torch.full((1, 1, 1, 1), 50_000.0)]
    logits, offsets = head(maps)
    assert (logits.shape, offsets.shape) == ((1, 42, 3), (1, 42, 4))
    # map 0: cell (1, 2) is number 5 in row-major order; shape 4 of that cell; class 1
    assert logits[0, 5 * 6 + 4, 1] == 10_000 + 5000 + 400 + 1
    assert offsets[0, 5 * 6 + 4, 3] == 10_000 + 5000 + 400 + 3
    assert logits[0, 36 + 2, 2] == 50_000 + 200 + 2  # map 1 starts at 6 · 6


@torch.no_grad()
def test_segmentation_head_is_its_formula():
    torch.manual_seed(0)
    head = SegmentationHead(3, 4, 2, seg_channels=5)
    fine, coarse = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)
    a = F.conv2d(fine, head.reduce[0].weight).relu()
    b = F.conv2d(coarse, head.reduce[1].weight).relu()
    b = b.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(torch.cat((a, b), dim=1), head.classify.weight, padding=1)
    torch.testing.assert_close(head([fine, coarse]), expected)  # the biases start at zero
