"""Learning rate, parameter groups and clipping: closed forms, and torch's own as oracles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scenekd import optim
from scenekd.config import get_cfg
from scenekd.errors import UserError


def _cfg(**solver):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.1
    for name, value in solver.items():
        cfg.SOLVER[name] = value
    return cfg


def _clipped(**clip):
    cfg = _cfg(OPTIMIZER="SGD", MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    for name, value in clip.items():
        cfg.SOLVER.CLIP_GRADIENTS[name] = value
    return cfg


def _rates(cfg, last):
    return [optim.lr_at(cfg, t) for t in range(last)]


# Learning rate ----------------------------------------------------------------------------------------------


def test_multistep():
    """γ = 1/2 from step 3 and again from step 6 on, in whatever order the steps are given."""
    expected = [0.1] * 3 + [0.05] * 3 + [0.025] * 3
    for steps in ((3, 6), (6, 3)):
        assert _rates(_cfg(STEPS=steps, GAMMA=0.5), 9) == pytest.approx(expected)
    # Twice the same step counts twice: 0.1 · (1/2)².
    assert optim.lr_at(_cfg(STEPS=(1, 1), GAMMA=0.5), 1) == pytest.approx(0.025)
    assert _rates(_cfg(STEPS=()), 3) == [0.1] * 3


def test_cosine():
    """½(1 + cos πt/8): 1 at 0, (2 + √2)/4 at 2, ½ at 4, (2 − √2)/4 at 6, 0 at the end and after."""
    cfg = _cfg(LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=8)
    root = math.sqrt(2)
    expected = {0: 1, 2: (2 + root) / 4, 4: 0.5, 6: (2 - root) / 4, 8: 0, 9: 0}
    for iteration, factor in expected.items():
        assert optim.lr_at(cfg, iteration) == pytest.approx(0.1 * factor, abs=1e-15)


def test_poly():
    """(1 − t/10)²: 1, .81, .64, …, .01, 0."""
    cfg = _cfg(LR_SCHEDULER_NAME="WarmupPolyLR", MAX_ITER=10, POLY_POWER=2.0)
    expected = [0.1, 0.081, 0.064, 0.049, 0.036, 0.025, 0.016, 0.009, 0.004, 0.001, 0.0, 0.0]
    assert _rates(cfg, 12) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("WarmupMultiStepLR", lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [4, 9], 0.3)),
        ("WarmupCosineLR", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12)),
        ("WarmupPolyLR", lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 12, 0.9)),
    ],
)
def test_schedules_are_torch_s(name, build):
    """Without warm-up, each schedule is torch's at every step."""
    cfg = _cfg(LR_SCHEDULER_NAME=name, MAX_ITER=12, STEPS=(4, 9), GAMMA=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = build(optimizer)
    for iteration in range(12):
        assert optim.lr_at(cfg, iteration) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_warm_up():
    """Linear: 0.2 + 0.8·t/4 = .2, .4, .6, .8, then 1; constant: .2 four times, then 1."""
    shared = {"WARMUP_ITERS": 4, "WARMUP_FACTOR": 0.2, "STEPS": ()}
    assert _rates(_cfg(**shared), 6) == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    constant = _cfg(WARMUP_METHOD="constant", **shared)
    assert _rates(constant, 6) == pytest.approx([0.02] * 4 + [0.1] * 2)
    assert _rates(_cfg(WARMUP_ITERS=0, WARMUP_FACTOR=0.2, STEPS=()), 2) == [0.1, 0.1]


def test_schedule_runs_beneath_the_warm_up():
    """Both factors multiply: at t = 2 of 4, half of the warm-up from 0 and (1 − 2/8) of the poly schedule."""
    cfg = _cfg(
        LR_SCHEDULER_NAME="WarmupPolyLR", MAX_ITER=8, POLY_POWER=1.0, WARMUP_ITERS=4, WARMUP_FACTOR=0.0
    )
    assert optim.lr_at(cfg, 2) == pytest.approx(0.1 * 0.5 * 0.75)
    # A step inside the warm-up counts: 0.1 · (0 + 3/4) · 0.1.
    assert optim.lr_at(_cfg(STEPS=(3,), WARMUP_ITERS=4, WARMUP_FACTOR=0.0), 3) == pytest.approx(0.0075)


@pytest.mark.parametrize(
    ("key", "value"),
    [("OPTIMIZER", "LION"), ("LR_SCHEDULER_NAME", "StepLR"), ("WARMUP_METHOD", "exponential")],
)
def test_unknown_names(key, value):
    """An unknown name is refused with its key, also where no warm-up takes place."""
    cfg = _cfg(**{key: value})
    with pytest.raises(UserError, match=rf"^SOLVER\.{key}: .*'{value}'; choose "):
        optim.set_lr(optim.build_optimizer(nn.Linear(1, 1), cfg), cfg, 0)


# Parameter groups -------------------------------------------------------------------------------------------


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        norms = (nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.GroupNorm(1, 2), nn.LayerNorm(2))
        self.norms = nn.ModuleList(norms)
        self.head = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.head[0].weight


def _group_of(groups, parameter):
    found = [g for g in groups if any(p is parameter for p in g["params"])]
    assert len(found) <= 1
    return (found[0]["lr"], found[0]["weight_decay"]) if found else None


def test_parameter_groups():
    """Weights, norm parameters and biases have their own decay; each stands in exactly one group."""
    net = _Net()
    groups = optim.parameter_groups(
        net, _cfg(WEIGHT_DECAY=0.5, WEIGHT_DECAY_NORM=0.25, WEIGHT_DECAY_BIAS=0.125)
    )
    listed = [id(p) for g in groups for p in g["params"]]
    trained = [p for p in net.parameters() if p.requires_grad]
    assert sorted(listed) == sorted(id(p) for p in trained)
    for weight in (net.conv.weight, net.head[1][0].weight, net.scale, net.tied.weight):
        assert _group_of(groups, weight) == (0.1, 0.5)
    for bias in (net.conv.bias, net.head[0].bias, net.tied.bias):
        assert _group_of(groups, bias) == (0.1, 0.125)
    for norm in net.norms:
        assert _group_of(groups, norm.weight) == _group_of(groups, norm.bias) == (0.1, 0.25)
    assert _group_of(groups, net.frozen.weight) is None


def test_nearest_learning_rate_factor_wins():
    """A module's factor holds below it, until a nearer one; the root's holds for the rest."""
    net = _Net()
    net.lr_factor, net.head.lr_factor, net.head[1].lr_factor = 2.0, 10.0, 0.5
    groups = optim.parameter_groups(net, _cfg(WEIGHT_DECAY=0.5))
    assert _group_of(groups, net.conv.weight)[0] == pytest.approx(0.2)
    assert _group_of(groups, net.scale)[0] == pytest.approx(0.2)
    assert _group_of(groups, net.head[0].weight)[0] == pytest.approx(1.0)
    assert _group_of(groups, net.head[1][0].weight)[0] == pytest.approx(0.05)


def test_optimizers():
    """Each name builds torch's class with the groups' values."""
    net = nn.Linear(2, 1)
    for name, kind in (("adam", torch.optim.Adam), ("ADAMW", torch.optim.AdamW), ("SGD", torch.optim.SGD)):
        optimizer = optim.build_optimizer(net, _cfg(OPTIMIZER=name, WEIGHT_DECAY=0.5))
        assert type(optimizer) is kind
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]
    sgd = optim.build_optimizer(net, _cfg(OPTIMIZER="SGD", MOMENTUM=0.7, NESTEROV=True))
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.7, True)


