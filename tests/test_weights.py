"""Weight files of other projects: names, values, and files that must not be trusted."""

import logging
import os
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scenekd.array_pickle import load_array_pickle
from scenekd.errors import UserError
from scenekd.nets.pkl_weights import trunk_arrays
from scenekd.nets.trunks import PIXEL_MEAN, PIXEL_STD, build_trunk
from scenekd.nets.weights import load_pretrained


def random_trunk(name: str, seed: int, **options) -> nn.Module:
    torch.manual_seed(seed)
    trunk = build_trunk(name, **options)
    for key, value in trunk.state_dict().items():
        if key.endswith(("bn1.weight", "bn2.weight", "bn3.weight", "bias", "running_mean")):
            nn.init.uniform_(value, -0.5, 0.5)
    return trunk


def assert_same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items() if "num_batches" not in key)


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        ("", lambda state: state),  # torchvision
        ("backbone.", lambda state: {"meta": {"CLASSES": ["road"]}, "state_dict": state}),  # OpenMMLab
        ("module.backbone.", lambda state: {"state_dict": state}),
        ("trunk.", lambda state: {"model": state, "format": 1}),  # ours
    ],
)
def test_checkpoint_layouts(tmp_path, caplog, prefix, wrap):
    source = random_trunk("resnet18", 1)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    state["fc.weight" if not prefix else "decode_head.conv.weight"] = torch.zeros(1000, 512)
    torch.save(wrap(state), tmp_path / "weights.pth")
    trunk = random_trunk("resnet18", 2)
    with caplog.at_level(logging.WARNING):
        load_pretrained(trunk, "resnet18", str(tmp_path / "weights.pth"))
    assert_same(trunk, source)
    assert not caplog.records  # nothing of the trunk was missing


