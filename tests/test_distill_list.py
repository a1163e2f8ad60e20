"""A list of distillation losses: sums, schedules, layers by name, and what it leaves behind."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scenekd.errors import UserError
from scenekd.losses.attention import attention_transfer
from scenekd.losses.channel_wise import channel_wise_kd
from scenekd.losses.correlation import correlation_kd
from scenekd.losses.decoupled import decoupled_kd
from scenekd.losses.distill import hinton_kd, pixel_wise_kd
from scenekd.losses.distillation import DistillationLosses
from scenekd.losses.distillation_options import COMMON, KINDS, read_entries
from scenekd.losses.features import channels_of
from scenekd.losses.pair_wise import pair_wise_kd
from scenekd.losses.schedules import weight_at

CWD = {"TYPE": "cwd", "STUDENT": "trunk.deep", "TEACHER": "trunk.deep"}
MGD = {**CWD, "TYPE": "mgd"}
AT = {**CWD, "TYPE": "at"}
PAIR = {**CWD, "TYPE": "pair"}
HINTON = {"TYPE": "hinton", "ALPHA": 0.9, "TEMPERATURE": 20.0}


class Net(nn.Module):
    """3 classes at a stride of ``stride``, two layers to name."""

    def __init__(self, width, stride=2):
        super().__init__()
        self.trunk = nn.Sequential()
        self.trunk.add_module("shallow", nn.Conv2d(3, width, 3, stride, 1))
        self.trunk.add_module("norm", nn.BatchNorm2d(width))
        self.trunk.add_module("deep", nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1)))
        self.head = nn.Conv2d(width, 3, 1)
        self.flat = nn.Flatten()

    def forward(self, images):
        logits = self.head(self.trunk(images / 255))
        self.flat(logits)
        return logits


def networks(stride=2):
    torch.manual_seed(0)
    return Net(4, stride), Net(6).eval().requires_grad_(False)


def batch(size=16):
    generator = torch.Generator().manual_seed(3)
    images = 255 * torch.rand(2, 3, size, size, generator=generator)
    labels = torch.randint(0, 3, (2, size, size), generator=generator)
    labels[:, :3] = 255
    return images, labels


def build(specs, student, teacher, **options):
    return DistillationLosses(
        specs, student=student, teacher=teacher, **{"num_classes": 3, "max_iter": 10, "seed": 1, **options}
    )


def run(losses, student, teacher, iteration=0, size=16, **options):
    """One forward pass of both, and the losses."""
    images, labels = batch(size)
    with losses.watch():
        logits = student(images)
        with torch.no_grad():
            said = teacher(images)
    return losses(logits, said, labels, iteration=iteration, images=images, **options)


# Sums -----------------------------------------------------------------------------------------------------------


def test_alpha_zero_is_plain_training_to_the_bit():
    """Three steps with hinton at α = 0 and a teacher that says anything; three with torch's cross-entropy."""
    weights = []
    for kd in (True, False):
        student, teacher = networks()
        losses = build([{**HINTON, "ALPHA": 0.0}], student, teacher) if kd else None
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
        images, labels = batch()
        for iteration in range(3):
            if losses is not None:
                loss = run(losses, student, teacher, iteration)["loss_hinton"]
            else:
                logits = F.interpolate(student(images), labels.shape[1:], mode="bilinear")
                loss = F.cross_entropy(logits, labels, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights.append(student.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_a_loss_of_maps_is_no_finer_than_the_labels():
    """A saved teacher is as large as its image, 16 x 16 here; labels on the student's grid, 8 x 8, set the size."""
    student, teacher = networks()
    losses = build([{"TYPE": "cwd", "TEMPERATURE": 2.0}], student, teacher)
    generator = torch.Generator().manual_seed(5)
    logits, said = (
        torch.randn(2, 3, 8, 8, generator=generator),
        torch.randn(2, 3, 16, 16, generator=generator),
    )
    labels = torch.randint(0, 3, (2, 8, 8), generator=generator)
    got = losses(logits, said, labels, iteration=0)["loss_cwd"]
    halved = (
        said.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5))
    )  # bilinear halving is the mean of 2 x 2
    torch.testing.assert_close(got, channel_wise_kd(logits, halved, temperature=2.0))


