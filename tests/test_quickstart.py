"""The quickstart end to end, with a few steps a network."""

from __future__ import annotations

import json
import sys

import pytest

from kd_mtl import quickstart
from scenekd import checkpoint
from scenekd.errors import UserError

FEW_STEPS = ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "TEST.BOOTSTRAP", "0", "TEST.VISUALIZE", "1"]
NARROW = ["MODEL.BLITZNET.TRUNK_WIDTH", "8", "INPUT.SIZE", "64", "DATALOADER.NUM_WORKERS", "0"]


def _main(monkeypatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart", *args])
    quickstart.main()


@pytest.mark.slow
def test_stages_from_nothing_and_again(tmp_path, monkeypatch, capsys):
    """Scenes, teachers, caches, students, scores, page; the second call finds all of it done."""
    monkeypatch.setattr(quickstart, "SPLITS", {"teacher": 8, "train": 10, "val": 4})
    monkeypatch.setattr(quickstart, "TEACHER_STEPS", 2)
    output = tmp_path / "run"
    args = ("--output", str(output), "--rows", "a b", "--engine", "mmengine", *FEW_STEPS, *NARROW)
    _main(monkeypatch, *args)
    first = json.loads((output / "quickstart.json").read_text())
    assert [row["row"] for row in first["rows"]] == ["-", "a", "b"]
    assert (output / "report.html").stat().st_size > 10_000
    a, b = (checkpoint.read(output / f"student_{row}" / "model_final.pth")["model"] for row in "ab")
    assert any(not a[name].equal(b[name]) for name in a), "the teacher made no difference"
    capsys.readouterr()
    _main(monkeypatch, *args)
    again = json.loads((output / "quickstart.json").read_text())
    assert [row["mIoU"] for row in again["rows"]] == [row["mIoU"] for row in first["rows"]]
    assert "mIoU" in capsys.readouterr().out
    (output / "student_b" / "model_final.pth").unlink()
    (output / "student_b" / "last.pth").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="student_b: ended with exit code 2: .*last.pth"):
        _main(monkeypatch, *args)


def test_unknown_row(monkeypatch, tmp_path):
    """A row that does not exist is told before anything is made."""
    with pytest.raises(UserError, match="unknown row 'z'; choose of a, b, c, labelled, oracle"):
        _main(monkeypatch, "--rows", "a z", "--output", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_rows_differ_only_in_what_they_learn_from():
    """No row may change steps, seeds, data order or network: the comparison would not be paired."""
    for _, overrides in quickstart.ROWS.values():
        assert all(
            key.startswith(("DISTILL.", "DATASETS.KEEP_", "DATASETS.REQUIRE_LABELS"))
            for key in overrides[::2]
        )
