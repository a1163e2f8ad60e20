"""Runs of envise from a configuration to the report, under both engines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENGINES
from envise_parts import NAMES, colour_dataset
from envise_runs import StreamFolder
from PIL import Image
from sklearn.metrics import roc_auc_score

from envise import benchmark_trained, run, session
from envise.answer_log import AnswerLog
from envise.phases import ANSWER, CALIBRATE, LEARN
from envise.scores import build_score, online_scores
from envise.stream import build_stream
from envise.students import build_student
from scenekd import checkpoint
from scenekd.benchmark.options import Options
from scenekd.config import load_config
from scenekd.engines.select import choose_engine
from scenekd.engines.session import train_once
from scenekd.errors import UserError
from scenekd.models import build_model
from scenekd.nets.packed_native import library
from scenekd.recorder import read_metrics

pytestmark = pytest.mark.usefixtures("plain_dumps")


@pytest.fixture
def config(tmp_path, monkeypatch) -> StreamFolder:
    return StreamFolder(tmp_path, monkeypatch)


def _train(cfg, engine="mmengine", resume=False):
    return train_once(0, 0, 1, cfg, engine, resume)


def _weights(cfg):
    return checkpoint.read(Path(cfg.OUTPUT_DIR) / checkpoint.MODEL_FINAL)["model"]


def _lines(cfg):
    lines = read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_writes_what_every_run_does(config, engine):
    """Colours are learnt, then the student answers; the numbers follow from the log of answers."""
    cfg = config("out")
    results = _train(cfg, engine)["stream"]
    folder = Path(cfg.OUTPUT_DIR)
    written = json.loads((folder / "results.json").read_text())
    assert written["meta"]["engine"] == engine
    assert written["stream"]["agreement"] == results["agreement"]
    table = AnswerLog(folder).read()
    assert table.position.tolist() == list(range(240))
    first = int(np.flatnonzero(table.phase == CALIBRATE)[0])
    assert results["samples_to_convergence"] == first
    answered = table.of(ANSWER)
    assert results["samples_answering"] == len(answered) == 240 - first - 40
    assert results["share_to_teacher"] == pytest.approx(100 * answered.by_teacher.mean())
    # Not of samples that looked unfamiliar, on which the student is not believed
    expected = table.asked & ~((table.phase == ANSWER) & table.by_teacher)
    assert results["agreement"] == pytest.approx(100 * (table.student == table.teacher)[expected].mean())
    # GiE + N_TN / N + F_B / F_T = 1, in percent
    assert results["gie"] + results["share_asked"] + results["cost_ratio"] == pytest.approx(100, abs=1e-9)
    # The teacher: 4 · 48 · 3 products of the convolution (2 × 2 cells, 3 · 4 · 4 inputs, 3 outputs) and 15 of the
    # linear layer, two operations each
    assert results["teacher_flops"] == 2 * (4 * 48 * 3 + 15)
    assert results["student_bops"] == 0
    # The nearest colour is the true one, also where it is asked for the report alone.
    assert results["teacher_accuracy"] == 100
    assert results["accuracy"] >= results["student_accuracy"]
    saved = load_config(folder / "config.yaml")
    assert saved.DATASETS.CLASSES == NAMES
    assert checkpoint.config_of(folder / checkpoint.MODEL_FINAL) == saved.dump()
    assert any(folder.rglob("events.out.tfevents*"))
    page = (folder / "report.html").read_text()
    for caption in (
        "agreement of student",
        "goes to the teacher",
        "risk and coverage",
        "inliers and outliers",
    ):
        assert caption in page
    # Every fifth of 24 batches, and the last
    assert [line["iteration"] for line in _lines(cfg)] == [5, 10, 15, 20, 24]
    assert {"loss_ce", "loss_attention", "agreement", "share_to_teacher"} <= _lines(cfg)[0].keys()
    assert "calibrate (agreement" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_gate_is_scored_by_the_labels(config, engine):
    """AUROC of the logged scores against scikit-learn's; the truth never reached the student."""
    cfg = config("out")
    results = _train(cfg, engine)["stream"]
    answered = AnswerLog(cfg.OUTPUT_DIR).read().of(ANSWER)
    truth = session.OnlineRun.from_config(cfg).stream.truth
    strange = truth.outlier[answered.position]
    assert results["auroc"] == pytest.approx(100 * roc_auc_score(strange, answered.score))
    right = answered.answer == truth.labels[answered.position]
    assert results["accuracy"] == pytest.approx(100 * right.mean())
    assert results["silhouette"] > 0