def test_each_loss_of_a_list_is_its_function_times_its_weight():
    """On maps of the sizes that the module's text tells: here the student's stride is twice the teacher's."""
    student, teacher = networks(stride=4)
    specs = [
        {**HINTON, "DIRECTION": "student_teacher", "REDUCTION": "elements", "WEIGHT": 2.0},
        {"TYPE": "pixel", "WEIGHT": 10},
        {"TYPE": "pair", "WEIGHT": 0.5, "SCALE": 1.0},
        {"TYPE": "cwd", "WEIGHT": 3.0, "TEMPERATURE": 2.0},
        {"TYPE": "dkd", "BETA": 2.0},
        {"TYPE": "dist", "GAMMA": 3.0, "OVER": "image"},
        {**PAIR, "GRID": 2, "WEIGHT": 7.0},
        {**AT, "WEIGHT": 4.0},
        {"TYPE": "pixel", "DISTILL_IGNORED": True},
    ]
    got = run(build(specs, student, teacher), student, teacher)
    images, labels = batch()
    with torch.no_grad():
        deep, wanted = student.trunk(images / 255), teacher.trunk(images / 255)
        logits, said = student.head(deep), teacher.head(wanted)

    def at(maps, size):
        return F.interpolate(maps, size, mode="bilinear")

    assert logits.shape[2:] == (2, 2) and said.shape[2:] == (4, 4)
    valid, small = labels != 255, labels[:, 2::4, 2::4] != 255
    fine = at(logits, (16, 16)), at(said, (16, 16))
    coarse = at(logits, (4, 4)), said
    options = {"direction": "student_teacher", "reduction": "elements", "labels": labels}
    expected = {
        "loss_hinton": 2 * hinton_kd(*fine, temperature=20, alpha=0.9, **options),
        "loss_pixel_1": 10 * pixel_wise_kd(*fine, valid=valid),
        "loss_pair_1": 0.5 * pair_wise_kd(*coarse, scale=1, valid=small),
        "loss_cwd": 3 * channel_wise_kd(*coarse, temperature=2, valid=small),
        "loss_dkd": decoupled_kd(*fine, labels, temperature=4, alpha=1, beta=2),
        "loss_dist": correlation_kd(*fine, gamma=3, over="image", valid=valid),
        "loss_pair_2": 7 * pair_wise_kd(at(deep, (4, 4)), wanted, grid=2),
        "loss_at": 4 * attention_transfer(at(deep, (4, 4)), wanted),
        "loss_pixel_2": pixel_wise_kd(*fine),
    }
    assert list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name].detach(), value, msg=name)


def test_pixels_that_show_nothing():
    """``shown`` holds even where void is taught: only its pixels count."""
    student, teacher = networks()
    losses = build([{"TYPE": "pixel", "DISTILL_IGNORED": True}, {"TYPE": "dkd"}], student, teacher)
    shown = torch.zeros(2, 16, 16, dtype=torch.bool)
    shown[:, :, :10] = True
    got = run(losses, student, teacher, shown=shown)
    images, labels = batch()
    fine = [F.interpolate(net(images), (16, 16), mode="bilinear") for net in (student, teacher)]
    torch.testing.assert_close(got["loss_pixel"], pixel_wise_kd(*fine, valid=shown))
    torch.testing.assert_close(
        got["loss_dkd"], decoupled_kd(*(maps[..., :10] for maps in fine), labels[..., :10])
    )


