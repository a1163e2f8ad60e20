"""tools/shrink.py and tools/export.py --quantize: the ladder's files and numbers, and their one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_runner import ToolRunner

from scenekd import checkpoint
from scenekd.benchmark.measure import take_turns
from scenekd.config import load_config
from scenekd.models import build_model

STUDENT = """
SYSTEM: fcn_kd
DATASETS:
  ROOT: "{root}"
  CLASSES: ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")
  TRAIN: ("voc_seg_train",)
  TEST: ("voc_seg_val",)
INPUT: {{SIZE: 64}}
MODEL:
  DEVICE: "cpu"
  WEIGHTS: ""
  FCN_KD: {{NETWORK: "fcn_resnet18", TRUNK_WIDTH: 8, HEAD_CHANNELS: 16}}
TEST: {{BATCH_SIZE: 4, BOOTSTRAP: 0}}
DATALOADER: {{NUM_WORKERS: 0}}
"""


@pytest.fixture
def student(scenes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A configuration and the weights of an untrained student."""
    config, weights = tmp_path / "student.yaml", tmp_path / "model.pth"
    config.write_text(STUDENT.format(root=scenes))
    cfg = load_config(config)
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), weights)
    return config, weights


def test_the_ladder(
    student: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The float step's mIoU is what tools/test.py says of the checkpoint: same images, same evaluator; batches of
    one and of four round alike to far below .01."""
    config, weights = student
    out = tmp_path / "ladder"
    monkeypatch.setattr("scenekd.shrink.require_onnx", _missing)
    code = ToolRunner("shrink", monkeypatch)(
        *("--config-file", config, "--weights", weights, "--output", out, "--calibrate", 5, "--repeat", 2),
        *("OUTPUT_DIR", tmp_path / "run"),
    )
    said = capsys.readouterr().out
    assert code == 0 and "no ONNX steps: onnx is missing" in said and "int8, PyTorch" in said
    ladder = json.loads((out / "shrink.json").read_text())
    plain, small = ladder["steps"]
    assert (plain["file"], small["file"]) == ("float.pt", "int8.pt") and ladder["metric"] == "mIoU"
    for step in (plain, small):
        assert (out / step["file"]).stat().st_size == step["bytes"] and step["seconds"] > 0
        assert 0 <= step["score"] <= 100
    assert plain["speedup"] == [1, 1, 1] and small["speedup"][1] <= small["speedup"][0] <= small["speedup"][2]
    assert "5 calibration images" in small["detail"] and ladder["machine"]["threads"] == 1
    assert "float, PyTorch" in (out / "shrink.html").read_text()
    results = tmp_path / "results.json"
    assert (
        ToolRunner("test", monkeypatch)(config, weights, "--out", results, "OUTPUT_DIR", tmp_path / "run")
        == 0
    )
    assert plain["score"] == pytest.approx(json.loads(results.read_text())["sem_seg"]["mIoU"], abs=0.01)


def _missing() -> None:
    from scenekd.errors import UserError

    raise UserError("onnx is missing")


def test_turns_are_taken_in_order() -> None:
    """Two warm calls and a timed one of each side, and then A B A B."""
    calls: list[str] = []
    sides = [lambda: calls.append("a"), lambda: calls.append("b")]
    times = take_turns(sides, repeats=2, min_seconds=0, warm=2)
    assert "".join(calls) == "aaabbb" + "abab"
    assert [len(side) for side in times] == [2, 2] and min(map(min, times)) >= 0


def test_export_in_int8(
    student: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, weights = student
    path = tmp_path / "int8.pt"
    arguments = ("--config-file", config, "--weights", weights, "--output", path, "--format", "torchscript")
    code = ToolRunner("export", monkeypatch)(*arguments, "--quantize", 4, "--backend", "onednn")
    said = capsys.readouterr().out
    assert code == 0 and "layers in int8 (onednn, 4 calibration images)" in said
    assert "of the classes are those of the float network" in said
    assert path.stat().st_size < sum(p.numel() * 4 for p in _net(config).parameters())


def _net(config: Path) -> Any:
    return build_model(load_config(config), pretrained=False)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("export", ["--output", "{out}/m.pt", "--quantize", "0"], "--calibrate: 0; give at least one image"),
        ("export", ["--output", "{out}/m.pt", "--keep-float", "a"], "--keep-float: belong to --quantize"),
        ("export", ["--output", "{out}/m.pt", "--quantize", "4", "--nms"], "have no meaning with --quantize"),
        (
            "export",
            ["--output", "{out}/m.pt", "--quantize", "4", "--backend", "npu"],
            "--backend: torch has no 'npu'",
        ),
        ("shrink", ["--output", "{out}/x", "--threads", "0"], "--threads: 0; give at least one"),
        ("shrink", ["--output", "{out}/x", "--repeat", "0"], "--repeat: 0; give at least one"),
        ("shrink", ["--output", "{out}/x", "DATASETS.TEST", "()"], "DATASETS.TEST: names no data set"),
        (
            "shrink",
            ["--output", "{out}/x", "--backend", "npu"],
            "--backend: torch has no 'npu' on this machine",
        ),
    ],
)
def test_errors_are_one_line(
    tool: str,
    arguments: list[str],
    message: str,
    student: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, weights = student
    out = tmp_path / "out"
    out.mkdir()
    filled = [argument.format(out=out) for argument in arguments]
    if tool == "export":
        filled += ["--format", "torchscript"]
    assert ToolRunner(tool, monkeypatch)("--config-file", config, "--weights", weights, *filled) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said.split("error: ")[-1]
    assert not list(out.iterdir())


def test_blitznet_is_refused(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_config("run")
    weights = tmp_path / "blitz.pth"
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), weights)
    code = ToolRunner("shrink", monkeypatch)("--config-file", tmp_path / "tiny.yaml", "--weights", weights)
    assert code == 2
    assert "MODEL: a BlitzNet cannot be quantised; take a network of SYSTEM fcn_kd" in capsys.readouterr().err
    assert torch.get_num_threads() == 1
