"""Signs, binary convolutions and the unit of a binary network: values and gradients in closed form."""

import pytest
import torch
import torch.nn.functional as F

from scenekd.nets.binary import (
    AffineBatchNorm2d,
    BinaryConv2d,
    ConvUnit,
    LearnableShift,
    RPReLU,
    binary_sign,
)


def test_sign_of_zero_and_of_nan():
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, -1e-30, float("nan")])
    assert binary_sign(x).tolist() == [-1, 1, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        # 2 + 2x at −0.75 and −0.25; 2 − 2x at 0, 0.25 and 0.75; beyond ±1 nothing, and at −1 and 1 the hat ends
        ("quadratic", [0, 0, 0.5, 1.5, 2, 1.5, 0.5, 0, 0]),
        ("clipped", [0, 1, 1, 1, 1, 1, 1, 1, 0]),
    ],
)
def test_gradient_of_sign(gradient, expected):
    x = torch.tensor([-1.5, -1, -0.75, -0.25, 0, 0.25, 0.75, 1, 1.5], dtype=torch.float64, requires_grad=True)
    (3 * binary_sign(x, gradient)).sum().backward()
    assert x.grad.tolist() == [3 * value for value in expected]


def test_quadratic_gradient_is_that_of_the_piecewise_polynomial():
    # Bi-Real Net's approximation: −1, 2x + x², 2x − x², 1; its derivative is what the sign passes back
    x = torch.linspace(-2, 2, 201, dtype=torch.float64, requires_grad=True)
    smooth = torch.where(x < 0, 2 * x + x**2, 2 * x - x**2)
    smooth = torch.where(x.abs() < 1, smooth, x.detach().sign())
    (expected,) = torch.autograd.grad(smooth.sum(), x)
    (actual,) = torch.autograd.grad(binary_sign(x).sum(), x)
    torch.testing.assert_close(actual, expected)


def test_weights_have_two_values_in_each_filter():
    torch.manual_seed(0)
    conv = BinaryConv2d(5, 7, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = 0  # +, as the sign of zero is
    binary = conv.binary_weight()
    for raw, filter in zip(conv.weight, binary):
        scale = raw.abs().mean()
        assert len(filter.unique()) == 2
        assert torch.equal(filter, torch.where(raw >= 0, scale, -scale))


def test_gradient_of_weights_is_clipped_straight_through():
    """What reaches the binary weights passes where |W| ≤ 1 and is lost elsewhere; the scale has no gradient."""
    conv = BinaryConv2d(1, 1, (1, 3)).double()
    with torch.no_grad():
        conv.weight[:] = torch.tensor([0.5, -1.5, -1.0])  # mean|W| = 1
    coefficients = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    (conv.binary_weight() * coefficients).sum().backward()
    assert conv.weight.grad.flatten().tolist() == [2, 0, 5]

    conv.weight.grad = None
    x = torch.tensor([[[[0.5, -0.5, 3.0]]]], dtype=torch.float64)  # signs +, −, +
    y = conv(x)
    # mean|W| · (1·1 + (−1)(−1) + 1·(−1)) = 1
    assert y.item() == 1
    (4 * y).sum().backward()
    # d y / d binary weight = the sign of the input; 4 times; the second weight is beyond 1
    assert conv.weight.grad.flatten().tolist() == [4, 0, 4]


@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_convolution_has_the_gradients_of_one_with_scaled_weights(factor):
    torch.manual_seed(1)
    conv = BinaryConv2d(4, 6, 3, stride=2, padding=1).double()
    with torch.no_grad():
        conv.weight.mul_(factor / conv.weight.abs().mean())
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(binary_sign(x), conv.binary_weight(), None, 2, 1)
    torch.testing.assert_close(conv(x), plain)
    weights = torch.randn_like(plain)
    actual = torch.autograd.grad((conv(x) * weights).sum(), (x, conv.weight))
    expected = torch.autograd.grad((plain * weights).sum(), (x, conv.weight))
    torch.testing.assert_close(actual, expected)


def test_filter_of_zeros_has_a_finite_gradient():
    conv = BinaryConv2d(2, 2, 1)
    with torch.no_grad():
        conv.weight[0] = 0
    y = conv(torch.randn(1, 2, 3, 3))
    assert (y[:, 0] == 0).all()
    y.sum().backward()
    assert conv.weight.grad.isfinite().all() and (conv.weight.grad[0] == 0).all()


def test_padding_is_zero_and_not_a_sign():
    conv = BinaryConv2d(1, 1, 3, padding=1, scaling="none")
    with torch.no_grad():
        conv.weight.fill_(1)
    # All +1: a corner sees four cells, an edge six, the middle nine
    assert conv(torch.ones(1, 1, 3, 3))[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_xnor_scale_of_the_input():
    conv = BinaryConv2d(2, 1, 2, scaling="xnor")
    with torch.no_grad():
        conv.weight.fill_(0.5)
    x = torch.tensor([[[[1.0, -2], [3, 4]], [[3.0, 2], [-1, 8]]]])
    # mean |x| over channels: 2 2 / 2 6, over the window 3. Signs sum to 4 · 2 − 2 · 2 = 4. Filter scale 0.5.
    assert conv(x).item() == 4 * 0.5 * 3


@pytest.mark.parametrize("option", [{"scaling": "both"}, {"gradient": "tanh"}])
def test_unknown_options(option):
    with pytest.raises(ValueError, match="must be one of"):
        BinaryConv2d(1, 1, 1, **option)
    with pytest.raises(ValueError, match="must be one of"):
        binary_sign(torch.zeros(1), "tanh")


def test_shift_moves_the_threshold_and_learns():
    shift = LearnableShift(2)
    with torch.no_grad():
        shift.bias[:] = torch.tensor([0.5, -0.5])
    x = torch.tensor([-0.4, 0.4]).view(1, 2, 1, 1)
    y = binary_sign(shift(x))
    assert y.flatten().tolist() == [1, -1]
    y.sum().backward()
    # at 0.1 and −0.1 the hat is 1.8 high
    torch.testing.assert_close(shift.bias.grad, torch.tensor([1.8, 1.8]))


def test_rprelu():
    act = RPReLU(1)
    with torch.no_grad():
        act.before.fill_(1), act.slope.fill_(0.5), act.after.fill_(10)
    # −3 + 1 = −2 → −1 → 9; 1 + 1 = 2 → 12
    assert act(torch.tensor([-3.0, 1]).view(2, 1, 1, 1)).flatten().tolist() == [9, 12]


def test_affine_normalisation_is_batch_normalisation():
    torch.manual_seed(2)
    ours, theirs = AffineBatchNorm2d(3), torch.nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)  # training, statistics too
    assert torch.equal(ours.running_var, theirs.running_var)
    with torch.no_grad():
        ours.weight.uniform_(), ours.bias.uniform_()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_unit_is_its_formula(stride):
    torch.manual_seed(3)
    unit = ConvUnit(4, 4, stride=stride, shifts=True).eval()
    x = torch.randn(2, 4, 7, 7)
    side = x if stride == 1 else unit.shortcut(x)
    expected = unit.act(unit.norm(unit.conv(unit.shift(x))) + side)
    assert (unit.shortcut is None) == (stride == 1)
    torch.testing.assert_close(unit(x), expected)
    assert unit(x).shape[-1] == (7 if stride == 1 else 4)  # an odd size is halved upwards, on both ways


def test_unit_refuses_a_shortcut_across_a_stride_of_three():
    with pytest.raises(ValueError, match="stride 1 or 2"):
        ConvUnit(4, 4, stride=3)
