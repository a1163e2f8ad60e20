import math

import pytest
import torch
import torch.nn.functional as F

from scenekd.losses.soft_label import (
    SoftLabelCrossEntropy,
    soft_label_cross_entropy,
    soft_label_map,
    soft_target,
)
from scenekd.registry import lookup

FORMS = ("probabilities", "logits", "scores")


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def target_of(form, *shape, seed=1):
    values = rand(*shape, seed=seed)
    return {"probabilities": values.softmax(1), "logits": values, "scores": values.sigmoid()}[form]


@pytest.mark.parametrize(
    ("temperature", "score", "on_class"),
    # SPEC B: softmax of a vector with one confidence among 20 zeros. By hand for T = .4, s = 1:
    # e^2.5 = 12.182, 12.182 / (12.182 + 20) = .3785.
    [
        (0.25, 1, 0.732),
        (0.25, 0.9, 0.647),
        (0.4, 1, 0.379),
        (0.4, 0.9, 0.322),
        (1, 1, 0.120),
        (1, 0.9, 0.110),
    ],
)
def test_scores_give_the_thesis_targets(temperature, score, on_class):
    scores = torch.zeros(1, 21, 1, 1)
    scores[0, 7] = score
    target = soft_target(scores, temperature=temperature, target_is="scores")
    assert target[0, 7].item() == pytest.approx(on_class, abs=5e-4)
    assert target[0, 0].item() == pytest.approx((1 - target[0, 7].item()) / 20, rel=1e-5)
    nothing = soft_target(torch.zeros(1, 21, 1, 1), temperature=temperature, target_is="scores")
    torch.testing.assert_close(nothing, torch.full_like(nothing, 1 / 21))  # .0476


def test_loss_of_the_thesis_at_one_pixel():
    # Target .3785 on class 7, (1 − .3785)/20 elsewhere; the student gives class 7 the probability 1/2 and
    # each other 1/40: −(.3785 ln .5 + .6215 ln .025). The student's logits are not divided by T.
    scores = torch.zeros(1, 21, 1, 1)
    scores[0, 7] = 1
    logits = torch.full((1, 21, 1, 1), math.log(1 / 40))
    logits[0, 7] = math.log(1 / 2)
    p = math.exp(2.5) / (math.exp(2.5) + 20)
    loss = soft_label_cross_entropy(logits, scores, temperature=0.4, target_is="scores")
    assert loss.item() == pytest.approx(-(p * math.log(0.5) + (1 - p) * math.log(0.025)), rel=1e-6)


def test_probabilities_at_a_temperature_are_the_tempered_logits():
    # softmax(z)^(1/T) / Σ = e^(z/T) / Σ e^(z/T) = softmax(z / T).
    z = rand(2, 5, 3, 3)
    for temperature in (0.5, 1.0, 4.0):
        torch.testing.assert_close(
            soft_target(z.softmax(1), temperature=temperature, target_is="probabilities"),
            soft_target(z, temperature=temperature, target_is="logits"),
        )
    # Two classes (.8, .2) at T = 2: √.8 / (√.8 + √.2) = 2 / (2 + 1).
    two = torch.tensor([0.8, 0.2]).view(1, 2, 1, 1)
    halved = soft_target(two, temperature=2, target_is="probabilities").flatten()
    torch.testing.assert_close(halved, torch.tensor([2 / 3, 1 / 3]))


