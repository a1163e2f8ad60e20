"""Checkpoints: what the file holds, what is loaded from other frameworks' files, and what is refused."""

from __future__ import annotations

import builtins
import errno
import logging
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from scenekd import checkpoint
from scenekd.errors import UserError
from scenekd.safe_load import Unread


class _Net(nn.Module):
    def __init__(self, seed: int = 0, classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
            self.head = nn.Linear(4, classes)
        self.register_buffer("mean", torch.tensor([1.0, 2.0]), persistent=False)


class _Child(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = _Net(seed)


class _RunsCode:
    def __reduce__(self):
        return os.system, ("touch RAN",)


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def _refused(path) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def _save(state, path):
    torch.save(state, path)
    return path


def test_round_trip(tmp_path):
    """Every tensor comes back bit for bit, buffers of the batch statistics too."""
    net, other = _Net(1), _Net(2)
    net.stem(torch.rand(2, 3, 5, 5))  # moves the running statistics
    path = tmp_path / "deep" / "model_final.pth"
    checkpoint.save_model(net, "SEED: 7\n", path)
    assert not _same(net, other)
    report = checkpoint.load_weights(other, path, strict=True)
    assert _same(net, other)
    assert report == checkpoint.LoadReport([], [], [], len(net.state_dict()))
    assert checkpoint.config_of(path) == "SEED: 7\n"


def test_content_for_other_frameworks(tmp_path):
    """Plain torch.load with weights_only reads it; both entries are the bare network's and stored once."""
    net = nn.Linear(200, 200)  # 40,200 floats, 160,800 bytes
    path = tmp_path / "model.pth"
    checkpoint.save_model(net, "text", path)
    state = torch.load(path, weights_only=True)
    assert state.keys() == {"model", "state_dict", "config", "format"}
    assert state["format"] == checkpoint.FORMAT
    assert list(state["model"]) == list(state["state_dict"]) == ["weight", "bias"]
    assert torch.equal(state["model"]["weight"], net.weight)
    assert 160_800 < path.stat().st_size < 170_000
    assert not any(value.requires_grad for value in state["model"].values())


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "module.net."])
@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_files_of_other_frameworks(tmp_path, key, prefix):
    """detectron2's {'model'}, MMEngine's {'state_dict'}, bare ones; wrapped by DDP, an adapter, or both."""
    net, other = _Net(1), _Net(2)
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    state = weights if key is None else {key: weights, "iteration": 3, "optimizer": {"state": {}}}
    checkpoint.load_weights(other, _save(state, tmp_path / "x.pth"), strict=True)
    assert _same(net, other)


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_network_with_a_child_called_net(tmp_path, prefix):
    """A prefix that the network has itself is not taken off."""
    net, other = _Child(1), _Child(2)
    state = {prefix + name: value for name, value in net.state_dict().items()}
    checkpoint.load_weights(other, _save(state, tmp_path / "x.pth"), strict=True)
    assert _same(net, other)


def test_nothing_matches(tmp_path):
    """Weights of another architecture are refused and the network stays as it was."""
    net, before = _Net(1), _Net(1)
    path = _save({"model": {"backbone.conv1.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth: weights of another network: 0 of 8 tensors fit"):
        checkpoint.load_weights(net, path)
    for content in ({"model": {}}, {}, {"model": {"head.weight": "text"}}, {3: torch.zeros(1)}):
        with pytest.raises(UserError, match="weights of another network: 0 of"):
            checkpoint.load_weights(net, _save(content, tmp_path / "none.pth"))
    assert _same(net, before)


def test_partial_match_is_reported(tmp_path, caplog, monkeypatch):
    """Other classes: the head keeps its own values, the rest is loaded, and the log names what was not."""
    net, other = _Net(1, classes=5), _Net(2, classes=3)
    own_head = other.head.weight.clone()
    state = net.state_dict()
    del state["stem.1.bias"]
    state["extra.weight"] = torch.zeros(1)
    path = _save({"model": state}, tmp_path / "five.pth")
    # A run that sets up its log file in this process keeps the records from pytest.
    monkeypatch.setattr(logging.getLogger("scenekd"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="scenekd.checkpoint"):
        report = checkpoint.load_weights(other, path)
    assert report.missing == ["stem.1.bias"]
    assert report.unexpected == ["extra.weight"]
    assert report.mismatched == ["head.bias", "head.weight"]
    # 8 tensors: convolution 1, batch norm 2 + 3, linear 2; less one missing and two of other shape.
    assert report.matched == 5
    assert torch.equal(other.stem[0].weight, net.stem[0].weight)
    assert torch.equal(other.head.weight, own_head)
    assert "5 of 8 tensors" in caplog.text
    for name in ("stem.1.bias", "extra.weight", "head.bias"):
        assert name in caplog.text
    with pytest.raises(UserError, match="5 of 8 tensors fit"):
        checkpoint.load_weights(other, path, strict=True)


def test_hostile_pickle_runs_nothing(tmp_path, monkeypatch):
    """Neither a torch file nor a bare pickle gets to run code, and no advice is given to load it unsafely."""
    monkeypatch.chdir(tmp_path)
    message = _refused(_save({"model": _RunsCode()}, tmp_path / "hostile.pth"))
    assert "system" in message
    assert "could run code" in message
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"model": _RunsCode()}, protocol=2))
    assert "Re-running" not in _refused(tmp_path / "bare.pth")
    assert not (tmp_path / "RAN").exists()