@pytest.mark.detectron2
@pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed")
def test_both_engines_learn_alike(config):
    """The same batches, losses to 1e-5, weights to 1e-4, and the same answers."""
    runs = [config(engine) for engine in ENGINES]
    for cfg, engine in zip(runs, ENGINES):
        _train(cfg, engine)
    first, second = map(_lines, runs)
    assert [line["phase"] for line in first] == [line["phase"] for line in second]
    for one, other in zip(first, second):
        for name, value in one.items():
            if isinstance(value, float) and name != "cpu_time":  # what it cost is not what it learnt
                assert value == pytest.approx(other[name], abs=1e-5), name
    weights, others = map(_weights, runs)
    assert weights.keys() == others.keys()
    assert all(torch.allclose(weights[name], others[name], atol=1e-4) for name in weights)
    logs = [(Path(cfg.OUTPUT_DIR) / "answers.csv").read_text() for cfg in runs]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cut", [4, 12, 19])
def test_a_killed_run_goes_on(config, engine, cut, monkeypatch):
    """Killed after its answers are written and before its state is: the batch is done again, nothing else; the run ends
    as one that was never cut, with its engine found again. In each phase."""
    whole, killed = config("whole"), config("killed")
    _train(whole, engine)
    save = session.OnlineRun.save

    def kill(self):
        if self.batches == cut:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patched:
        patched.setattr(session.OnlineRun, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            _train(killed, engine)
    assert choose_engine("auto", killed.OUTPUT_DIR, resume=True) == engine
    started = []
    begin = session.OnlineSession.begin
    monkeypatch.setattr(
        session.OnlineSession, "begin", lambda self: (started.append(self.start), begin(self))
    )
    resumed = _train(killed, engine, resume=True)["stream"]
    assert started == [cut - 1]
    weights, others = _weights(whole), _weights(killed)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    logs = [(Path(cfg.OUTPUT_DIR) / "answers.csv").read_text() for cfg in (whole, killed)]
    assert logs[0] == logs[1]
    before = json.loads((Path(whole.OUTPUT_DIR) / "results.json").read_text())["stream"]
    assert resumed["gie"] == before["gie"]
    assert resumed["training_operations"] == before["training_operations"]


def test_a_finished_run_gives_its_results_again(config):
    cfg = config("out")
    _train(cfg)
    path = Path(cfg.OUTPUT_DIR) / "results.json"
    first = json.loads(path.read_text())["stream"]
    _train(cfg, resume=True)
    assert json.loads(path.read_text())["stream"] == first


def test_a_student_that_never_converges(config):
    """The teacher answers all; what is not known is null, and the log says so."""
    cfg = config(
        "out",
        STREAM={"SAMPLES": 61},
        ONLINE={"AGREEMENT": 1.0, "BATCH_SIZE": 20, "ATTENTION": {"WEIGHT": 0.0}},
    )
    results = _train(cfg)["stream"]
    assert math.isnan(results["samples_to_convergence"]) and math.isnan(results["gie"])
    assert results["share_to_teacher_whole"] == 100
    written = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())["stream"]
    assert written["gie"] is None
    assert "never reached ONLINE.AGREEMENT" in (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    assert "loss_attention" not in _lines(cfg)[0]


def test_a_last_batch_of_one_teaches_nothing(config):
    """Batch statistics of one sample and, without replay, of 1 × 1 maps are refused by torch: the sample is answered,
    not learnt. Eleven samples of ten: one step."""
    online = {"REPLAY_SIZE": 0, "REPLAY_BATCH": 0}
    cfg = config("out", STREAM={"SAMPLES": 11, "SHIFTS": ()}, ONLINE=online)
    results = _train(cfg)["stream"]
    assert results["samples"] == 11
    assert results["steps"] == 1
    with pytest.raises(UserError, match="ONLINE.BATCH_SIZE: 1 without replayed samples"):
        _train(config("one", ONLINE={"BATCH_SIZE": 1, **online}))


def test_the_checkpoint_is_a_network_of_the_library(config):
    """``tools/test.py`` loads it: the same logits as the student's, as predictions of classes."""
    cfg = config("out")
    _train(cfg)
    saved = load_config(Path(cfg.OUTPUT_DIR) / "config.yaml")
    net = build_model(saved, pretrained=False)
    checkpoint.load_weights(net, Path(cfg.OUTPUT_DIR) / checkpoint.MODEL_FINAL, strict=True)
    student = build_student(saved, len(NAMES)).eval()
    student.load_state_dict(net.state_dict())
    images = torch.rand(3, 3, 8, 8) * 255
    found = net.eval()(images)
    assert net.tasks == ("classification",)
    assert torch.equal(torch.stack([one.class_scores for one in found]), student(images))
    # A run may begin with it.
    warm = config("warm", MODEL={"DEVICE": "cpu", "WEIGHTS": str(Path(cfg.OUTPUT_DIR) / "model_final.pth")})
    weights = session.OnlineRun.from_config(warm).distiller.student.state_dict()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in weights.items())


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        (
            {"ONLINE": {"SCORE": "leave_out_ensemble"}},
            "learns from outliers, which a stream does not point out",
        ),
        ({"ONLINE": {"SCORE": "nope"}}, "ONLINE.SCORE: outlier score 'nope' is not known"),
        ({"ONLINE": {"SCORE": "knn", "SCORE_OPTIONS": (("k", 0),)}}, "ONLINE.SCORE: k must be at least 1"),
        ({"ONLINE": {"SCORE_OPTIONS": (("k", 3),)}}, "ONLINE.SCORE: .*max_softmax has no option 'k'"),
        ({"ONLINE": {"SCORE_OPTIONS": ("k",)}}, "ONLINE.SCORE_OPTIONS: 'k' is no pair"),
        (
            {"ONLINE": {"ATTENTION": {"MARGIN": -1.0}}},
            "ONLINE.ATTENTION: margin and weight must not be negative",
        ),
        ({"ONLINE": {"ATTENTION": {"KIND": "nope"}}}, "ONLINE.ATTENTION: kind must be one of"),
        (
            {"MODEL": {"DEVICE": "cpu", "ENVISE": {"NETWORK": "vgg_small", "SCALING": "nope"}}},
            "MODEL.ENVISE: .*scaling",
        ),
        ({"SOLVER": {"AMP": {"ENABLED": True}}}, "SOLVER.AMP.ENABLED: a run over a stream has no such thing"),
        ({"STREAM": {"PAIR": ""}}, "STREAM.PAIR: PAIRS and PAIR belong together"),
        (
            {"STREAM": {"FREQUENCIES": "given", "GIVEN": (("red", 1.0),), "SHIFTS": ()}},
            "only the class red is to come; there is nothing to learn",
        ),
    ],
)
def test_what_a_run_refuses(config, nodes, match):
    with pytest.raises(UserError, match=match) as caught:
        _train(config("out", **nodes))
    assert "\n" not in str(caught.value)