def test_hard_target_is_cross_entropy():
    logits, labels = rand(2, 4, 3, 5), torch.randint(0, 4, (2, 3, 5), generator=torch.manual_seed(0))
    one_hot = F.one_hot(labels, 4).permute(0, 3, 1, 2).double()
    torch.testing.assert_close(soft_label_cross_entropy(logits, one_hot), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_is_zero_where_student_and_target_agree(temperature):
    # d/dz of −Σ t log softmax(z) is softmax(z) − t.
    teacher = rand(2, 4, 3, 3)
    student = (teacher / temperature).clone().requires_grad_()
    soft_label_cross_entropy(student, teacher, temperature=temperature, target_is="logits").backward()
    assert student.grad.abs().max() < 1e-15


@pytest.mark.parametrize("form", FORMS)
def test_unchanged_by_image_size(form):
    logits, target = rand(2, 4, 3, 5), target_of(form, 2, 4, 3, 5)
    valid = rand(2, 3, 5, seed=2) > 0
    once = soft_label_cross_entropy(logits, target, target_is=form, temperature=0.4, valid=valid)
    tiled = soft_label_cross_entropy(
        logits.tile(3, 1, 2, 4),
        target.tile(3, 1, 2, 4),
        target_is=form,
        temperature=0.4,
        valid=valid.tile(3, 2, 4),
    )
    torch.testing.assert_close(once, tiled)


@pytest.mark.parametrize("form", FORMS)
def test_blind_to_invalid_pixels(form):
    logits = rand(1, 4, 2, 3).requires_grad_()
    target = target_of(form, 1, 4, 2, 3)
    valid = torch.tensor([[[True, True, True], [False, False, False]]])
    loss = soft_label_cross_entropy(logits, target, target_is=form, valid=valid)
    torch.testing.assert_close(
        loss, soft_label_cross_entropy(logits[:, :, :1], target[:, :, :1], target_is=form)
    )
    loss.backward()
    assert (logits.grad[:, :, 1] == 0).all()
    garbage = target.clone()
    garbage[:, :, 1] = math.nan
    assert soft_label_cross_entropy(logits, garbage, target_is=form, valid=valid) == loss


def test_nothing_valid():
    logits = rand(1, 4, 2, 3).requires_grad_()
    loss = soft_label_cross_entropy(
        logits,
        target_of("logits", 1, 4, 2, 3),
        target_is="logits",
        valid=torch.zeros(1, 2, 3, dtype=torch.bool),
    )
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    valid = torch.tensor([[[True, False], [True, True]]])
    target = target_of(form, 1, 3, 2, 2)

    def loss(logits):
        return soft_label_cross_entropy(logits, target, temperature=0.7, target_is=form, valid=valid)

    assert torch.autograd.gradcheck(loss, rand(1, 3, 2, 2).requires_grad_())


def test_no_gradient_into_the_teacher():
    target = rand(1, 3, 2, 2).requires_grad_()
    loss = soft_label_cross_entropy(rand(1, 3, 2, 2, seed=3).requires_grad_(), target, target_is="logits")
    loss.backward()
    assert target.grad is None


def test_half_precision_is_computed_in_float32():
    logits, target = rand(1, 21, 64, 64).half(), target_of("probabilities", 1, 21, 64, 64).half()
    expected = soft_label_cross_entropy(logits.double(), target.double())
    loss = soft_label_cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_map_means_to_the_scalar():
    logits, target = rand(2, 3, 4, 4), target_of("probabilities", 2, 3, 4, 4)
    per_pixel = soft_label_map(logits, target)
    torch.testing.assert_close(per_pixel.mean(), soft_label_cross_entropy(logits, target))
    # Pixel (1, 2, 3) by the definition.
    expected = -(target[1, :, 2, 3] * logits[1, :, 2, 3].log_softmax(0)).sum()
    torch.testing.assert_close(per_pixel[1, 2, 3], expected)


def test_module_is_registered_and_agrees():
    module = lookup("loss", "SoftLabelCrossEntropy")(temperature=0.4, target_is="scores", loss_weight=0.5)
    assert isinstance(module, SoftLabelCrossEntropy)
    logits, target = rand(1, 3, 2, 2), target_of("scores", 1, 3, 2, 2)
    valid = torch.tensor([[[True, False], [True, True]]])
    expected = soft_label_cross_entropy(logits, target, temperature=0.4, target_is="scores", valid=valid)
    torch.testing.assert_close(module(logits, target, valid), expected / 2)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"target_is": "confidences"},
        {"target": torch.zeros(1, 3, 2, 3)},
        {"logits": torch.zeros(3, 2, 2), "target": torch.zeros(3, 2, 2)},
        {"valid": torch.ones(1, 2, 3, dtype=torch.bool)},
        {"valid": torch.ones(1, 2, 2)},
        {"target": torch.full((1, 3, 2, 2), 4.0)},
        {"target": torch.full((1, 3, 2, 2), -0.5), "target_is": "scores"},
    ],
)
def test_misuse(change):
    arguments = {"logits": torch.zeros(1, 3, 2, 2), "target": torch.full((1, 3, 2, 2), 1 / 3), **change}
    with pytest.raises(ValueError):
        soft_label_cross_entropy(arguments.pop("logits"), arguments.pop("target"), **arguments)
