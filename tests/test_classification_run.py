"""Classification from a configuration to the report, under both engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from class_data import write_cifar10
from conftest import ENGINES

from scenekd import checkpoint
from scenekd.config import load_config
from scenekd.doctor_data import check_data
from scenekd.engines.session import evaluate_once, summary_line, train_once
from scenekd.errors import UserError
from scenekd.predictor import open_predictor
from scenekd.recorder import read_metrics

CONFIG = Path(__file__).parents[1] / "projects" / "fcn_kd" / "cifar_cnn5.yaml"


@pytest.fixture
def config(tmp_path: Path):
    """``config(folder, *overrides)``: twelve steps on 60 coloured images."""
    write_cifar10(tmp_path / "data", train=60, test=20)

    def build(folder: str, *overrides: object):
        keys = {
            "OUTPUT_DIR": tmp_path / folder,
            "DATASETS.ROOT": tmp_path / "data",
            "MODEL.DEVICE": "cpu",
            "SOLVER.IMS_PER_BATCH": 20,
            "SOLVER.MAX_ITER": 12,
            "SOLVER.STEPS": (9,),
            "SOLVER.BASE_LR": 3e-3,
            "SOLVER.LOG_PERIOD": 1,
            "SOLVER.CHECKPOINT_PERIOD": 4,
            "TEST.BOOTSTRAP": 50,
            "TEST.VISUALIZE": 2,
            "DATALOADER.NUM_WORKERS": 0,
        }
        return load_config(
            CONFIG, [str(word) for pair in keys.items() for word in pair] + [*map(str, overrides)]
        )

    return build


def _train(cfg, engine, resume=False):
    return train_once(0, 0, 1, cfg, engine, resume)


def _weights(cfg):
    return checkpoint.read(f"{cfg.OUTPUT_DIR}/model_final.pth")["model"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_learns_scores_and_reports(config, engine) -> None:
    cfg = config("out", "TEST.EVAL_PERIOD", 6, "TEST.BEST_METRIC", "classification/accuracy")
    found = _train(cfg, engine)["classification"]
    # Ten colours, ten classes: chance is 10 %.
    assert found["accuracy"] > 30 and found["top5"] > 80 and len(found["accuracy_interval"]) == 2
    assert "accuracy" in summary_line({"classification": found})
    folder = Path(cfg.OUTPUT_DIR)
    results = json.loads((folder / "results.json").read_text())
    assert results["classification"]["ACC-class3"] == found["ACC-class3"]
    assert results["meta"]["images_seen"] == 240
    lines = read_metrics(folder / "metrics.json")
    assert [row["iteration"] for row in lines if "total_loss" not in row] == [6, 12]
    page = (folder / "report.html").read_text()
    assert (
        "balanced accuracy" in page and "class7" in page and page.count("<figure") == 4
    )  # two curves, two images
    assert (folder / "model_best.pth").is_file()
    # The checkpoint knows its classes, and is evaluated and asked without the training's configuration.
    predict = open_predictor(folder / "model_final.pth")
    assert predict.cfg.DATASETS.CLASSES[3] == "class3"
    assert predict(np.zeros((40, 50, 3), np.uint8)).class_scores.shape == (10,)
    again = evaluate_once(0, 0, 1, config("again", "MODEL.WEIGHTS", folder / "model_final.pth"), engine)
    assert again["classification"] == found


@pytest.mark.detectron2
def test_both_engines_train_alike(config) -> None:
    """Batches, dropout, losses and weights."""
    pytest.importorskip("detectron2")
    runs = [config(engine, "TEST.BOOTSTRAP", 0) for engine in ("mmengine", "detectron2")]
    results = [_train(cfg, Path(cfg.OUTPUT_DIR).name) for cfg in runs]
    losses = [
        [row["loss_ce"] for row in read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json") if "loss_ce" in row]
        for cfg in runs
    ]
    assert len(losses[0]) == 12 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    first, second = map(_weights, runs)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[k].float(), second[k].float(), atol=1e-4) for k in first)
    assert results[0]["classification"]["accuracy"] == results[1]["classification"]["accuracy"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_equals_a_whole_one(config, engine, train_until) -> None:
    whole, cut = config("whole", "TEST.VISUALIZE", 0), config("cut", "TEST.VISUALIZE", 0)
    _train(whole, engine)
    train_until(cut, engine, 9)
    _train(cut, engine, resume=True)
    first, second = _weights(whole), _weights(cut)
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_frameworks_leave_classification_to_our_evaluator(config, engine) -> None:
    cfg = config("out", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()", "TEST.EVALUATOR", "framework")
    assert _train(cfg, engine)["classification"].keys() >= {"accuracy", "ECE"}


def test_a_policy_with_a_teacher_is_refused(config) -> None:
    cfg = config("out", "DISTILL.CLASSIFICATION.POLICY", "combined", "TEACHER.CLASSIFICATION.TYPE", "scenekd")
    with pytest.raises(UserError, match="DISTILL.CLASSIFICATION.POLICY"):
        _train(cfg, "mmengine")


def test_the_doctor_asks_for_the_networks_task(config) -> None:
    findings = check_data(config("out"))
    assert [finding for finding in findings if finding.level != "ok"] == []
    findings = check_data(config("out", "DATASETS.KEEP_CLASS_LABELS", 0.0))
    assert any("teaches classification" in finding.what for finding in findings)
