"""Gain in efficiency, operations and the cascade's report against their formulas, worked out by hand."""

import math
import random

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from scenekd.evaluation.efficiency import (
    TrainingCost,
    bits_rule,
    cascade_accuracy,
    cascade_gain,
    gain_in_efficiency,
)
from scenekd.flops import Operations, count_flops, count_operations


@pytest.mark.parametrize(
    ("student", "teacher", "total", "handed_on", "expected"),
    [
        (1, 10, 100, 0, 0.9),  # 1 − 100 / 1000
        (1, 10, 100, 100, -0.1),  # 1 − (100 + 1000) / 1000
        (2, 8, 1000, 250, 0.5),  # 1 − (2000 + 2000) / 8000
        (0, 5, 10, 0, 1.0),  # a student that costs nothing and asks for nothing
    ],
)
def test_closed_form(student, teacher, total, handed_on, expected):
    assert gain_in_efficiency(student, teacher, total, handed_on) == pytest.approx(expected)


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 10, 100, 0),
        (1, 0, 100, 0),
        (1, -10, 100, 0),
        (1, 10, 0, 0),
        (1, 10, 100, 101),
        (1, 10, 100, -1),
        (float("nan"), 10, 100, 1),
        (1, float("inf"), 100, 1),
        (1, 10, 100, float("nan")),
    ],
)
def test_refuses(arguments):
    with pytest.raises(ValueError):
        gain_in_efficiency(*arguments)


class SignConv(nn.Conv2d):
    """A convolution of signs, simulated."""

    is_binary = True

    def forward(self, x):
        return self._conv_forward(x.sign(), self.weight.sign(), None)


class SignLinear(nn.Linear):
    """The like without torch's own product: what a compiled kernel looks like to the counter."""

    is_binary = True

    def forward(self, x):
        return (x.sign()[:, None] * self.weight.sign()).sum(dim=-1)


def test_binary_operations_are_counted_apart():
    # Real: 3·9 products for each of 4·6·6 outputs, and the shortcut 4·1 for 6·6·6: 2·(3888 + 864) FLOPs.
    # Binary: 4/2·9 products for 6·6·6 (two groups): 2·3888; the linear layer 6·5: 2·30.
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        _Sum(SignConv(4, 6, 3, padding=1, groups=2, bias=False), nn.Conv2d(4, 6, 1, bias=False)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        SignLinear(6, 5),
    )
    images = torch.zeros(1, 3, 6, 6)
    found = count_operations(net, lambda: net(images))
    assert (found.flops, found.bops) == (2 * (3888 + 864), 2 * (3888 + 30))
    assert found.ops == found.flops + found.bops / 64
    assert "mul" in found.uncounted  # of the linear layer, so it is still to be seen
    # The counter alone takes the simulated convolution for a real one; so does fvcore, in MACs.
    plain, _ = count_flops(lambda: net(images))
    assert plain == found.flops + 2 * 3888
    oracle = FlopCountAnalysis(net, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert plain == 2 * oracle.by_operator()["conv"]
    # Nothing of the watching stays, and two images cost twice.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    twice = count_operations(net, lambda: net(images.expand(2, -1, -1, -1)))
    assert (twice.flops, twice.bops) == (2 * found.flops, 2 * found.bops)


class _Sum(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return sum(part(x) for part in self.parts)


def test_a_network_without_binary_layers():
    net = nn.Linear(3, 2)
    found = count_operations(net, lambda: net(torch.zeros(1, 3)))
    assert (found.flops, found.bops, found.ops) == (12, 0, 12)


def test_the_three_shares_add_up_to_one():
    draw = random.Random(0)
    for _ in range(200):
        student = Operations(draw.randrange(10**9), draw.randrange(10**11))
        teacher = Operations(draw.randrange(1, 10**11))
        total = draw.randrange(1, 10**6)
        gain = cascade_gain(student, teacher, total, draw.randrange(total + 1))
        assert gain.gie + gain.share_teacher + gain.cost_ratio == pytest.approx(
            1, abs=1e-9 * (1 + gain.cost_ratio)
        )


def test_gain_and_the_cost_of_training():
    # F_B = 4 + 64 / 64 = 5, F_T = 50. Of 100 samples 20 are handed on: GiE = 1 − .2 − .1 = .7: 35 OPs a sample.
    # Training: 10 samples asked: 500; 30 passes at 3 · (4 + 64): 6120; 10 predictions: 50. It is 6670 / 35 samples.
    student, teacher = Operations(4, 64), Operations(50)
    gain = cascade_gain(student, teacher, 100, 20, TrainingCost(asked=10, passes=30, predictions=10))
    assert (gain.gie, gain.share_teacher, gain.cost_ratio) == pytest.approx((0.7, 0.2, 0.1))
    assert (gain.saved, gain.training, gain.break_even) == pytest.approx((3500, 6670, 6670 / 35))
    nothing = cascade_gain(student, teacher, 100, 100, TrainingCost(1, 1))
    assert nothing.gie == pytest.approx(-0.1) and nothing.break_even == math.inf
    assert cascade_gain(student, teacher, 1, 0).training == 0
    assert "FLOPs + BOPs / 64" in bits_rule()


def test_the_whole_system():
    # Truth       0 0 1 1 | 2 2   (the last two are outliers)
    # student     0 1 1 1 | 0 1   right on 3 of 6
    # teacher     0 0 1 0 | 2 0   right on 4
    # sent        . x . . | x .   system: 0 0 1 1 2 1: right on 5
    found = cascade_accuracy(
        [0, 1, 1, 1, 0, 1],
        [0, 0, 1, 0, 2, 0],
        [False, True, False, False, True, False],
        [0, 0, 1, 1, 2, 2],
        [False] * 4 + [True] * 2,
    )
    assert found == pytest.approx(
        {
            "accuracy": 500 / 6,
            "teacher_accuracy": 400 / 6,
            "student_accuracy": 50,
            "share_teacher": 200 / 6,
            "agreement_inliers": 50,  # samples 1 and 3 of 4
            "outliers_sent": 50,
            "inliers_sent": 25,
        }
    )
    assert math.isnan(cascade_accuracy([0], [0], [True], [0], [False])["outliers_sent"])
    for lists in (([], [], [], [], []), ([0], [0, 1], [True], [0], [True])):
        with pytest.raises(ValueError, match="equally long lists of samples"):
            cascade_accuracy(*lists)