class _Reaches:
    """Asks getattr, by which a history names its statistics, for something else, from where all can be reached."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


class _Calls:
    """Calls what it reached."""

    def __reduce__(self):
        return _Reached(), ("touch RAN",)


class _Reached:
    def __call__(self, *args):
        raise AssertionError("called")

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


class _NumpyOf:
    """numpy's scalar of a pickled object, as a type of objects would have it."""

    def __reduce__(self):
        return np._core.multiarray.scalar, (np.dtype("O"), _RunsCode())


@pytest.mark.parametrize("evil", [_Reaches, _Calls, _NumpyOf, _RunsCode])
def test_names_that_are_left_unread_lead_nowhere(evil, tmp_path, monkeypatch):
    """What stands for MMEngine's history and numpy's arrays calls nothing and gives nothing away."""
    monkeypatch.chdir(tmp_path)
    path = _save({"state_dict": {"weight": torch.ones(1)}, "message_hub": evil()}, tmp_path / "evil.pth")
    try:
        found = checkpoint.read(path)["message_hub"]
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert type(found) is Unread and vars(found) == {}
    assert not (tmp_path / "RAN").exists()


def test_the_history_of_a_training_is_left_unread(tmp_path):
    """Its objects are neither built nor kept; the weights beside them are read."""
    history = HistoryBuffer([1.0], [1])
    assert b"getattr" in pickle.dumps(history.mean)
    hub = {
        "loss": history,
        "mean": history.mean,
        "lr": np.float64(2),
        "seen": np.arange(3),
        "on": np.bool_(True),
    }
    path = _save(
        {"state_dict": {"weight": torch.ones(1)}, "message_hub": hub, "meta": {"iter": 3}}, tmp_path / "x.pth"
    )
    state = checkpoint.read(path)
    assert all(type(one) is Unread and vars(one) == {} for one in state["message_hub"].values())
    assert torch.equal(checkpoint.weights_of(state)["weight"], torch.ones(1)) and state["meta"] == {"iter": 3}


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"\x89PNG\r\n\x1a\n", b"\x80\x04", b"PK\x03\x04rest", bytes(range(256))]
)
def test_not_a_checkpoint(tmp_path, content):
    """Files of another kind."""
    path = tmp_path / "image.pth"
    path.write_bytes(content)
    _refused(path)


def test_damaged_files(tmp_path):
    """Cut off or with changed bytes, anywhere: read as it is or refused in one line, nothing else."""
    whole = tmp_path / "whole.pth"
    checkpoint.save_model(nn.Linear(3, 2), "SEED: 1", whole)
    data = whole.read_bytes()
    path = tmp_path / "damaged.pth"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        _refused(path)
    for position in range(0, len(data), 11):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(bytes(changed))
        try:
            checkpoint.read(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")


def test_missing_file_folder_and_other_content(tmp_path):
    """No file, a folder, and a file whose content is no dictionary."""
    assert "no such checkpoint" in _refused(tmp_path / "none.pth")
    assert "no such checkpoint" in _refused(tmp_path)
    assert "a list, not a dictionary" in _refused(_save([1], tmp_path / "list.pth"))
    assert "a Tensor, not a dictionary" in _refused(_save(torch.zeros(1), tmp_path / "tensor.pth"))
    assert checkpoint.config_of(_save({"config": 5}, tmp_path / "number.pth")) is None


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError("unexpected"), OSError(errno.EIO, "io")])
def test_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch, failure):
    """Whatever happens halfway: the old file is whole and nothing else is left."""
    path = tmp_path / "last.pth"
    checkpoint.atomic_save({"iteration": 1}, path)

    def half(state, file):
        file.write(b"half a checkpoint")
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", half)
        expected = KeyboardInterrupt if failure is KeyboardInterrupt else UserError
        with pytest.raises(expected):
            checkpoint.atomic_save({"iteration": 2}, path)
    assert checkpoint.read(path) == {"iteration": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]


def test_full_disk(tmp_path, monkeypatch):
    """A write that finds no space: one line that names the file; the old one stays and nothing else."""
    path = tmp_path / "model_final.pth"
    checkpoint.save_model(_Net(1), "", path)
    real = builtins.open

    def full_open(file, mode="r", *args, **kwargs):
        opened = real(file, mode, *args, **kwargs)
        if "w" not in mode:
            return opened

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                opened.close()

            def __getattr__(self, name):
                return getattr(opened, name)

            def write(self, data):
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", full_open)
        with pytest.raises(UserError) as caught:
            checkpoint.save_model(_Net(2), "", path)
    assert str(caught.value).startswith(f"{path}: could not be written")
    assert [file.name for file in tmp_path.iterdir()] == ["model_final.pth"]
    other = _Net(3)
    checkpoint.load_weights(other, path)
    assert _same(other, _Net(1))
