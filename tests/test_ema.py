"""The running mean of the weights: its closed form, its exchange with the network, and what a run saves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scenekd import checkpoint
from scenekd.config import get_cfg
from scenekd.ema import WeightAverage
from scenekd.errors import UserError
from scenekd.experiment import Experiment
from scenekd.recorder import Recorder


def _net(value=0.0):
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    nn.init.constant_(net[0].weight, value)
    return net


def _follow(average, net, values):
    for t, value in enumerate(values):
        nn.init.constant_(net[0].weight, value)
        average.update(t)
    return average.state_dict()["0.weight"].item()


def test_constant_decay():
    """d = ½ from 0: after 8, 8, 4: ½·0 + ½·8 = 4, ½·4 + ½·8 = 6, ½·6 + ½·4 = 5."""
    net = _net()
    assert _follow(WeightAverage(net, decay=0.5), net, [8.0, 8.0, 4.0]) == 5.0


def test_warm_up_forgets_the_first_weights():
    """Warm-up 1, decay .7: d = 1/2, 2/3, .7 (3/4 is more). From 6 by 0, 9, 19: 3, then 2 + 3 = 5, 3.5 + 5.7 = 9.2."""
    net = _net(6.0)
    average = WeightAverage(net, decay=0.7, warmup=1)
    assert [average.decay_at(t) for t in range(4)] == [0.5, pytest.approx(2 / 3), 0.7, 0.7]
    assert _follow(average, net, [0.0, 9.0, 19.0]) == pytest.approx(9.2)


def test_applied_exchanges_parameters_and_gives_them_back_to_the_bit():
    """Nesting changes nothing; batch statistics stay the network's own; a failure inside gives them back too."""
    net = _net(1 / 3)
    average = WeightAverage(net, decay=0.5)
    own = net[0].weight.clone()
    average.load_state_dict({"0.weight": torch.tensor([[0.1]])})
    net[1].running_mean.fill_(7.0)
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        with average.applied():
            assert net[0].weight.item() == pytest.approx(0.1)
        assert net[0].weight.item() == pytest.approx(0.1)
        assert net[1].running_mean.item() == 7.0
        raise RuntimeError("inside")
    assert torch.equal(net[0].weight, own)
    assert average.state_dict()["0.weight"].item() == pytest.approx(0.1)


def test_bad_values_and_foreign_states():
    with pytest.raises(ValueError, match=r"DECAY must be in \[0, 1\), got 1"):
        WeightAverage(_net(), decay=1)
    with pytest.raises(ValueError, match="WARMUP"):
        WeightAverage(_net(), decay=0.5, warmup=-1)
    with pytest.raises(UserError, match="of another network"):
        WeightAverage(_net(), decay=0.5).load_state_dict({"other": torch.zeros(1)})


def test_what_a_run_saves(tmp_path):
    """last.pth holds the weights and their mean; model_final.pth and model_best.pth hold the mean, under the same
    keys. Decay ½ from 0, weights 8 and 4 after two steps: 4, then 4."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    cfg.TEST.BEST_METRIC = "sem_seg/mIoU"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.LOG_PERIOD = 2, 1
    cfg.SOLVER.EMA.ENABLED, cfg.SOLVER.EMA.DECAY, cfg.SOLVER.EMA.WARMUP = True, 0.5, 0
    experiment = Experiment(cfg)
    experiment.net = _net()
    recorder = Recorder(experiment, "mmengine")
    recorder.start()
    for t, value in enumerate([8.0, 4.0]):
        recorder.before_step(t)
        nn.init.constant_(experiment.net[0].weight, value)
        recorder.after_step(t, {"loss_a": torch.ones(())})
    recorder.save(1)
    recorder.evaluated(2, {"sem_seg": {"mIoU": 1.0}})
    last = checkpoint.read(tmp_path / checkpoint.LAST)
    assert (last["model"]["0.weight"].item(), last["ema"]["0.weight"].item()) == (4.0, 4.0)
    nn.init.constant_(experiment.net[0].weight, 0.0)
    experiment.extras.after_step(2)  # the mean is 2 now
    recorder.evaluated(3, {"sem_seg": {"mIoU": 2.0}})
    for name, value in ((checkpoint.MODEL_FINAL, 4.0), (checkpoint.MODEL_BEST, 2.0)):
        state = checkpoint.read(tmp_path / name)["model"]
        assert state.keys() == experiment.net.state_dict().keys()
        assert state["0.weight"].item() == value
    assert experiment.net[0].weight.item() == 0.0
    resumed = Experiment(cfg, resume=True)
    resumed.net = _net(4.0)
    assert resumed.extras.average.state_dict()["0.weight"].item() == 4.0


def test_a_decay_outside_its_range_is_told_with_its_key(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    cfg.SOLVER.EMA.ENABLED, cfg.SOLVER.EMA.DECAY = True, 1.5
    experiment = Experiment(cfg)
    experiment.net = _net()
    with pytest.raises(UserError, match="SOLVER.EMA: DECAY must be in"):
        experiment.optimizer  # noqa: B018 - built on first use
