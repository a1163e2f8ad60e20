"""results.json and the comparison with expected results."""

from __future__ import annotations

import json
import math
import os
import subprocess

import numpy as np
import pytest

from scenekd import results
from scenekd.config import get_cfg
from scenekd.errors import UserError


def test_flatten():
    """Numbers only, under task/name; lists, texts, tables and flags are left out."""
    nested = {
        "sem_seg": {"mIoU": 61.5, "images": 3, "IoU": {"cat": 1.0}, "interval": [1, 2], "note": "x"},
        "bbox": {"AP50": float("nan"), "difficult": True, "mAP": np.float64(2.5)},
    }
    flat = results.flatten(nested)
    assert flat.keys() == {"sem_seg/mIoU", "sem_seg/images", "bbox/AP50", "bbox/mAP"}
    assert flat["sem_seg/mIoU"] == 61.5
    assert flat["bbox/mAP"] == 2.5
    assert math.isnan(flat["bbox/AP50"])


def test_write_results(tmp_path):
    """Strict JSON: NaN and infinities become null, numpy numbers plain ones; the folder is made."""
    path = tmp_path / "a" / "b" / "results.json"
    numbers = {
        "sem_seg": {
            "mIoU": np.float32(0.5),
            "IoU": {"cat": math.nan, 3: np.int64(7)},
            "interval": (1.0, math.inf),
        }
    }
    results.write_results(path, numbers, {"seed": 1, "note": None})

    def refuse(text):
        raise AssertionError(text)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == {
        "sem_seg": {"mIoU": 0.5, "IoU": {"cat": None, "3": 7}, "interval": [1.0, None]},
        "meta": {"seed": 1, "note": None},
    }
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_failed_writing_keeps_the_old_file(tmp_path, monkeypatch):
    """What cannot be written leaves the earlier results whole, and nothing beside them."""
    path = tmp_path / "results.json"
    results.write_results(path, {"bbox": {"AP50": 1.0}}, {})
    before = path.read_text()
    with pytest.raises(TypeError):
        results.write_results(path, {"bbox": {"AP50": object()}}, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            results.write_results(path, {"bbox": {"AP50": 2.0}}, {})
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_describe_run():
    """Where the numbers come from: seed, engine, versions, and what the caller adds."""
    import torch

    cfg = get_cfg()
    cfg.SEED = 11
    meta = results.describe_run(cfg, "mmengine", images_seen=40)
    assert (meta["seed"], meta["engine"], meta["system"], meta["images_seen"]) == (
        11,
        "mmengine",
        "kd_mtl",
        40,
    )
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["evaluator"] == "native"
    json.dumps(meta)


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")])
def test_without_git(monkeypatch, error):
    """An installed package, or a machine without git, has no commit to name."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(results.subprocess, "run", fail)
    assert results.describe_run(get_cfg(), "none")["git_commit"] is None


def _expecting(*rows):
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [list(row) for row in rows]
    return cfg


def test_expected_results_inside_their_tolerance():
    """|actual − value| ≤ tolerance, the bound included; nothing expected, nothing checked."""
    numbers = {"bbox": {"AP50": 70.0}, "sem_seg": {"mIoU": 50.0}}
    results.check_expected(_expecting(("bbox", "AP50", 71.5, 1.5), ("sem_seg", "mIoU", 50.0, 0.0)), numbers)
    results.check_expected(_expecting(), {})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("bbox", "AP50", 71.6, 1.5), r"bbox/AP50 is 70.0, expected 71.6 ± 1.5"),
        (("bbox", "AP50", 68.4, 1.5), r"bbox/AP50 is 70.0"),
        (("bbox", "AP75", 1.0, 1.5), r"bbox/AP75 is None"),
        (("keypoints", "AP", 1.0, 1.5), r"keypoints/AP is None"),
        (("bbox", "AP-cow", 0.0, 100.0), r"bbox/AP-cow is nan"),
    ],
)
def test_expected_results_missed(row, words):
    """Too low, too high, missing, or not a number."""
    with pytest.raises(UserError, match=f"^TEST.EXPECTED_RESULTS: {words}"):
        results.check_expected(_expecting(row), {"bbox": {"AP50": 70.0, "AP-cow": math.nan}})


@pytest.mark.parametrize("rows", [[["bbox", "AP50", 70]], ["bbox"], [["bbox", "AP50", "high", 1]], [5]])
def test_malformed_expectations(rows):
    """A row that is not [task, metric, value, tolerance] is the user's mistake."""
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = rows
    with pytest.raises(UserError, match="TEST.EXPECTED_RESULTS"):
        results.check_expected(cfg, {"bbox": {"AP50": 70.0}})