def test_whole_images():
    """Logits of classification, (N, C): the losses of pixels work, those of maps say so."""
    student, teacher = nn.Linear(2, 3), nn.Linear(2, 3)
    logits, said, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    specs = [HINTON, {"TYPE": "dkd"}, {"TYPE": "dist"}, {"TYPE": "pixel"}]
    got = build(specs, student, teacher)(logits, said, labels, iteration=0)
    torch.testing.assert_close(
        got["loss_hinton"], hinton_kd(logits, said, temperature=20, alpha=0.9, labels=labels)
    )
    torch.testing.assert_close(got["loss_dkd"], decoupled_kd(logits, said, labels))
    with pytest.raises(UserError, match=r"loss 0 \(cwd\): compares maps"):
        build([{"TYPE": "cwd"}], student, teacher)(logits, said, labels, iteration=0)


def test_a_student_that_is_its_teacher():
    """Every divergence is 0, and no gradient reaches the student, features included."""
    _, teacher = networks()
    student = copy.deepcopy(teacher).requires_grad_(True)
    specs = [{**HINTON, "ALPHA": 1.0}, {"TYPE": "pair"}, {"TYPE": "cwd"}, CWD, AT, PAIR]
    specs += [{"TYPE": "dkd"}, {"TYPE": "dist"}]
    got = run(build(specs, student, teacher), student, teacher)
    sum(got.values()).backward()
    assert all(abs(value.item()) < 1e-6 for value in got.values()), got
    assert max(p.grad.abs().max().item() for p in student.parameters() if p.grad is not None) < 1e-6


def test_a_batch_of_void():
    """All terms of logits are 0, finite, with gradients of zeros; the cross-entropy, too."""
    student, teacher = networks()
    specs = [HINTON, *({"TYPE": kind} for kind in ("pixel", "pair", "cwd", "dkd", "dist", "holistic"))]
    losses = build(specs, student, teacher)
    images, labels = batch()
    logits, said = student(images), teacher(images)
    got = losses(logits, said, torch.full_like(labels, 255), iteration=0, images=images)
    sum(got.values()).backward()
    assert all(value.item() == 0 for value in got.values())
    assert all((p.grad == 0).all() for p in student.parameters() if p.grad is not None)
    losses.after_step(0)


# Schedules ------------------------------------------------------------------------------------------------------


def test_weight_at_closed_form():
    # Warm-up of 3: 1/4, 2/4, 3/4 of the weight, then 1. Cosine from there over 10 − 3 = 7 iterations: half way it is ½.
    assert [weight_at(i, 10, weight=8, warmup=3) for i in (0, 1, 2, 3, 9)] == [2, 4, 6, 8, 8]
    cosine = {"weight": 8, "schedule": "cosine"}
    assert weight_at(5, 10, **cosine) == pytest.approx(4)
    assert weight_at(2, 16, warmup=4, **cosine) == pytest.approx(8 * 3 / 5)
    assert weight_at(4, 16, warmup=4, **cosine) == 8
    assert weight_at(7, 16, warmup=4, **cosine) == pytest.approx(8 * (1 + math.sqrt(0.5)) / 2)  # cos 45°
    assert weight_at(16, 16, warmup=4, **cosine) == weight_at(99, 16, warmup=4, **cosine) == 0
    assert weight_at(0, 5, warmup=50) == pytest.approx(1 / 51)
    for wrong in ({"schedule": "step"}, {"weight": -1}, {"warmup": -1}, {"weight": math.nan}):
        with pytest.raises(ValueError):
            weight_at(0, 10, **wrong)


