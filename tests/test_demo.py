"""tools/demo.py: what it writes for good images, and what it says about bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tool_runner import ToolRunner, load_tool

from scenekd import checkpoint
from scenekd.data.catalog import load_dataset
from scenekd.data.images import read_image, voc_palette
from scenekd.errors import UserError
from scenekd.models import build_model
from scenekd.predictor import open_predictor


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ToolRunner:
    """tools/demo.py."""
    return ToolRunner("demo", monkeypatch)


@pytest.fixture
def weights(tiny_config: Callable[..., Any], tmp_path: Path) -> Path:
    """An untrained network with its configuration; each of its boxes is kept."""
    cfg = tiny_config("run", "MODEL.BLITZNET.SCORE_THRESHOLD", "0.0", "MODEL.BLITZNET.TOPK", "7")
    path = tmp_path / "model.pth"
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), path)
    return path


@pytest.mark.parametrize("score", ["7", "-0.1", "nan"])
def test_a_score_out_of_range(score: str, run: ToolRunner, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--weights", "x.pth", "--input", "x.jpg", f"--min-score={score}") == 2
    assert "--min-score: " in capsys.readouterr().err


def test_writes_panels_boxes_and_masks_without_a_config_file(
    run: ToolRunner, weights: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((scenes / "JPEGImages").glob("val_*.jpg"))[:2]
    out = tmp_path / "out"
    assert run("--weights", weights, "--input", *files, "--output", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == [str(file) for file in files]
    assert lines[2] == f"2 of 2 images done; see {out / 'panels'}"

    predict = open_predictor(weights)
    said = predict(read_image(str(files[0])))
    assert said.boxes is not None and said.sem_seg is not None and said.labels is not None
    with Image.open(out / "segmentation" / f"{files[0].stem}.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == voc_palette()[:3].ravel().tolist()  # type: ignore[index]
        np.testing.assert_array_equal(np.asarray(mask), said.sem_seg.argmax(0).numpy())
    entries = [e for e in json.loads((out / "detections.json").read_text()) if e["image_id"] == files[0].stem]
    x1, y1, x2, y2 = said.boxes[0].tolist()
    assert len(entries) == 7
    # COCO's results format: [x, y, width, height], categories from 1
    assert entries[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-4)
    assert entries[0]["category_id"] == int(said.labels[0]) + 1
    with Image.open(out / "panels" / f"{files[0].stem}.png") as panel:
        assert panel.width > 2 * 360


def test_its_output_can_be_scored(
    run: ToolRunner, weights: Path, scenes: Path, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    from scenekd.evaluation.evaluator import Evaluator
    from scenekd.evaluation.predictions import score_predictions

    cfg = tiny_config("run")
    dataset = load_dataset("voc_seg_val", cfg)
    out = tmp_path / "out"
    assert run("--weights", weights, "--input", *(r.file_name for r in dataset.records), "--output", out) == 0
    evaluator, predict = Evaluator.from_config(dataset, cfg), open_predictor(weights)
    for record in dataset.records:
        evaluator.add(record.image_id, predict(read_image(record)))
    scored, expected = score_predictions(out, dataset, cfg), evaluator.summarize()
    assert scored["sem_seg"]["mIoU"] == pytest.approx(expected["sem_seg"]["mIoU"])
    assert scored["bbox"]["AP50"] == pytest.approx(expected["bbox"]["AP50"], abs=1e-6)


def test_masks_of_objects_are_written_and_scored(
    run: ToolRunner, scenes: Path, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    from scenekd.evaluation.evaluator import Evaluator
    from scenekd.evaluation.predictions import score_predictions

    tasks = "('detection','segmentation','instance_segmentation')"
    cfg = tiny_config("run", "MODEL.BLITZNET.SCORE_THRESHOLD", "0.0", "MODEL.BLITZNET.TASKS", tasks)
    path, out = tmp_path / "three.pth", tmp_path / "out"
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), path)
    dataset = load_dataset("voc_seg_val", cfg)
    assert run("--weights", path, "--input", *(r.file_name for r in dataset.records), "--output", out) == 0
    tasks_scored = ("sem_seg", "bbox", "segm")
    evaluator, predict = Evaluator.from_config(dataset, cfg, tasks_scored), open_predictor(path)
    for record in dataset.records:
        evaluator.add(record.image_id, predict(read_image(record)))
    scored, expected = score_predictions(out, dataset, cfg), evaluator.summarize()
    assert set(scored) == set(tasks_scored)
    assert scored["segm"]["AP"] == pytest.approx(expected["segm"]["AP"], abs=1e-9)
    with Image.open(out / "panels" / f"{dataset.records[0].image_id}.png") as panel:
        assert panel.width > 2 * 360


def test_bad_files_are_told_and_the_others_done(
    run: ToolRunner, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_text("no image")
    Image.new("L", (50, 30), 120).save(folder / "b.png")
    (folder / "notes.txt").write_text("left alone")
    out = tmp_path / "out"
    assert run("--weights", weights, "--input", folder, tmp_path / "gone.jpg", "--output", out) == 2
    said = capsys.readouterr()
    errors = said.err.splitlines()
    assert errors[0].startswith(f"error: {folder / 'a.jpg'}: ") and "not an image file" in errors[0]
    assert errors[1] == f"error: {tmp_path / 'gone.jpg'}: no such file"
    assert errors[2] == "error: --input: 2 of 3 files could not be read"
    assert sorted(p.name for p in (out / "panels").iterdir()) == ["b.png"]


def test_nothing_to_show(
    run: ToolRunner, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run("--weights", weights, "--input", tmp_path / "empty") == 2
    assert "holds no image" in capsys.readouterr().err
    assert run("--weights", tmp_path / "none.pth", "--input", "x.jpg") == 2
    assert "no such checkpoint" in capsys.readouterr().err
    assert run("--weights", weights, "--input", "x.jpg", "--output", tmp_path / "out") == 2
    assert "none of the 1 files is an image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_configuration_needs_one(
    run: ToolRunner,
    weights: Path,
    tiny_config: Callable[..., Any],
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare, image = tmp_path / "bare.pth", next((scenes / "JPEGImages").iterdir())
    checkpoint.atomic_save({"model": checkpoint.read(weights)["model"]}, bare)
    assert run("--weights", bare, "--input", image) == 2
    assert "give one with --config-file" in capsys.readouterr().err
    file = tmp_path / "net.yaml"
    file.write_text(tiny_config("run").dump())
    out = tmp_path / "out"
    arguments = ("--config-file", file, "--weights", bare, "--input", image, "--output", out)
    assert run(*arguments, "--opts", "MODEL.BLITZNET.TASKS", "('segmentation',)") == 0
    assert not (out / "detections.json").exists(), "a network without boxes writes none"
    assert (out / "segmentation" / f"{image.stem}.png").is_file()


def test_equal_names_from_two_folders_are_kept_apart() -> None:
    files = [Path("a/x.jpg"), Path("b/x.jpg"), Path("c/x.png"), Path("c/y.png")]
    assert [name for name, _ in load_tool("demo").named(files)] == ["x", "x_2", "x_3", "y"]


def test_weights_of_another_network_are_refused(weights: Path, tiny_config: Callable[..., Any]) -> None:
    state = checkpoint.read(weights)
    checkpoint.atomic_save({"model": {"other": state["model"]["trunk.conv1.weight"]}}, weights)
    with pytest.raises(UserError, match="weights of another network"):
        open_predictor(weights, tiny_config("run"))