def test_an_empty_stream(config, tmp_path, monkeypatch):
    """A folder of images none of which can be read."""
    monkeypatch.setattr(run, "build_stream", build_stream)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    stream = {"SOURCE": str(tmp_path / "images"), "PAIRS": "", "PAIR": "", "SHIFTS": ()}
    with pytest.raises(UserError, match="holds no image that can be read"):
        _train(config("out", STREAM=stream))
    with pytest.raises(UserError, match="--num-gpus: a stream is looked at by one process"):
        train_once(0, 0, 2, config("two"), "mmengine")


def test_pictures_of_images_without_labels(config, tmp_path, monkeypatch):
    """A folder of the same colours: everything but what needs labels; risk is held against the teacher."""
    monkeypatch.setattr(run, "build_stream", build_stream)
    (tmp_path / "images").mkdir()
    for number, record in enumerate(colour_dataset().records):
        Image.fromarray(record.pixels).save(tmp_path / "images" / f"{number:03d}.png")
    stream = {"SOURCE": str(tmp_path / "images"), "PAIRS": "", "PAIR": "", "SHIFTS": (), "SAMPLES": 0}
    results = _train(config("out", STREAM=stream))["stream"]
    assert results["samples"] == 200
    assert not {"accuracy", "auroc", "phases"} & results.keys()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "risk and coverage" in page and "the score of inliers" not in page