def test_schedules_of_a_list():
    """A loss times its share; of hinton α is scheduled, so that at 0 plain cross-entropy stays."""
    student, teacher = networks()
    student.eval()
    specs = [
        {**HINTON, "SCHEDULE": "cosine", "WEIGHT": 3.0},
        {"TYPE": "pixel", "WARMUP": 4},
        {**HINTON, "ALPHA": 0.0},
    ]
    losses = build(specs, student, teacher)
    half = run(losses, student, teacher, iteration=5)
    images, labels = batch()
    fine = [F.interpolate(net(images), (16, 16), mode="bilinear") for net in (student, teacher)]
    wanted = 3 * hinton_kd(*fine, temperature=20, alpha=0.45, labels=labels)
    torch.testing.assert_close(half["loss_hinton_1"], wanted)
    full = pixel_wise_kd(*fine, valid=labels != 255)
    torch.testing.assert_close(half["loss_pixel"], full)
    torch.testing.assert_close(run(losses, student, teacher, iteration=1)["loss_pixel"], 0.4 * full)
    end = run(losses, student, teacher, iteration=10)
    torch.testing.assert_close(end["loss_hinton_1"], 3 * end["loss_hinton_2"])


# Features -------------------------------------------------------------------------------------------------------


def test_hooks_are_gone_and_nothing_is_held():
    """After a step neither network has a hook, and the features are freed."""
    student, teacher = networks()
    losses = build([CWD, AT, MGD], student, teacher)
    images, labels = batch()
    kept = []
    handle = student.trunk.deep.register_forward_hook(lambda m, a, output: kept.append(weakref.ref(output)))
    before = sum(len(m._forward_hooks) for net in (student, teacher) for m in net.modules())
    with losses.watch():
        logits, said = student(images), teacher(images)
        assert sum(len(m._forward_hooks) for net in (student, teacher) for m in net.modules()) > before
    handle.remove()
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())
    value = sum(losses(logits, said, labels, iteration=0).values())
    value.backward()
    del logits, said, value
    gc.collect()
    assert kept and all(reference() is None for reference in kept)
    assert losses.needs_features and not build([HINTON], student, None).needs_features


def test_hooks_are_gone_after_an_error():
    student, teacher = networks()
    losses = build([CWD], student, teacher)
    with pytest.raises(RuntimeError), losses.watch():
        student(torch.zeros(1, 7, 4, 4))
    assert not any(m._forward_hooks for m in student.modules())


def test_state_dict_and_parameters():
    """Adaptors and critic below ``parts``, nothing of the networks; a copy with them gives the same losses."""
    student, teacher = networks()
    specs = [CWD, MGD, AT, {"TYPE": "holistic", "WIDTH": 4}, HINTON, {"TYPE": "cwd"}]
    state = torch.random.get_rng_state()
    losses = build(specs, student, teacher)
    assert torch.equal(torch.random.get_rng_state(), state)
    keys = losses.state_dict().keys()
    assert {key.split(".")[0] for key in keys} == {"parts"}
    assert {key.split(".")[1] for key in keys} == {"loss_cwd_1", "loss_mgd", "loss_holistic"}
    trained = {name.split(".")[1] for name, p in losses.named_parameters() if p.requires_grad}
    assert trained == {"loss_cwd_1", "loss_mgd"}
    again = build(specs, student, teacher)
    assert all(torch.equal(again.state_dict()[key], losses.state_dict()[key]) for key in keys)
    other = build(specs, student, teacher, seed=2)
    student.eval()
    wanted = run(losses, student, teacher)
    assert run(other, student, teacher)["loss_cwd_1"] != wanted["loss_cwd_1"]
    other.load_state_dict(losses.state_dict())
    assert run(other, student, teacher)["loss_cwd_1"] == wanted["loss_cwd_1"]


def test_equal_channels_need_no_adaptor():
    student, teacher = Net(6), Net(6).eval()
    losses = build([CWD], student, teacher)
    assert not list(losses.parameters())
    got = run(losses, student, teacher)["loss_cwd"]
    images, _ = batch()
    features = [net.trunk(images / 255) for net in (student, teacher)]
    torch.testing.assert_close(got, channel_wise_kd(*features))


