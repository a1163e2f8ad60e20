"""``tools/test.py`` on a folder of checkpoints."""

from __future__ import annotations

import json
import os

import pytest
from tool_runner import ToolRunner

from scenekd.checkpoint import save_model
from scenekd.models import build_model


@pytest.fixture
def run(monkeypatch):
    return ToolRunner("test", monkeypatch)


def test_each_checkpoint_of_a_folder_is_scored_oldest_first(run, tiny_config, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in enumerate(("model_final.pth", "model_best.pth")):  # against the alphabet
        cfg = tiny_config("out", "SEED", age)  # the initial weights follow from it
        save_model(build_model(cfg), cfg.dump(), folder / name)
        os.utime(folder / name, (age, age))
    assert run(tmp_path / "tiny.yaml", folder) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ".pth: " in line]
    assert [line.split(": ")[0].rsplit("/", 1)[-1] for line in lines] == ["model_final.pth", "model_best.pth"]
    scores = [
        json.loads((folder / f"{name}.results.json").read_text())["sem_seg"]["mIoU"]
        for name in ("model_final", "model_best")
    ]
    assert scores[0] != scores[1]


def test_a_folder_without_checkpoints(run, tiny_config, tmp_path, capsys):
    tiny_config("out")
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "tiny.yaml", tmp_path / "empty") == 2
    assert "holds no model*.pth" in capsys.readouterr().err
