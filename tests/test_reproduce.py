"""The command from nothing to its page, with real trainings of a few steps."""

from __future__ import annotations

import json

import pytest
from tool_runner import ToolRunner

from scenekd.study import stages

FEW_STEPS = ("SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 1)
NARROW = ("MODEL.BLITZNET.TRUNK_WIDTH", 8, "INPUT.SIZE", 64, "SOLVER.IMS_PER_BATCH", 2)


@pytest.mark.slow
def test_two_rows_from_nothing(tmp_path, monkeypatch, capsys):
    """Scenes, a teacher, its cache, two students and a scored filter; asked again, nothing is run."""
    draw = stages.generate_scenes
    few = {"teacher": 4, "train": 6, "few": 4, "val": 4, "hold": 3}
    monkeypatch.setattr(
        stages, "generate_scenes", lambda folder, **_: draw(folder, splits=few, progress=False)
    )
    tool = ToolRunner("reproduce", monkeypatch)
    asked = ("kd_mtl", "--preset", "smoke", "--output", tmp_path, "--seeds", 1, "--jobs", 2)
    assert tool(*asked, "--only", "4.1a", "4.1c", "filter", *FEW_STEPS, *NARROW) == 0
    found = {row["id"]: row for row in json.loads((tmp_path / "reproduce.json").read_text())["rows"]}
    assert found["F16@0"]["run"] == "4.1a" and found["F16@100"]["run"] == "4.1c"
    lines = json.loads((tmp_path / "runs/filter/seed0/results.json").read_text())["filters"]
    assert lines[0]["threshold"] == 0 and lines[0]["boxes"] >= lines[-1]["boxes"]
    assert (tmp_path / "reproduce.html").stat().st_size > 20_000
    monkeypatch.setattr(stages, "run_together", None)
    monkeypatch.setattr(stages, "run_tool", None)
    assert tool(*asked, "--only", "4.1a", "4.1c", "filter", *FEW_STEPS, *NARROW) == 0
    assert "page: " in capsys.readouterr().out