# Clipping ---------------------------------------------------------------------------------------------------


def _gradients(net):
    torch.manual_seed(0)
    return [5 * torch.randn_like(p) for p in net.parameters()]


@pytest.mark.parametrize(
    ("clip", "by_hand"),
    [
        ({"CLIP_VALUE": 0.3}, lambda ps: nn.utils.clip_grad_norm_(ps, 0.3)),
        (
            {"CLIP_VALUE": 0.3, "NORM_TYPE": float("inf")},
            lambda ps: nn.utils.clip_grad_norm_(ps, 0.3, norm_type=float("inf")),
        ),
        ({"CLIP_TYPE": "value", "CLIP_VALUE": 0.3}, lambda ps: nn.utils.clip_grad_value_(ps, 0.3)),
        ({"CLIP_VALUE": 1e6}, lambda ps: None),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_is_torch_s_before_the_step(clip, by_hand, scaled):
    """One step equals torch's clip by hand and a plain step; under AMP the clip sees unscaled gradients."""
    ours, theirs = _Net(), _Net()
    theirs.load_state_dict(ours.state_dict())
    optimizer = optim.build_optimizer(ours, _clipped(**clip))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    scaler.scale(torch.zeros(()))
    for p, q, gradient in zip(ours.parameters(), theirs.parameters(), _gradients(ours)):
        if p.requires_grad:
            p.grad = gradient * (1024.0 if scaled else 1.0)
            q.grad = gradient.clone()
    by_hand([q for q in theirs.parameters() if q.requires_grad])
    torch.optim.SGD([q for q in theirs.parameters() if q.requires_grad], lr=0.1).step()
    scaler.step(optimizer)
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-6)


def test_one_norm_over_all_groups():
    """Gradients 3 and 4 in two groups have norm 5; clipped to 1 they are 0.6 and 0.8."""
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    cfg = _clipped(CLIP_VALUE=1.0)
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WEIGHT_DECAY = 0.5  # a group of its own for the weight, which is 0 and so does not decay
    optimizer = optim.build_optimizer(net, cfg)
    assert len(optimizer.param_groups) == 2
    net.weight.grad, net.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    optimizer.step()
    assert net.weight.item() == pytest.approx(-0.6, abs=1e-5)
    assert net.bias.item() == pytest.approx(-0.8, abs=1e-5)


def test_mixed_precision(caplog):
    """float16 is for CUDA, bfloat16 for any device, another type for none."""
    cfg = get_cfg()
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert optim.mixed_precision(cfg, cuda) is None
    cfg.SOLVER.AMP.ENABLED = True
    assert optim.mixed_precision(cfg, cuda) == torch.float16
    assert optim.mixed_precision(cfg, cpu) is None and "training in float32" in caplog.text
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    assert optim.mixed_precision(cfg, cpu) == optim.mixed_precision(cfg, cuda) == torch.bfloat16
    cfg.SOLVER.AMP.DTYPE = "half"
    with pytest.raises(UserError, match="SOLVER.AMP.DTYPE: 'half'; choose float16 or bfloat16"):
        optim.mixed_precision(cfg, cpu)


def test_unknown_clip_type():
    """detectron2's per-parameter ``norm`` is not offered."""
    with pytest.raises(UserError, match="CLIP_TYPE: 'norm'; choose full_model or value"):
        optim.build_optimizer(nn.Linear(1, 1), _clipped(CLIP_TYPE="norm"))


# Setting the rate -------------------------------------------------------------------------------------------


def test_set_lr_has_no_state():
    """Called twice, out of order, or in a resumed optimizer: the rates follow from the iteration alone."""
    net = _Net()
    net.head.lr_factor = 10.0
    cfg = _cfg(STEPS=(3,), GAMMA=0.5, WARMUP_ITERS=2, WARMUP_FACTOR=0.0)

    def rates(optimizer, iteration):
        assert optim.set_lr(optimizer, cfg, iteration) == pytest.approx(optim.lr_at(cfg, iteration))
        return [g["lr"] for g in optimizer.param_groups]

    first = optim.build_optimizer(net, cfg)
    own = [g["lr"] for g in first.param_groups]
    assert set(own) == {0.1, 1.0}
    going = [rates(first, t) for t in range(5)]
    # Factors: warm-up 0 and ½, then 1, and γ from step 3 on.
    for factor, got in zip((0.0, 0.5, 1.0, 0.5, 0.5), going):
        assert got == pytest.approx([factor * lr for lr in own])
    assert rates(first, 4) == going[4]
    assert rates(first, 1) == going[1]
    resumed = optim.build_optimizer(net, cfg)
    resumed.load_state_dict(first.state_dict())
    assert rates(resumed, 2) == going[2]
    assert rates(optim.build_optimizer(net, cfg), 3) == going[3]
