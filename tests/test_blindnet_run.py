"""blindnet from a configuration to the report, under both engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from blindnet_parts import blind_config
from conftest import ENGINES

from blindnet.references import gap_covered, read_compared
from scenekd import checkpoint
from scenekd.doctor_data import check_data
from scenekd.engines.session import evaluate_once, train_once
from scenekd.errors import UserError
from scenekd.recorder import read_metrics

NODE = "MODEL.BLINDNET"


@pytest.fixture
def config(scenes: Path, tmp_path: Path):
    """``config(folder, *overrides)``: ten steps of the context classifier on a dozen scenes."""

    def build(folder: str, *overrides: object):
        keys = {
            "OUTPUT_DIR": tmp_path / folder,
            "DATASETS.ROOT": scenes,
            f"{NODE}.TRUNK_WIDTH": 4,
            f"{NODE}.CONTROL_WIDTH": 8,
            f"{NODE}.WIDTH": 2,
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.MAX_ITER": 10,
            "SOLVER.WARMUP_ITERS": 2,
            "SOLVER.LOG_PERIOD": 1,
            "SOLVER.CHECKPOINT_PERIOD": 4,
            "TEST.BATCH_SIZE": 8,
            "TEST.BOOTSTRAP": 20,
            "TEST.VISUALIZE": 0,
        }
        return blind_config(*(word for pair in keys.items() for word in pair), *overrides)

    return build


def _train(cfg, engine: str, resume: bool = False):
    return train_once(0, 0, 1, cfg, engine, resume)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_scores_and_reports(config, engine) -> None:
    cfg = config("out", "TEST.VISUALIZE", 2, "TEST.EVAL_PERIOD", 5, "TEST.BEST_METRIC", "hidden_object/top1")
    _train(cfg, engine)
    folder = Path(cfg.OUTPUT_DIR)
    saved = json.loads((folder / "results.json").read_text())
    own = saved["hidden_object"]
    assert len(own["top_n"]) == 10 and own["top_n"][-1] == pytest.approx(100)
    assert own["pictures_left_out"] == 0
    assert own["objects"] == saved["meta"]["test"]["images"] > own["pictures"] == 6
    assert {"class_prior", "oracle"} <= saved.keys() and set(own["groups"]) == {
        "ratio",
        "shape",
        "visible",
        "scene",
    }
    way = saved["oracle"]["top1"] - saved["class_prior"]["top1"]
    assert own["gap_covered"] == pytest.approx(100 * (own["top1"] - saved["class_prior"]["top1"]) / way)
    assert (folder / "top_n.png").read_bytes()[:4] == b"\x89PNG" and (folder / "model_best.pth").is_file()
    page = (folder / "report.html").read_text()
    # Losses, evaluations, the curve, two cases.
    assert page.count("<figure") == 5 and "top-1 accuracy" in page and "kite" in page
    again = config("again", "MODEL.WEIGHTS", folder / "model_final.pth")
    evaluate_once(0, 0, 1, again, engine)
    second = json.loads((Path(again.OUTPUT_DIR) / "results.json").read_text())
    assert {**second, "meta": 0} == {**saved, "meta": 0}


@pytest.mark.parametrize(
    "network",
    [
        ("pixel_id", "MASK_WEIGHT", 1.0, "AUGMENT.GRAY", True),
        ("multi_label", "POOL", "global", "CLASS_WEIGHTS", "pixels"),
        ("context", "TRUNK", "ffc18", "AUGMENT.LETTERBOX", True),
        ("transformer", "TOKEN_WIDTH", 24, "TOKEN_DEPTH", 1),
    ],
    ids=lambda network: network[0],
)
def test_other_networks_run_too(config, network) -> None:
    """From the training pictures, with masks where they are learnt from, to the scores of every case."""
    name, first, value, second, other = network
    keys = (f"{NODE}.NETWORK", name, f"{NODE}.{first}", value, f"{NODE}.{second}", other)
    cfg = config("out", *keys, "SOLVER.MAX_ITER", 2)
    _train(cfg, "mmengine")
    own = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())["hidden_object"]
    assert own["top_n"][-1] == pytest.approx(100) and own["objects"] > own["pictures"] == 6
    lines = read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert len(losses) == 2 and min(losses) > 0


@pytest.mark.detectron2
@pytest.mark.parametrize("network", ["context", "layout_only"])
def test_both_engines_train_alike(config, network) -> None:
    pytest.importorskip("detectron2")
    runs = [config(engine, f"{NODE}.NETWORK", network) for engine in ("mmengine", "detectron2")]
    results = [_train(cfg, Path(cfg.OUTPUT_DIR).name) for cfg in runs]
    losses = [
        [
            row["loss_class"]
            for row in read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
            if "loss_class" in row
        ]
        for cfg in runs
    ]
    assert len(losses[0]) == 10 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    first, second = (checkpoint.read(f"{cfg.OUTPUT_DIR}/model_final.pth")["model"] for cfg in runs)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[k].float(), second[k].float(), atol=1e-4) for k in first)
    assert results[0]["hidden_object"]["top_n"] == results[1]["hidden_object"]["top_n"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_equals_a_whole_one(config, engine, train_until) -> None:
    """With a curriculum, a random fill and random shapes."""
    options = (
        f"{NODE}.MASK.PARTIAL_START",
        0.3,
        f"{NODE}.MASK.PARTIAL_ITERS",
        8,
        f"{NODE}.MASK.FILL",
        "noise",
    )
    options += (f"{NODE}.MASK.SHAPES", ("box", "blob"))
    whole, cut = config("whole", *options), config("cut", *options)
    _train(whole, engine)
    train_until(cut, engine, 6)
    _train(cut, engine, resume=True)
    first, second = (checkpoint.read(f"{cfg.OUTPUT_DIR}/model_final.pth")["model"] for cfg in (whole, cut))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("network", ["unet", "layout_only", "class_prior"])
def test_other_networks_run(config, network) -> None:
    overrides = ("SOLVER.BASE_LR", 0.0) if network == "class_prior" else ()
    found = _train(config("out", f"{NODE}.NETWORK", network, "SOLVER.MAX_ITER", 2, *overrides), "mmengine")
    if network == "class_prior":  # the network is the line itself
        assert found["hidden_object"]["top_n"] == pytest.approx(found["class_prior"]["top_n"])


def test_other_runs_are_drawn_into_the_curve(config, tmp_path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"hidden_object": {"top_n": [10.0] * 10}}))
    cfg = config("out", f"{NODE}.COMPARE", [("mask only", str(file))])
    assert read_compared(cfg, 10) == {"mask only": [10.0] * 10}
    for pairs, message in (
        ([("a", "b", "c")], "no pair"),
        ([("mask only", str(tmp_path / "none.json"))], "no results.json"),
    ):
        with pytest.raises(UserError, match=message):
            read_compared(config("out", f"{NODE}.COMPARE", pairs), 10)
    with pytest.raises(UserError, match="number of classes"):
        read_compared(cfg, 20)


def test_the_gap_between_prior_and_oracle() -> None:
    assert gap_covered(60, 20, 70) == pytest.approx(80)
    assert gap_covered(60, 70, 70) != gap_covered(60, 70, 70)  # NaN: there is no way to go


def test_the_doctor_looks_at_hidden_objects(config) -> None:
    assert [finding for finding in check_data(config("out")) if finding.level != "ok"] == []