def test_scores_by_name(config):
    """Each that sees no outliers is built for a student."""
    student = build_student(config("out"), len(NAMES))
    assert {"energy", "odin", "mahalanobis", "vim", "knn", "attention"} < set(online_scores())
    for name in online_scores():
        assert build_score(config("out", ONLINE={"SCORE": name}), student).name == name


def test_answers_that_were_cut(tmp_path):
    """A line without an end is left out; what lies before the position is kept."""
    log = AnswerLog(tmp_path)
    log.begin(0)
    with open(log.path, "a") as file:
        file.write(f"0,{LEARN},1,1,1,0,1,nan\n1,{ANSWER},2,0,0,2,-1,0.25\n2,{ANSWER},2,0,0,2")
    table = log.read()
    assert table.position.tolist() == [0, 1]
    assert table.by_teacher.tolist() == [True, False]
    assert table.score[1] == 0.25 and math.isnan(table.score[0])
    log.begin(1)
    assert log.read().position.tolist() == [0]
    log.begin(0)
    assert len(log.read()) == 0


def test_a_finished_run_is_timed_as_it_was_trained(config, tmp_path):
    """The last 40 samples that the student answered, with the run's own gate; the files of the run stay as they are."""
    if library() is None:
        pytest.skip("the packed kernels need a C++ compiler and ninja")
    cfg = config(
        "out", MODEL={"DEVICE": "cpu", "ENVISE": {"NETWORK": "bireal_resnet20"}}, ONLINE={"AGREEMENT": 0.5}
    )
    results = _train(cfg)["stream"]
    folder = Path(cfg.OUTPUT_DIR)
    before = {path: path.read_bytes() for path in folder.glob("*.[pcj]*")}
    rows = list(benchmark_trained.suite(Options(tmp_path, "tiny", repeat=1, run=folder)))
    sizes = [cfg.ONLINE.BATCH_SIZE, 32]
    assert [f"batch {size}:" in row.name for row, size in zip(rows, np.repeat(sizes, 2))] == [True] * 4
    table = AnswerLog(folder).read()
    assert min(len(table.of(ANSWER)), results["samples_answering"]) >= 40
    handed = table.where(table.position >= 200).by_teacher.mean()
    for row in rows:
        assert f"{handed:.1%} handed on" in row.detail and "the teacher's 100.0%" in row.detail
    assert before == {path: path.read_bytes() for path in folder.glob("*.[pcj]*")}
    never = config("never", ONLINE={"WINDOWS": 100})
    _train(never)
    with pytest.raises(UserError, match="--run: .* no finished run whose student answers"):
        list(benchmark_trained.suite(Options(tmp_path, "tiny", run=Path(never.OUTPUT_DIR))))