def test_a_look_at_the_channels_changes_nothing():
    """Batch statistics, modes and random state stay; channels that are told need no look."""
    student, teacher = networks()
    student.trunk.norm.eval()
    before, state = copy.deepcopy(student.state_dict()), torch.random.get_rng_state()
    assert channels_of(student, ["trunk.deep", "head"], "x") == {"trunk.deep": 4, "head": 3}
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert student.training and not student.trunk.norm.training and student.trunk.deep.training

    class Odd(Net):
        def forward(self, images, more):
            return super().forward(images)

    odd = Odd(4)
    with pytest.raises(
        UserError, match=r"loss 0 \(cwd\): STUDENT: Odd does not take an image.*STUDENT_CHANNELS"
    ):
        build([CWD], odd, teacher)
    build([{**CWD, "STUDENT_CHANNELS": 4, "TEACHER_CHANNELS": 6}], odd, teacher)


def test_features_train_the_student_up_to_the_layer():
    student, teacher = networks()
    sum(run(build([AT, CWD, MGD, PAIR], student, teacher), student, teacher).values()).backward()
    assert student.trunk.shallow.weight.grad.abs().max() > 0 and student.head.weight.grad is None


def test_a_critic_in_a_list():
    """It trains in after_step, on the batch of the losses; the second call does nothing."""
    student, teacher = networks()
    losses = build([{"TYPE": "holistic", "WIDTH": 4, "WEIGHT": 0.1}], student, teacher)
    assert losses.needs_images and not losses.needs_features
    run(losses, student, teacher)["loss_holistic"].backward()
    assert student.head.weight.grad.abs().max() > 0
    before = copy.deepcopy(losses.state_dict())
    losses.after_step(0)
    after = copy.deepcopy(losses.state_dict())
    assert any(not torch.equal(before[key], after[key]) for key in before)
    losses.after_step(0)
    assert all(torch.equal(after[key], value) for key, value in losses.state_dict().items())
    images, labels = batch()
    with pytest.raises(UserError, match=r"loss 0 \(holistic\): needs the images"):
        losses(student(images), teacher(images), labels, iteration=1)


# What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"TYPE": "hinton", "TEMPERATURE": 0},
            r"loss 1 \(hinton\): TEMPERATURE must be a number above 0, got 0",
        ),
        ({"TYPE": "hinton", "TEMPERATURE": math.nan}, "TEMPERATURE must be"),
        ({"TYPE": "hinton", "TEMPERATURE": "4"}, "TEMPERATURE must be a number above 0, got '4'"),
        ({"TYPE": "hinton", "TEMPERATURE": True}, "TEMPERATURE must be"),
        ({"TYPE": "hinton", "ALPHA": 1.5}, r"ALPHA must be a number in 0…1, got 1\.5"),
        ({"TYPE": "hinton", "ALPHA": -0.1}, "ALPHA must be"),
        ({"TYPE": "hinton", "WEIGHT": -1}, "WEIGHT must be a number that is not negative"),
        ({"TYPE": "hinton", "DIRECTION": "up"}, "DIRECTION must be one of teacher_student, student_teacher"),
        (
            {"TYPE": "hinton", "BETA": 1},
            r"loss 1 \(hinton\): unknown key BETA; known: WEIGHT, SCHEDULE, WARMUP, ALPHA",
        ),
        ({"TYPE": "hinton", "alpha": 1}, "unknown key alpha"),
        ({"TYPE": "pixel", "SCHEDULE": "step"}, "SCHEDULE must be one of constant, cosine"),
        ({"TYPE": "pixel", "WARMUP": 1.5}, "WARMUP must be a whole number"),
        ({"TYPE": "pixel", "DISTILL_IGNORED": 1}, "DISTILL_IGNORED must be True or False"),
        ({"TYPE": "dkd", "ALPHA": -1}, "ALPHA must be a number that is not negative"),
        ({"TYPE": "pair", "SCALE": 2.0}, r"SCALE must be a number in \(0, 1\]"),
        ({"TYPE": "holistic", "LR": 0.0}, "LR must be"),
        ({**MGD, "MASK_RATIO": 1.0}, r"MASK_RATIO must be a number in \[0, 1\)"),
        ({"TYPE": "mgd"}, r"loss 1 \(mgd\): STUDENT is missing"),
        ({"TYPE": "cwd", "STUDENT": "head"}, r"loss 1 \(cwd\): TEACHER is missing"),
        ({"TYPE": "cwd", "TEACHER": "head"}, r"loss 1 \(cwd\): STUDENT is missing"),
        (
            {"TYPE": "kd"},
            "loss 1: TYPE must be one of hinton, pixel, pair, holistic, cwd, dkd, dist, mgd, at, got 'kd'",
        ),
        ({"TEMPERATURE": 4.0}, "loss 1: TYPE must be one of"),
        ("hinton", "loss 1: must be a mapping"),
        (
            {**CWD, "STUDENT": "trunk.depe"},
            r"loss 1 \(cwd\): STUDENT: Net has no layer 'trunk.depe'; choose .*trunk.deep",
        ),
        ({**CWD, "TEACHER": "layer4"}, r"TEACHER: Net has no layer 'layer4'; choose trunk, trunk.shallow"),
        (
            {**CWD, "STUDENT": "flat"},
            r"loss 1 \(cwd\): STUDENT flat: the layer puts out a 2-D tensor, no map",
        ),
    ],
)
def test_wrong_entries(spec, message):
    with pytest.raises(UserError, match=message) as error:
        build([HINTON, spec], *networks())
    assert "\n" not in str(error.value)


