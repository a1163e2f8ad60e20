"""Group normalisation in BlitzNet: what it computes, and that no batch statistics are left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_mtl import BlitzNet
from scenekd.nets.norms import group_norm


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 1), (16, 2), (24, 3), (64, 8), (512, 64), (4, 1), (20, 2)]
)
def test_groups_of_eight_channels(channels, groups):
    """Eight channels a group where eight divides the channels; always a whole number of groups."""
    assert group_norm(channels).num_groups == groups
    assert channels % groups == 0


def test_an_image_does_not_see_its_batch():
    """With GN an image's outputs are the same alone, in a batch, in training and in evaluation mode."""
    net = BlitzNet(
        image_size=64,
        num_classes=3,
        trunk="resnet18",
        trunk_width=8,
        norm="GN",
        block_channels=(8, 16),
        stream_channels=16,
        neck_channels=8,
        seg_channels=8,
    )
    assert not [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        batch, alone = net.train().outputs(images), net.eval().outputs(images[:1])
    for name, value in alone.items():
        torch.testing.assert_close(batch[name][:1], value, atol=1e-4, rtol=1e-4)
