"""The binary students by name, and their real-valued twins."""

import pytest
import torch
from torch import nn

from envise.networks import NETWORKS, BinaryClassifier, build_network, network_names
from scenekd.errors import UserError
from scenekd.nets.binary import BinaryConv2d


@pytest.mark.parametrize("name", network_names())
def test_contract(name):
    torch.manual_seed(0)
    net = build_network(name, 7).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32)).float()
    features, pooled = net.forward_features(images)
    assert features.dim() == 4 and torch.equal(pooled, features.mean((2, 3)))
    assert torch.equal(net.head(pooled), net(images)) and net(images).shape == (2, 7)
    normalised = build_network(name, 7, normalise=False).eval()
    normalised.load_state_dict(net.state_dict())
    assert torch.equal(normalised((images - net.pixel_mean) / net.pixel_std), net(images))
    assert not any("pixel" in key for key in net.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_twin_has_the_same_parameters_and_no_sign(name):
    net, twin = build_network(name, 5), build_network(name + "_real", 5)
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in twin.state_dict().items()
    }
    twin.load_state_dict(net.state_dict())
    assert not any(isinstance(module, BinaryConv2d) for module in twin.modules())
    kinds = {path: type(module) for path, module in twin.named_modules()}
    for path, module in net.named_modules():
        assert path in kinds
        if not isinstance(module, BinaryConv2d):
            assert kinds[path] is type(module)


@pytest.mark.parametrize("name", NETWORKS)
def test_first_convolution_classes_and_shortcuts_are_real(name):
    net = build_network(name, 5)
    real = [
        path
        for path, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not getattr(module, "is_binary", False)
    ]
    assert real[0] == "stem.0" and real[-1] == "classes"
    assert all(".shortcut." in path for path in real[1:-1])


def test_layers_are_counted_as_the_names_say():
    # 20 = stem + 18 + classes; 18 = stem + 16 + classes. VGG-small: 6 convolutions, the first is the stem.
    counts = {name: len(build_network(name, 5).body) for name in NETWORKS}
    assert counts == {
        "bireal_resnet18": 16,
        "bireal_resnet20": 18,
        "reactnet_resnet18": 16,
        "reactnet_resnet20": 18,
        "vgg_small": 5,
    }


@pytest.mark.parametrize(("size", "cells"), [(32, 4), (64, 4), (128, 4), (224, 7)])
def test_stem_follows_the_image_size(size, cells):
    net = build_network("bireal_resnet18", 3, image_size=size).eval()
    assert net.stem[0].kernel_size == ((7, 7) if size >= 128 else (3, 3))
    assert net.forward_features(torch.zeros(1, 3, size, size))[0].shape == (1, 512, cells, cells)


@pytest.mark.parametrize(
    ("name", "size"), [("bireal_resnet20", 8), ("reactnet_resnet20_real", 8), ("vgg_small", 16)]
)
def test_learns(name, size):
    """Images of four classes are told apart after some steps: gradients reach what they must."""
    torch.manual_seed(0)
    net = build_network(name, 4)
    images, labels = torch.randint(0, 256, (4, 3, size, size)).float(), torch.arange(4)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert losses[-1] < 0.5 * losses[0]


def test_unknown_name_lists_the_known():
    with pytest.raises(UserError, match="vgg_small"):
        build_network("resnet50", 10)
    with pytest.raises(UserError, match="num_classes"):
        build_network("vgg_small", 0)


def test_are_students_of_envise():
    from envise.students import STUDENTS

    for name in network_names():
        assert STUDENTS[name].layer == "body"
    assert isinstance(build_network("vgg_small", 2).body, nn.Sequential)
    assert isinstance(build_network("vgg_small", 2), BinaryClassifier)
