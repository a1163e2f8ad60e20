"""What a run writes as it goes: metrics.json, resume state, the best network, and the stop at a bad loss."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from scenekd import checkpoint
from scenekd.config import get_cfg
from scenekd.errors import UserError
from scenekd.experiment import Experiment
from scenekd.recorder import Recorder, read_metrics


@pytest.fixture
def start(tmp_path):
    """``start(resume=…, rank=…, KEY=value …)``: a started recorder of a run with a network of one number."""

    def build(resume=False, rank=0, best_metric="", **solver):
        cfg = get_cfg()
        cfg.OUTPUT_DIR = str(tmp_path)
        cfg.MODEL.DEVICE = "cpu"
        cfg.TEST.BEST_METRIC = best_metric
        for name, value in {"MAX_ITER": 6, "LOG_PERIOD": 2, "CHECKPOINT_PERIOD": 4, **solver}.items():
            cfg.SOLVER[name] = value
        experiment = Experiment(cfg, rank=rank, resume=resume)
        net = nn.Linear(1, 1, bias=False)
        if experiment.state:
            checkpoint.load_state(net, experiment.state["model"], "last.pth", strict=True)
        experiment.net = net
        recorder = Recorder(experiment, "mmengine")
        recorder.start()
        return recorder

    return build


def _steps(recorder, first, last, loss=lambda t: float(t)):
    for t in range(first, last):
        recorder.before_step(t)
        recorder.after_step(t, {"loss_a": torch.tensor(loss(t)), "loss_b": torch.tensor(1.0)})
        if recorder.checkpoint_due(t):
            recorder.save(t)
    recorder.close()


def _set_weight(recorder, value):
    nn.init.constant_(recorder.experiment.net.weight, value)


def _weight(path):
    return checkpoint.read(path)["model"]["weight"].item()


def _iterations(recorder):
    return [line["iteration"] for line in read_metrics(recorder.path)]


def test_metrics_are_means_since_the_last_line(start):
    """loss_a is t in step t: the means of steps (0, 1), (2, 3), (4) are ½, 2½ and 4; loss_b adds 1."""
    recorder = start(MAX_ITER=5)
    _steps(recorder, 0, 5)
    lines = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4, 5]  # the last step is always logged
    assert [line["loss_a"] for line in lines] == [0.5, 2.5, 4.0]
    assert [line["loss_b"] for line in lines] == [1.0] * 3
    assert [line["total_loss"] for line in lines] == [1.5, 3.5, 5.0]
    assert all(line["time"] >= 0 and line["cpu_time"] >= 0 for line in lines)


def test_logged_rate_is_the_one_used(start):
    """BASE_LR 1, γ = 1/10 from iteration 3: the line after step 3 (0-based 3) has 0.1."""
    recorder = start(BASE_LR=1.0, STEPS=(3,), GAMMA=0.1)
    used = []
    for t in range(4):
        used.append(recorder.before_step(t))
        assert [g["lr"] for g in recorder.experiment.optimizer.param_groups] == [used[-1]]
        recorder.after_step(t, {"loss": torch.zeros(())})
    assert used == [1.0, 1.0, 1.0, pytest.approx(0.1)]
    assert [line["lr"] for line in read_metrics(recorder.path)] == [used[1], used[3]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_at_its_iteration(start, bad):
    """At the very step, though nothing is logged there, in one line that names the loss; nothing is saved."""
    recorder = start(LOG_PERIOD=100, CHECKPOINT_PERIOD=100, MAX_ITER=100)
    with pytest.raises(
        UserError, match=rf"^loss_a became {bad} at iteration 3; lower SOLVER.BASE_LR"
    ) as caught:
        _steps(recorder, 0, 6, loss=lambda t: bad if t == 3 else 1.0)
    assert "\n" not in str(caught.value)
    assert not (recorder.experiment.output_dir / checkpoint.LAST).exists()


def test_a_bad_loss_is_never_saved(start):
    """At a step that would be saved, the check comes first: the state of the last good one stays."""
    recorder = start(CHECKPOINT_PERIOD=2)
    with pytest.raises(UserError, match="at iteration 3"):
        _steps(recorder, 0, 6, loss=lambda t: math.nan if t == 3 else 1.0)
    assert checkpoint.read(recorder.experiment.output_dir / checkpoint.LAST)["iteration"] == 2


def test_resume_state_and_final_model(start):
    """last.pth every CHECKPOINT_PERIOD steps and at the end; model_final.pth at the end only."""
    recorder = start()
    folder = recorder.experiment.output_dir
    _steps(recorder, 0, 5)
    state = checkpoint.read(folder / checkpoint.LAST)
    assert (state["iteration"], state["engine"], state["SEED"]) == (4, "mmengine", 0)
    assert not (folder / checkpoint.MODEL_FINAL).exists()
    _steps(recorder, 5, 6)
    assert checkpoint.read(folder / checkpoint.LAST)["iteration"] == 6
    assert checkpoint.read(folder / checkpoint.MODEL_FINAL).keys() == {
        "model",
        "state_dict",
        "config",
        "format",
    }


def test_a_resumed_run_drops_the_lines_of_steps_it_takes_again(start):
    """Killed after step 6 with the state of step 4: the line of 6 goes and comes again."""
    killed = start(MAX_ITER=8)
    _steps(killed, 0, 6)
    assert _iterations(killed) == [2, 4, 6]
    resumed = start(MAX_ITER=8, resume=True)
    assert resumed.experiment.start_iteration == 4
    assert _iterations(resumed) == [2, 4]
    _steps(resumed, 4, 8)
    assert _iterations(resumed) == [2, 4, 6, 8]


def test_a_fresh_run_starts_a_fresh_file(start):
    """Without --resume nothing of an older run in the same folder is kept."""
    _steps(start(), 0, 6)
    assert _iterations(start()) == []


def test_a_line_cut_off_by_a_kill(start):
    """It is left out when read, and gone from the file after a resume."""
    recorder = start(MAX_ITER=8)
    _steps(recorder, 0, 5)
    with open(recorder.path, "a") as file:
        file.write('{"iteration": 6, "total_lo')
    assert _iterations(recorder) == [2, 4]
    resumed = start(MAX_ITER=8, resume=True)
    _steps(resumed, 4, 8)
    assert [json.loads(line)["iteration"] for line in resumed.path.read_text().splitlines()] == [2, 4, 6, 8]


def test_other_processes_write_nothing(start):
    """Only process 0 writes files; the finite check is everyone's."""
    recorder = start(rank=1)
    _steps(recorder, 0, 6)
    recorder.evaluated(6, {"sem_seg": {"mIoU": 50.0}})
    assert list(recorder.experiment.output_dir.iterdir()) == []
    with pytest.raises(UserError, match="iteration 7"):
        recorder.after_step(7, {"loss_a": torch.tensor(math.nan)})