def test_partial_match_is_reported(tmp_path, caplog):
    source = random_trunk("resnet18", 1)
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("layer4")}
    torch.save(state, tmp_path / "weights.pth")
    trunk = random_trunk("resnet18", 2)
    fresh = trunk.layer4[0].conv1.weight.clone()
    with caplog.at_level(logging.WARNING):
        load_pretrained(trunk, "resnet18", str(tmp_path / "weights.pth"))
    assert torch.equal(trunk.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    assert torch.equal(trunk.layer4[0].conv1.weight, fresh)
    # layer4 has five of the 20 convolutions, each with BN's weight, bias, mean and variance
    assert "lacks 25 of 100 entries: layer4.0.bn1.bias" in caplog.text


def test_densenet_names_of_old_files(tmp_path):
    source = random_trunk("densenet121", 1)
    old = {}
    for key, value in source.state_dict().items():
        for kind in ("norm", "conv"):
            for i in "12":
                if ".denselayer" in key:
                    key = key.replace(f".{kind}{i}.", f".{kind}.{i}.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "weights.pth")
    trunk = random_trunk("densenet121", 2)
    load_pretrained(trunk, "densenet121", str(tmp_path / "weights.pth"))
    assert_same(trunk, source)


class Hostile:
    """Runs a command when a plain unpickler meets it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: {"conv2d.weight": torch.zeros(2)}, "fits no layer of ResNetTrunk"),
        (
            lambda: {"conv1.weight": torch.zeros(32, 3, 7, 7)},
            r"conv1.weight has shape \(32, 3, 7, 7\).*TRUNK_WIDTH",
        ),
        (lambda: {"state_dict": {"backbone.stem.0.weight": torch.zeros(2)}}, "deep stem"),
        (lambda: [torch.zeros(2)], "holds a list, not a dict"),
        (dict, "fits no layer"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    torch.save(content(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(build_trunk("resnet18"), "resnet18", str(tmp_path / "weights.pth"))
    assert "MODEL.WEIGHTS" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("damage", ["hostile", "text", "truncated", "empty", "missing"])
def test_files_that_are_no_weights(tmp_path, suffix, damage):
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "trace"
    content = {"conv1_w": np.zeros((64, 3, 7, 7), np.float32)}
    if damage == "hostile":
        bad = {**content, "res2_0_branch1_w": Hostile(f"touch {trace}")}
        torch.save(bad, path) if suffix == ".pth" else path.write_bytes(pickle.dumps(bad))
    elif damage == "text":
        path.write_text("<html>404</html>")
    elif damage == "truncated":
        path.write_bytes(pickle.dumps(content, protocol=2)[:-2000])
    elif damage == "empty":
        path.write_bytes(b"")
    with pytest.raises(
        UserError, match="no such file" if damage == "missing" else "no plain tensors"
    ) as error:
        load_pretrained(build_trunk("resnet18"), "resnet18", str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",  # a module that is allowed, a name that is not
        b"\x80\x04\x8c\x05numpy\x94\x8c\x0endarray.tofile\x94\x93.",  # a dotted name
        b"ccollections\ndefaultdict\n(tR.",
    ],
)
def test_array_pickle_refuses_every_other_name(opcodes):
    with pytest.raises(pickle.UnpicklingError, match="names"):
        load_array_pickle(opcodes)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_array_pickle_of_every_protocol(protocol):
    content = {"blobs": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": [1, "é", None, (2.5,)]}}
    loaded = load_array_pickle(pickle.dumps(content, protocol=protocol))
    np.testing.assert_array_equal(loaded["blobs"]["a"], content["blobs"]["a"])
    assert loaded["blobs"]["n"] == content["blobs"]["n"]


def test_array_pickle_of_python_2():
    # protocol 2, a dict with the byte string "é" in Latin-1 (opcode U), as Python 2 writes its strings
    assert load_array_pickle(b"\x80\x02}U\x01\xe9K\x01s.") == {"é": 1}


def caffe2_names(depths):
    """Layer names of MSRA's ResNets: our name of a convolution and of its norm → theirs."""
    for stage, depth in enumerate(depths, start=1):
        for unit in range(depth):
            theirs, ours = f"res{stage + 1}_{unit}_branch", f"layer{stage}.{unit}."
            yield ours + "conv1", ours + "bn1", theirs + "2a"
            yield ours + "conv2", ours + "bn2", theirs + "2b"
            yield ours + "conv3", ours + "bn3", theirs + "2c"
            if unit == 0:
                yield ours + "downsample.0", ours + "downsample.1", theirs + "1"


def caffe2_blobs(state):
    blobs = {"fc1000_w": np.zeros((1000, 2048), np.float32), "weight_order": b"abc"}
    rng = np.random.default_rng(0)
    blobs["conv1_w"] = rng.normal(size=(64, 3, 7, 7)).astype(np.float32)
    blobs["conv1_b"] = np.zeros(64, np.float32)
    for norm, theirs in [("bn1", "res_conv1"), *((n, t) for _, n, t in caffe2_names((3, 4, 6, 3)))]:
        blobs[f"{theirs}_bn_s"] = state[f"{norm}.weight"].numpy()
        blobs[f"{theirs}_bn_b"] = state[f"{norm}.bias"].numpy()
    for conv, _, theirs in caffe2_names((3, 4, 6, 3)):
        blobs[f"{theirs}_w"] = state[f"{conv}.weight"].numpy()
    return blobs


def test_caffe2_resnet(tmp_path, caplog):
    source = random_trunk("resnet50", 1)
    blobs = caffe2_blobs(source.state_dict())
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    trunk = random_trunk("resnet50", 2, norm="FrozenBN", stride_in_1x1=True)
    with caplog.at_level(logging.WARNING):
        load_pretrained(trunk, "resnet50", str(path))
    assert "lacks" not in caplog.text  # every entry of the trunk was there

    # The stem sees the same on RGB with torchvision's preprocessing as Caffe's on BGR minus its mean:
    # (rgb/255 − mean) / std against bgr − 255·mean.
    image = torch.rand(1, 3, 32, 32) * 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    theirs = F.conv2d((image - 255 * mean).flip(1), torch.from_numpy(blobs["conv1_w"]))
    ours = F.conv2d((image / 255 - mean) / std, trunk.conv1.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)

    # A folded norm is scale · x + bias: mean 0, and variance + ε = 1.
    x = torch.randn(2, 256, 4, 4)
    unit = trunk.layer1[2].bn3
    scale, bias = (torch.from_numpy(blobs[f"res2_2_branch2c_bn_{which}"]).view(-1, 1, 1) for which in "sb")
    torch.testing.assert_close(unit(x), scale * x + bias)
    for conv in ("layer1.0.downsample.0", "layer3.5.conv2", "layer4.2.conv3"):
        assert torch.equal(trunk.get_submodule(conv).weight, source.get_submodule(conv).weight)


def test_detectron2_names(tmp_path, caplog):
    """The names that detectron2 gives torchvision's weights: stem, res2 … res5, norms below convolutions."""
    source = random_trunk("resnet50", 1)
    model = {"stem.fc.weight": np.zeros((1000, 2048), np.float32)}
    state = {key: value.numpy() for key, value in source.state_dict().items() if "num_batches" not in key}
    for suffix in ("weight", "bias", "running_mean", "running_var"):
        model[f"stem.conv1.norm.{suffix}"] = state[f"bn1.{suffix}"]
        for conv, norm, _ in caffe2_names((3, 4, 6, 3)):
            theirs = conv.replace("layer", "res").replace("downsample.0", "shortcut")
            theirs = f"res{int(theirs[3]) + 1}{theirs[4:]}"
            model[f"{theirs}.weight"] = state[f"{conv}.weight"]
            model[f"{theirs}.norm.{suffix}"] = state[f"{norm}.{suffix}"]
    model["stem.conv1.weight"] = state["conv1.weight"]
    content = {"model": model, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    trunk = random_trunk("resnet50", 2)
    with caplog.at_level(logging.WARNING):
        load_pretrained(trunk, "resnet50", str(tmp_path / "R-50.pkl"))
    assert_same(trunk, source)
    assert not caplog.records


def test_pickle_without_a_dict():
    with pytest.raises(ValueError, match="a list, not a dict"):
        trunk_arrays([1, 2])


def test_zoo_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = random_trunk("resnet18", 1)
    (tmp_path / "checkpoints").mkdir()
    torch.save(source.state_dict(), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    trunk = random_trunk("resnet18", 2)
    load_pretrained(trunk, "resnet18", "torchvision")
    assert_same(trunk, source)


def test_zoo_offline(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as error:
        load_pretrained(build_trunk("vgg16"), "vgg16", "torchvision")
    message = str(error.value)
    assert "MODEL.WEIGHTS" in message
    assert "Name or service not known" in message
    assert str(tmp_path / "checkpoints" / "vgg16-397923af.pth") in message
    assert 'MODEL.WEIGHTS ""' in message
    assert "\n" not in message
