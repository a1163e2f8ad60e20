"""The two engines against each other, and each against itself after an interruption (DESIGN rule 3)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ENGINES

from scenekd import checkpoint
from scenekd.engines.select import choose_engine, launch
from scenekd.engines.session import evaluate_once, train_once
from scenekd.errors import UserError
from scenekd.recorder import read_metrics

LOSSES = ("loss_seg", "loss_cls", "loss_box")


def _train(cfg, engine, resume=False):
    return train_once(0, 0, 1, cfg, engine, resume)


def _weights(cfg, name=checkpoint.MODEL_FINAL):
    return checkpoint.read(f"{cfg.OUTPUT_DIR}/{name}")["model"]


def _steps(cfg):
    return [line for line in read_metrics(f"{cfg.OUTPUT_DIR}/metrics.json") if "total_loss" in line]


@pytest.mark.detectron2
@pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed")
def test_engines_agree(tiny_config):
    """Same batches, so the same losses to 1e-5 and weights to 1e-4 after ten steps; the same checkpoint keys.

    Warm-up of 5, weight decay, clipping and a schedule step at 8 lie inside the ten.
    """
    configs = {engine: tiny_config(engine) for engine in ENGINES}
    results = {engine: _train(cfg, engine) for engine, cfg in configs.items()}
    first, second = (_steps(configs[engine]) for engine in ENGINES)
    assert len(first) == len(second) == 10
    for a, b in zip(first, second):
        for name in (*LOSSES, "lr"):
            assert a[name] == pytest.approx(b[name], abs=1e-5)
    weights = [_weights(configs[engine]) for engine in ENGINES]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-4, rtol=0)
    for task in ("sem_seg", "bbox"):
        for name, value in results["mmengine"][task].items():
            if isinstance(value, float):
                assert value == pytest.approx(results["detectron2"][task][name], abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_resume_is_bit_equal(engine, tiny_config, train_until):
    """A run that is cut off after step 6 and resumed from step 4, with workers, ends as the uninterrupted one."""
    whole = tiny_config("whole", "DATASETS.TEST", "()")
    _train(whole, engine)
    cut = tiny_config("cut", "DATASETS.TEST", "()")
    train_until(cut, engine, 6)
    assert checkpoint.read(f"{cut.OUTPUT_DIR}/{checkpoint.LAST}")["iteration"] == 4
    assert choose_engine("auto", cut.OUTPUT_DIR, resume=True) == engine
    again = tiny_config("cut", "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", 2)
    _train(again, engine, resume=True)
    for name, value in _weights(whole).items():
        assert torch.equal(value, _weights(again)[name]), name
    strip = [{k: v for k, v in line.items() if "time" not in k} for line in _steps(whole)]
    assert strip == [{k: v for k, v in line.items() if "time" not in k} for line in _steps(again)]


@pytest.mark.parametrize("engine", ENGINES)
def test_finished_run_resumes_to_the_same_results(engine, tiny_config):
    """Resuming a finished run takes no step and gives its results again."""
    cfg = tiny_config("done", "SOLVER.MAX_ITER", 2)
    first = _train(cfg, engine)
    before = _weights(cfg)
    again = _train(cfg, engine, resume=True)
    assert again["sem_seg"]["mIoU"] == first["sem_seg"]["mIoU"]
    assert all(torch.equal(value, _weights(cfg)[name]) for name, value in before.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_accumulated_parts_make_one_step(engine, tiny_config):
    """Two parts of one batch: one optimizer step an iteration, its gradient the mean of the parts'."""
    cfg = tiny_config("parts", "SOLVER.ACCUMULATE_STEPS", 2, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 3)
    _train(cfg, engine)
    state = checkpoint.read(f"{cfg.OUTPUT_DIR}/{checkpoint.LAST}")
    assert state["iteration"] == 3
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {3}


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes(engine, tiny_config):
    """Two CPU processes over gloo train together; each image is evaluated once, as one process evaluates it."""
    cfg = tiny_config("two", "SOLVER.MAX_ITER", 4)
    launch(train_once, (cfg, engine), num_gpus=2)
    lines = _steps(cfg)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    both = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    alone = evaluate_once(
        0, 0, 1, tiny_config("one", "MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth"), engine
    )
    assert both["sem_seg"]["mIoU"] == pytest.approx(alone["sem_seg"]["mIoU"], abs=1e-4)
    assert both["bbox"]["mAP"] == pytest.approx(alone["bbox"]["mAP"], abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_framework_evaluator(engine, tiny_config):
    """The frameworks' own numbers equal ours: MMSegmentation's mIoU to its two printed digits, detectron2's IoU of
    each class (its mean leaves out classes that the ground truth lacks; ours and MMSegmentation's do not)."""
    cfg = tiny_config("own", "SOLVER.MAX_ITER", 2)
    ours = _train(cfg, engine)
    weights = ("MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth")
    theirs = evaluate_once(0, 0, 1, tiny_config("theirs", *weights, "TEST.EVALUATOR", "framework"), engine)
    assert "mAP" in theirs["bbox"]
    if engine == "mmengine":
        assert theirs["sem_seg"]["mIoU"] == pytest.approx(ours["sem_seg"]["mIoU"], abs=0.01)
        return
    names = [n for n, v in theirs["sem_seg"].items() if n.startswith("IoU-") and v == v]
    assert len(names) >= 4
    for name in names:
        assert theirs["sem_seg"][name] == pytest.approx(ours["sem_seg"][name], abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_loss_stops_with_one_line(engine, tiny_config):
    """A learning rate that blows up ends in a UserError that names loss, iteration and images, and what to do."""
    cfg = tiny_config(
        "nan", "SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_ITERS", 0, "SOLVER.CLIP_GRADIENTS.ENABLED", False
    )
    with pytest.raises(UserError, match=r"^loss_\w+ became \S+ at iteration \d+ in .*train_0.* lower SOLVER"):
        _train(cfg, engine)


def test_engine_choice():
    """Unknown and missing engines are told apart."""
    with pytest.raises(UserError, match="unknown engine 'caffe'"):
        choose_engine("caffe")
    assert choose_engine("auto") == "mmengine"
    if "detectron2" not in ENGINES:
        with pytest.raises(UserError, match="detectron2 is not installed"):
            choose_engine("detectron2")


def test_importing_the_library_imports_no_framework():
    """``scenekd`` without its engines needs neither framework."""
    code = (
        "import sys, scenekd.experiment, kd_mtl; "
        "bad = {'mmengine', 'mmseg', 'mmcv', 'detectron2'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
