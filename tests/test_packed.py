"""Binary networks by bits: the same values as their simulation in floating point, bit for bit."""

import copy
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from envise.networks import NETWORKS, build_network
from scenekd.nets import packed_native
from scenekd.nets.binary import BinaryConv2d, ConvUnit
from scenekd.nets.packed import PackedChain, pack_network
from scenekd.nets.packed_bits import PackedConv, pack_signs


@pytest.fixture
def native():
    if packed_native.library() is None:
        pytest.skip("the packed kernels need a C++ compiler and ninja")
    return "native"


@pytest.fixture(params=["native", "numpy"])
def backend(request):
    return request.getfixturevalue("native") if request.param == "native" else request.param


def shake(net: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and parameters as of a trained network: none is at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 1, generator=generator)
            module.running_var.uniform_(0.5, 20, generator=generator)
            module.weight.data.uniform_(-1.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.5, generator=generator)
    for name, parameter in net.named_parameters():
        if any(part in name for part in ("shift.", "act.")):
            parameter.data.normal_(0, 0.3, generator=generator)
    return net.eval()


@torch.no_grad()
def both(net: nn.Module, x: torch.Tensor, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    return net(x), pack_network(net, backend)(x)


def test_bits_are_channels_from_the_lowest_on():
    positive = np.zeros((1, 34), bool)
    positive[0, [0, 5, 33]] = True
    assert pack_signs(positive).tolist() == [[1 + 32, 2]]


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "stride", "size"),
    [
        (16, 16, 3, 1, (8, 8)),
        (3, 5, 3, 2, (7, 6)),  # nothing is a multiple of anything
        (33, 50, 3, 1, (5, 9)),
        (64, 128, 3, 2, (9, 9)),
        (40, 70, 1, 1, (4, 3)),
        (32, 17, 5, 1, (3, 3)),  # most of what a filter sees is border
        (48, 112, 5, 2, (6, 1)),
    ],
)
def test_sums_are_exact_up_to_the_border(channels, filters, kernel, stride, size, backend):
    torch.manual_seed(channels)
    unit = ConvUnit(channels, filters, kernel, stride, shortcut=False, scaling="none").eval()
    unit.norm.eps = 0.0  # statistics 0 and 1: the sums as they are
    x = torch.randn(3, channels, *size)
    x[0, 0] = 0  # zero is +
    expected = unit.conv(x)
    assert torch.equal(expected, expected.round())
    packed = pack_network(nn.Sequential(unit), backend)
    assert torch.equal(packed(x), expected)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        *((name, "weight") for name in NETWORKS),
        *itertools.product(("bireal_resnet20", "reactnet_resnet20", "vgg_small"), ("xnor", "none")),
    ],
)
def test_networks_are_equal_bit_for_bit(name, scaling, backend):
    torch.manual_seed(0)
    net = shake(build_network(name, 10, scaling=scaling))
    expected, actual = both(net, torch.randint(0, 256, (2, 3, 32, 32)).float(), backend)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert torch.equal(actual.argmax(1), expected.argmax(1))
    assert expected.std() > 0.01  # the classes differ: equality means something


def test_more_images_than_are_worked_on_at_once(backend):
    torch.manual_seed(0)
    net = shake(build_network("reactnet_resnet20", 10))
    images = torch.randint(0, 256, (9, 3, 40, 24)).float()
    expected, actual = both(net, images, backend)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert pack_network(net, backend)(images[:0]).shape == (0, 10)


def test_features_are_where_they_were(backend):
    torch.manual_seed(0)
    net = shake(build_network("bireal_resnet18", 10, image_size=128))
    images = torch.randint(0, 256, (1, 3, 128, 128)).float()
    with torch.no_grad():
        expected, actual = net.forward_features(images), pack_network(net, backend).forward_features(images)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kinds", list(itertools.product(("add", "plain", "pool", "halve"), repeat=3)))
def test_any_order_of_units(kinds, native):
    """Each kind of unit after each other: maps and bits are handed on as the next one needs them."""
    options = {
        "add": {},
        "plain": {"shortcut": False},
        "pool": {"pool": True, "shortcut": False},
        "halve": {"stride": 2, "pool": True},
    }
    torch.manual_seed(0)
    net = shake(nn.Sequential(*(ConvUnit(18, 18, shifts=True, **options[kind]) for kind in kinds)))
    x = torch.randn(2, 18, 65, 67).contiguous(memory_format=torch.channels_last)
    if kinds == ("halve",) * 3:
        assert pack_network(net, native)(x).shape[2:] == (1, 1)
    expected, actual = both(net, x, native)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_original_is_left_alone_and_the_copy_does_not_train(backend):
    net = build_network("bireal_resnet20", 10)
    before = copy.deepcopy(net.state_dict())
    packed = pack_network(net, backend)
    assert net.training and not packed.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    again = copy.deepcopy(packed)
    images = torch.zeros(1, 3, 32, 32)
    assert torch.equal(again(images), packed(images))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        packed.train()(images)
    with pytest.raises(ValueError, match="float32"):
        packed.eval().body(torch.zeros(1, 16, 8, 8, dtype=torch.float64))


def test_what_cannot_be_packed():
    with pytest.raises(ValueError, match="no binary unit"):
        pack_network(build_network("vgg_small_real", 10))
    with pytest.raises(ValueError, match="outside a ConvUnit"):
        pack_network(nn.Sequential(BinaryConv2d(3, 3, 1)))
    with pytest.raises(ValueError, match="backend"):
        pack_network(build_network("vgg_small", 10), "cuda")
    with pytest.raises(ValueError, match="only a binary"):
        PackedConv(ConvUnit(3, 3, binary=False))


def test_without_a_compiler_one_line_says_so_and_numpy_serves(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    packed_native.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            net = shake(build_network("bireal_resnet20", 3))
            packed = pack_network(net)
            pack_network(net)
        (record,) = caplog.records
        assert "no-such-compiler" in record.message and "\n" not in record.message
        assert not any(m.native for m in packed.modules() if isinstance(m, PackedChain))
        images = torch.zeros(1, 3, 32, 32)
        torch.testing.assert_close(packed(images), net(images), rtol=0, atol=1e-4)
        with pytest.raises(RuntimeError, match="cannot be built"):
            pack_network(net, "native")
    finally:
        packed_native.library.cache_clear()


def test_source_travels_with_the_package():
    assert packed_native.SOURCE.is_file()
    setup = Path(__file__).parents[1] / "setup.py"
    assert '"csrc/*.cpp"' in setup.read_text(encoding="utf-8")  # of every package