def test_the_best_network_is_kept(start):
    """model_best.pth changes with each better evaluation only; NaN is none."""
    recorder = start(best_metric="sem_seg/mIoU")
    path = recorder.experiment.output_dir / checkpoint.MODEL_BEST
    kept = []
    for done, score in enumerate([math.nan, 40.0, 55.0, 50.0, math.nan, 55.0, 56.0], start=1):
        _set_weight(recorder, float(done))
        recorder.evaluated(
            done, {"sem_seg": {"mIoU": score, "per_class": {"cat": 1.0}}, "bbox": {"AP50": 1.0}}
        )
        kept.append(_weight(path) if path.exists() else None)
    assert kept == [None, 2.0, 3.0, 3.0, 3.0, 3.0, 7.0]
    assert recorder.experiment.best == 56.0


def test_evaluations_are_strict_json(start):
    """One object a line, numbers only; NaN, which JSON lacks, is left out."""
    recorder = start()
    recorder.evaluated(
        3, {"bbox": {"AP50": 12.5, "AP-cow": math.nan, "names": ["a"]}, "sem_seg": {"mIoU": 1}}
    )

    def refuse(text):
        raise AssertionError(text)

    (line,) = recorder.path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"iteration": 3, "bbox/AP50": 12.5, "sem_seg/mIoU": 1.0}
    assert not (recorder.experiment.output_dir / checkpoint.MODEL_BEST).exists()


def test_the_best_is_remembered_over_a_resume(start):
    """Saved, then evaluated at the same step, then killed: a worse evaluation does not replace the best."""
    first = start(best_metric="sem_seg/mIoU", CHECKPOINT_PERIOD=2)
    _steps(first, 0, 2)
    _set_weight(first, 2.0)
    first.evaluated(2, {"sem_seg": {"mIoU": 60.0}})
    path = first.experiment.output_dir / checkpoint.MODEL_BEST
    resumed = start(best_metric="sem_seg/mIoU", CHECKPOINT_PERIOD=2, resume=True)
    assert resumed.experiment.best == 60.0
    resumed.evaluated(4, {"sem_seg": {"mIoU": 59.0}})
    assert _weight(path) == 2.0
    _set_weight(resumed, 6.0)
    resumed.evaluated(6, {"sem_seg": {"mIoU": 61.0}})
    assert _weight(path) == 6.0
    assert start(best_metric="sem_seg/mIoU").experiment.best is None  # a fresh run begins anew


def test_unknown_best_metric(start):
    """The error lists what there is."""
    recorder = start(best_metric="sem_seg/miou")
    with pytest.raises(
        UserError, match=r"TEST.BEST_METRIC: no metric 'sem_seg/miou'; there are sem_seg/mIoU"
    ):
        recorder.evaluated(1, {"sem_seg": {"mIoU": 1.0}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": None}, "holds no 'optimizer'"),
        ({"SEED": 5}, "written with SEED 5, not 0"),
        ({"SOLVER.IMS_PER_BATCH": 64}, "written with SOLVER.IMS_PER_BATCH 64, not"),
    ],
)
def test_a_resume_state_of_something_else(start, change, words):
    """A model checkpoint renamed to last.pth, and a run with another seed."""
    recorder = start()
    path = recorder.experiment.output_dir / checkpoint.LAST
    _steps(recorder, 0, 4)
    state = {**checkpoint.read(path), **change}
    checkpoint.atomic_save({k: v for k, v in state.items() if v is not None or k == "best"}, path)
    with pytest.raises(UserError, match=words):
        start(resume=True)
