"""tools/export.py: the command line, real images, and its one-line errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tool_runner import ToolRunner

from scenekd import checkpoint
from scenekd.models import build_model


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ToolRunner:
    """tools/export.py."""
    return ToolRunner("export", monkeypatch)


@pytest.fixture
def weights(tiny_config: Callable[..., Any], tmp_path: Path) -> Path:
    """An untrained network with its configuration."""
    cfg = tiny_config("run")
    path = tmp_path / "model.pth"
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), path)
    return path


def test_onnx_is_checked_on_real_images(
    run: ToolRunner, weights: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    files = sorted(test_data.glob("voc_mini/VOCdevkit/*/JPEGImages/*.jpg"))[:3]
    path = tmp_path / "model.onnx"
    assert run("--weights", weights, "--output", path, "--nms", "--check", *files) == 0
    said = capsys.readouterr().out
    assert f"{path}: onnx, opset" in said and "compared on 3 inputs; " in said
    assert "boxes                (detections, 4)" in said and "largest difference from PyTorch" in said
    assert path.stat().st_size > 1000


def test_torchscript_with_a_config_file(
    run: ToolRunner, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    arguments = ["--config-file", tmp_path / "tiny.yaml", "--weights", weights, "--output", path]
    assert run(*arguments, "--format", "torchscript") == 0
    assert "compared on 3 inputs\n" in capsys.readouterr().out and path.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{out}/m.pt", "--check", "missing.jpg"], "--check: missing.jpg: no such file"),
        (["--output", "{out}"], "is a folder; name a file"),
        (["--output", "{out}/m.pt", "--opset", "18"], "--opset: belongs to --format onnx"),
        (["--output", "{out}/m.pt", "--tolerance", "-1"], "--tolerance: -1.0; give a number from 0 on"),
        (
            ["--output", "{out}/m.pt", "--nms", "--opts", "MODEL.BLITZNET.TASKS", "('segmentation',)"],
            "--nms: the network has no detection task",
        ),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    run: ToolRunner,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    filled = [argument.format(out=out) for argument in arguments]
    assert run("--weights", weights, "--format", "torchscript", *filled) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said.split("error: ")[-1]
    assert not list(out.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    name: str,
    run: ToolRunner,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None if package == name else object())
    assert run("--weights", weights, "--output", tmp_path / "m.onnx") == 2
    said = capsys.readouterr().err
    assert said == (f"error: --format onnx: needs {name}; pip install {name}, or take --format torchscript\n")


def test_an_opset_out_of_range(
    run: ToolRunner, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert run("--weights", weights, "--output", tmp_path / "m.onnx", "--opset", "9") == 2
    assert "--opset: 9; choose 18 to" in capsys.readouterr().err
