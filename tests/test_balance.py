"""Weights between the terms of a loss: closed forms of each balance, and what absent terms leave untouched."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kd_mtl.blitznet import BlitzNet
from kd_mtl.criterion import BlitzCriterion
from scenekd import optim
from scenekd.config import get_cfg
from scenekd.errors import UserError
from scenekd.losses.balance import FixedBalance, GradNormBalance, UncertaintyBalance, build_balance

NAMES = ("loss_a", "loss_b")


def _losses(a, b):
    return {"loss_a": torch.as_tensor(float(a)), "loss_b": torch.as_tensor(float(b))}


def test_fixed_gives_the_very_same_losses():
    losses = _losses(2, 3)
    assert build_balance("fixed", NAMES)(losses) is losses
    assert list(FixedBalance().state_dict()) == []
    assert isinstance(BlitzCriterion().balance, FixedBalance)


# Uncertainty ------------------------------------------------------------------------------------------------


def test_uncertainty_begins_with_the_terms_as_they_are():
    """s = 0: exp(0) · L + 0."""
    out = UncertaintyBalance(NAMES)(_losses(2, 0.5))
    assert {name: value.item() for name, value in out.items()} == {
        "loss_a": 2.0,
        "loss_b": 0.5,
        "loss_balance": 0.0,
    }


def test_uncertainty_in_closed_form():
    """s = (ln 4, −ln 2): 2 / 4 = ½, ½ · 2 = 1, and ln 4 − ln 2 = ln 2; gradients 1 − e^(−s) · L = ½ and 0."""
    balance = UncertaintyBalance(NAMES)
    balance.log_variance.data = torch.tensor([math.log(4), -math.log(2)])
    out = balance(_losses(2, 0.5))
    assert [out[name].item() for name in NAMES] == pytest.approx([0.5, 1.0])
    assert out["loss_balance"].item() == pytest.approx(math.log(2))
    sum(out.values()).backward()
    assert balance.log_variance.grad.tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    weights = {name: value.item() for name, value in balance.log_values().items()}
    assert weights == {"balance/loss_a": pytest.approx(0.25), "balance/loss_b": pytest.approx(2.0)}


def test_the_best_variance_is_the_loss():
    """Σ exp(−s) · L + s has its minimum, 1 + ln L each, where σ² = exp(s) = L."""
    balance, losses = UncertaintyBalance(NAMES), _losses(3, 0.2)
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        total = sum(balance(losses).values())
        total.backward()
        optimizer.step()
    assert balance.log_variance.exp().tolist() == pytest.approx([3.0, 0.2], rel=1e-4)
    assert total.item() == pytest.approx(2 + math.log(3 * 0.2), rel=1e-5)


@pytest.mark.parametrize("name", ["ADAM", "ADAMW", "SGD"])
def test_an_absent_term_leaves_its_variance_untouched(name):
    """Neither momentum nor decay moves it in a batch where its loss is 0, after batches where it was not."""
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BASE_LR = name, 0.5, 0.1
    net = nn.ModuleDict({"balance": UncertaintyBalance(NAMES), "other": nn.Linear(1, 1)})
    optimizer = optim.build_optimizer(net, cfg)
    seen = []
    for b in (5.0, 5.0, 0.0, 0.0):
        optimizer.zero_grad()
        sum(net["balance"](_losses(2, b)).values()).backward()
        optimizer.step()
        seen.append(net["balance"].log_variance.tolist())
    assert seen[1][1] != seen[0][1] != 0
    assert seen[3][1] == seen[2][1] == seen[1][1]
    assert len({a for a, _ in seen}) == 4


# GradNorm ---------------------------------------------------------------------------------------------------


def _quadratics(theta, *factors):
    """L_i = a_i · θ² / 2, whose gradient at θ is a_i · θ."""
    return {name: a * theta.square().sum() / 2 for name, a in zip(NAMES, factors)}


def _gradnorm(**options):
    theta = nn.Parameter(torch.ones(1))
    balance = GradNormBalance(NAMES, **options)
    balance.share([theta])
    return balance, theta


def test_gradnorm_first_step_in_closed_form():
    """Gradients 9 and 1, weights 1, Ḡ = 5, α = 0: w ∝ (exp(−lr · 9/5), exp(lr · 1/5)), scaled to sum 2."""
    balance, theta = _gradnorm(alpha=0.0, lr=0.1)
    out = balance(_quadratics(theta, 9.0, 1.0))
    assert [out[name].item() for name in NAMES] == [4.5, 0.5]  # this batch still has the old weights
    moved = torch.tensor([math.exp(-0.18), math.exp(0.02)])
    torch.testing.assert_close(balance.weights, 2 * moved / moved.sum())
    assert theta.grad is None
    assert balance.first.tolist() == [4.5, 0.5]


def test_gradnorm_equalises_the_gradient_norms():
    """w_1 · 9 = w_2 · 1 with w_1 + w_2 = 2: (0.2, 1.8); the steps end within lr of it."""
    balance, theta = _gradnorm(alpha=0.0, lr=0.01)
    for _ in range(400):
        balance(_quadratics(theta, 9.0, 1.0))
    assert balance.weights.tolist() == pytest.approx([0.2, 1.8], rel=0.03)
    assert balance.weights.sum().item() == pytest.approx(2.0)


def test_gradnorm_pulls_the_term_that_trains_slowly():
    """Equal norms, but a has kept its loss and b a quarter: r = (1, ¼) / ⅝ = (1.6, .4). With G = Ḡ for both, the
    targets at α = 1 are 1.6 Ḡ and .4 Ḡ: w ∝ (exp(lr), exp(−lr)); at α = 0 nothing moves."""
    for alpha, expected in ((1.0, [math.exp(0.1), math.exp(-0.1)]), (0.0, [1.0, 1.0])):
        balance, theta = _gradnorm(alpha=alpha, lr=0.1)
        balance.first.copy_(torch.tensor([0.5, 2.0]))
        balance(_quadratics(theta, 1.0, 1.0))  # both losses are ½, both gradients 1
        assert balance.weights.tolist() == pytest.approx([2 * w / sum(expected) for w in expected])


def test_gradnorm_leaves_absent_terms_alone():
    """Three terms, one absent: its weight and L(0) stay to the bit, the sum of the others stays too."""
    theta = nn.Parameter(torch.ones(2))
    balance = GradNormBalance(("loss_a", "loss_b", "loss_c"), alpha=0.0, lr=0.1)
    balance.share([theta])
    balance.weights.copy_(torch.tensor([0.7, 0.5, 1.8]))
    losses = _quadratics(theta, 9.0, 1.0) | {"loss_c": theta[:0].sum()}
    balance(losses)
    assert balance.weights[2] == torch.tensor(1.8)
    assert balance.first[2] == 0
    assert balance.weights[:2].sum().item() == pytest.approx(1.2)
    assert balance.weights[0] < 0.7
    alone = balance.weights.clone()
    balance({"loss_a": theta[:0].sum(), "loss_b": theta[:0].sum(), "loss_c": theta[:0].sum()})
    assert torch.equal(balance.weights, alone), "nothing is present"


def test_gradnorm_moves_in_training_only():
    balance, theta = _gradnorm()
    with torch.no_grad():
        balance(_quadratics(theta, 9.0, 1.0))
    balance.eval()
    balance(_quadratics(theta, 9.0, 1.0))
    assert balance.weights.tolist() == [1.0, 1.0]


def test_gradnorm_takes_the_norm_of_the_gradient_over_processes():
    """The other process has the opposite gradient of a: their mean is 0, so a is absent and nothing moves."""
    reduced = iter([torch.tensor([[0.0], [1.0]]), torch.tensor([4.5, 0.5])])
    balance, theta = _gradnorm(alpha=0.0, lr=0.1, reduce=lambda value: next(reduced))
    balance(_quadratics(theta, 9.0, 1.0))
    assert balance.weights.tolist() == [1.0, 1.0]


# In the network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uncertainty", "gradnorm"])
def test_the_network_shares_its_finest_upscale_block(kind):
    cfg = get_cfg()
    cfg.INPUT.SIZE = 64
    node = cfg.MODEL.BLITZNET
    node.TRUNK, node.TRUNK_WIDTH, node.BALANCE = "resnet18", 8, kind
    node.BLOCK_CHANNELS, node.STREAM_CHANNELS, node.NECK_CHANNELS, node.SEG_CHANNELS = (8, 16), 16, 8, 8
    node.TASKS = ("detection",)
    net = BlitzNet.from_config(cfg, pretrained=False)
    assert net.criterion.balance.names == ("loss_cls", "loss_box")
    state = {name for name in net.state_dict() if name.startswith("criterion.")}
    if kind == "uncertainty":
        assert state == {"criterion.balance.log_variance"}
    else:
        assert state == {"criterion.balance.weights", "criterion.balance.first"}
        finest = list(net.streams.skips[-1].parameters())
        assert [id(p) for p in net.criterion.balance._shared] == [id(p) for p in finest]


def test_bad_values():
    with pytest.raises(ValueError, match="BALANCE must be one of fixed, uncertainty, gradnorm, got 'dwa'"):
        build_balance("dwa", NAMES)
    with pytest.raises(ValueError, match="BALANCE_ALPHA must not be negative"):
        build_balance("gradnorm", NAMES, alpha=-1)
    with pytest.raises(ValueError, match="BALANCE_LR must be positive"):
        build_balance("gradnorm", NAMES, lr=0)
    with pytest.raises(ValueError, match="call share"):
        GradNormBalance(NAMES)(_losses(1, 1))
    with pytest.raises(ValueError, match="the losses are loss_z"):
        UncertaintyBalance(NAMES)({"loss_z": torch.ones(())})
    cfg = get_cfg()
    cfg.MODEL.BLITZNET.BALANCE = "dwa"
    with pytest.raises(UserError, match="BALANCE must be one of"):
        BlitzCriterion.from_config(cfg)