def test_a_large_network_names_the_closest_layers():
    from torchvision.models import resnet18

    with pytest.raises(
        UserError, match=r"has no layer 'layer4.1.con2'; of its \d+ layers the closest .*layer4.1.conv2"
    ):
        build([{**CWD, "STUDENT": "layer4.1.con2"}], resnet18(), networks()[1])


def test_wrong_batches():
    student, teacher = networks()
    losses = build([{"TYPE": "pixel"}], student, teacher)
    images, labels = batch()
    logits, said = student(images), teacher(images)
    with pytest.raises(UserError, match="teacher's logits have 2 classes, the student's 3"):
        losses(logits, said[:, :2], labels, iteration=0)
    for bad in (math.nan, math.inf):
        wrong = said.clone()
        wrong[0, 0, 1, 1] = bad
        with pytest.raises(UserError, match="teacher's logits at iteration 7 are not finite"):
            losses(logits, wrong, labels, iteration=7)
    with pytest.raises(UserError, match=r"loss 0 \(pixel\): needs the teacher's logits"):
        losses(logits, None, labels, iteration=0)
    with pytest.raises(ValueError, match="student_logits have 2 classes"):
        losses(logits[:, :2], said, labels, iteration=0)
    with pytest.raises(UserError, match="give a list of mappings"):
        build(HINTON, student, teacher)
    with pytest.raises(ValueError, match="max_iter"):
        build([HINTON], student, teacher, max_iter=0)


def test_features_need_a_live_teacher_and_a_watched_pass():
    student, teacher = networks()
    with pytest.raises(
        UserError, match=r"loss 0 \(at\): TEACHER names a layer, and of the teacher only saved"
    ):
        build([AT], student, None)
    losses = build([AT], student, teacher)
    images, labels = batch()
    with pytest.raises(UserError, match=r"loss 0 \(at\): STUDENT trunk.deep: the layer did not run while"):
        losses(student(images), teacher(images), labels, iteration=0)


def test_every_key_has_a_rule_and_a_default_that_keeps_it():
    """The defaults of each TYPE are accepted as if they were written."""
    for kind, keys in KINDS.items():
        layers = {key: "head" for key in ("STUDENT", "TEACHER") if key in keys}
        (entry,) = read_entries([{"TYPE": kind, **COMMON, **keys, **layers}])
        assert entry.name == f"loss_{kind}" and entry.options == {**COMMON, **keys, **layers}
