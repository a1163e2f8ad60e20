"""What a student of fcn_kd learns from its teacher in one step; whole runs are in test_fcn_distillation_runs.py."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from fcn_parts import (
    BASE,
    CLASSES,
    ORDER,
    TEACHER_SIZE,
    images,
    losses,
    masks,
    read,
    save_network,
    save_teacher,
    student,
    target,
    taught_by,
    write_config,
)

from fcn_kd.student import SceneKDStudent
from scenekd.config import get_cfg
from scenekd.errors import UserError
from scenekd.losses.distill import hinton_kd
from scenekd.losses.distillation_options import read_entries
from scenekd.teachers.live_build import build_online, join_planes

HINTON = {"TYPE": "hinton", "ALPHA": 0.5, "TEMPERATURE": 2.0}
_SMALL = ("MODEL.FCN_KD.NETWORK", "fcn_resnet18", "MODEL.FCN_KD.TRUNK_WIDTH", 8)
PURE = {**HINTON, "ALPHA": 1.0}
MGD = {"TYPE": "mgd", "STUDENT": "backbone.layer4", "TEACHER": "network.backbone.layer3"}
EVERY = [
    {"TYPE": "hinton"},
    {"TYPE": "pixel"},
    {"TYPE": "pair"},
    {"TYPE": "holistic", "WIDTH": 4, "SIZE": 16},
    {"TYPE": "cwd"},
    {"TYPE": "dkd"},
    {"TYPE": "dist"},
    MGD,
    {**MGD, "TYPE": "at"},
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("fcn"))


@pytest.fixture(scope="module")
def theirs(file):
    """(checkpoint of the teacher, its network)."""
    path = file.parent / "teacher.pth"
    return path, save_teacher(file, path)


@pytest.fixture
def taught(file, theirs):
    """``taught(*specs)``: a student of the teacher."""
    return lambda *specs, more=(): student(read(file, *taught_by(theirs[0]), *losses(*specs), *more))


@torch.no_grad()
def said_by(net: SceneKDStudent, batch: torch.Tensor) -> torch.Tensor:
    """A teacher's logits in the student's classes: seen at its own size, normalised its own way, in the other order."""
    seen = F.interpolate(batch, (TEACHER_SIZE, TEACHER_SIZE), mode="bilinear", align_corners=False)
    normalised = ((seen - net.pixel_mean) / net.pixel_std).contiguous(
        memory_format=torch.channels_last
    )  # as asked
    own = net.network(normalised)
    # plane 1 + ORDER[k] of the student's is plane 1 + k of the teacher's
    places = [0, *(1 + ORDER.index(k) for k in range(len(ORDER)))]
    return own[:, places]


# The teacher ----------------------------------------------------------------------------------------------------


def test_a_teacher_of_other_size_stride_and_order_of_classes(taught, theirs):
    """What it says is on its own grid of stride 8, in the student's classes; hinton compares at the image's size."""
    net = taught(HINTON)
    said = net.distiller.teacher.logits(images())
    assert said.shape == (2, 11, 6, 6)
    torch.testing.assert_close(said, said_by(theirs[1], images()))
    got = net(images(), masks())
    assert got.keys() == {"loss_hinton"}
    labels = torch.stack([t.sem_seg for t in masks()])
    own, said = (F.interpolate(x, (64, 64), mode="bilinear") for x in (net.logits(images()), said))
    torch.testing.assert_close(
        got["loss_hinton"], hinton_kd(own, said, temperature=2.0, alpha=0.5, labels=labels)
    )


def test_a_teacher_is_only_asked(taught):
    """In no state dict, no parameter of the student's; statistics and weights untouched by a step, though someone has
    put it into training mode."""
    net = taught(HINTON)
    teacher = net.distiller.teacher.net
    before = copy.deepcopy(teacher.state_dict())
    teacher.train()
    net.train()
    net(images(), masks())["loss_hinton"].backward()
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(name.startswith("network.") for name in net.state_dict())
    assert len(list(net.parameters())) == len(list(net.network.parameters()))


def test_joined_planes():
    """e^logits 1, 2, 3, 4 of background and three classes. The last two stand for the student's first: 3 + 4. Its
    second has none: e^−30 of the whole, 10. A plane that goes nowhere is left out of all but that."""
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0]).log().view(1, 4, 1, 1).expand(1, 4, 2, 3)
    got = join_planes(logits, [0, 0, 1, 1], 3)[0, :, 0, 0]
    ln = torch.tensor([3.0, 7.0, 10.0]).log()
    torch.testing.assert_close(got, ln - torch.tensor([0.0, 0.0, 30.0]))
    got = join_planes(logits, [0, -1, -1, 1], 3)[0, :, 1, 2]
    torch.testing.assert_close(got, torch.tensor([1.0, 4.0, 10.0]).log() - torch.tensor([0.0, 0.0, 30.0]))
    assert torch.equal(join_planes(logits, [2, 0, 3, 1], 4), logits[:, [1, 3, 0, 2]])


def test_a_class_map_joins_classes(file, theirs):
    """Where the student knows no kite, and the map calls it a bird, a bird's probability is the sum of both."""
    names = CLASSES[:-1]
    more = ("DATASETS.CLASSES", names, "TEACHER.SEGMENTATION.CLASS_MAP", (("kite", "bird"),))
    got = build_online(read(file, *taught_by(theirs[0]), *more)).logits(images()).softmax(1)
    whole = said_by(theirs[1], images()).softmax(1)
    expected = whole[:, :-1].clone()
    expected[:, 1 + names.index("bird")] += whole[:, -1]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_a_classifier_s_own_names_count(tmp_path):
    """A CIFAR ResNet with ImageNet's statistics and 10 classes in another order teaches the CNN with CIFAR's. A file
    that tells no names is taken to have the student's."""
    names = tuple("abcdefghij")
    cfg = get_cfg("fcn_kd")
    cfg.MODEL.FCN_KD.NETWORK, cfg.INPUT.SIZE, cfg.DATASETS.CLASSES = "cifar_resnet20", 32, names[::-1]
    teacher = save_network(cfg, tmp_path / "named.pth")
    torch.save(teacher.network.state_dict(), tmp_path / "bare.pth")
    config = tmp_path / "bare.yaml"
    config.write_text('SYSTEM: "fcn_kd"\nINPUT: {SIZE: 32}\nMODEL: {FCN_KD: {NETWORK: "cifar_resnet20"}}\n')
    cfg.MODEL.FCN_KD.NETWORK, cfg.DATASETS.CLASSES = "cifar_cnn5", names
    cfg.DISTILL.TEACHER, cfg.DISTILL.LOSSES = "online", [HINTON, {"TYPE": "dist"}, {"TYPE": "dkd"}]
    node = cfg.TEACHER.CLASSIFICATION
    node.TYPE, node.WEIGHTS = "scenekd", str(tmp_path / "named.pth")
    net = student(cfg)
    with torch.no_grad():
        normalised = (images(32) - teacher.pixel_mean) / teacher.pixel_std
        own = teacher.network(normalised.contiguous(memory_format=torch.channels_last))  # as it is asked
    torch.testing.assert_close(net.distiller.teacher.logits(images(32)), own.flip(1))
    assert not torch.allclose(teacher.pixel_mean, net.pixel_mean)
    # An image without a class learns from the teacher: KL of both, cross-entropy of the first alone.
    got = net(images(32), [target(class_label=3), target()])
    logits = net.logits(images(32))
    kl = hinton_kd(logits, own.flip(1), temperature=2.0, alpha=1.0)
    ce = F.cross_entropy(logits[:1], torch.tensor([3]))
    torch.testing.assert_close(got["loss_hinton"], 0.5 * kl + 0.5 * ce)
    assert got.keys() == {"loss_hinton", "loss_dist", "loss_dkd"}
    node.WEIGHTS, node.CONFIG = str(tmp_path / "bare.pth"), str(config)
    torch.testing.assert_close(student(cfg).distiller.teacher.logits(images(32)), own)
    node.WEIGHTS, node.CONFIG, node.CLASSES = str(tmp_path / "named.pth"), "", names[:9]
    with pytest.raises(UserError, match=r"10 classes, but 9 names; correct TEACHER.CLASSIFICATION.CLASSES"):
        student(cfg)


# Labels and teacher ---------------------------------------------------------------------------------------------


def test_images_without_a_mask_learn_from_the_teacher(taught, theirs):
    """KL over the labelled pixels of the first image and all of the second; cross-entropy over those of the first."""
    first = masks()[0]
    net = taught(HINTON)
    got = net(images(), [first, target()])["loss_hinton"]
    with torch.no_grad():
        own, said = net.logits(images()), said_by(theirs[1], images())
        own, said = (F.interpolate(x, (64, 64), mode="bilinear").double() for x in (own, said))
    p, q = (said / 2).log_softmax(1), (own / 2).log_softmax(1)
    divergence = (p.exp() * (p - q)).sum(1)
    counted = torch.ones(2, 64, 64, dtype=torch.bool)
    counted[0, :9] = False  # void
    kl = 4 * divergence[counted].mean()
    ce = F.cross_entropy(own[:1], first.sem_seg[None], ignore_index=255)
    assert got.item() == pytest.approx((0.5 * kl + 0.5 * ce).item(), rel=1e-4)


def test_padding_teaches_nothing(taught):
    """What an image without a mask does not show is left out: any other picture there gives the same loss, up to what
    the networks see across the border; none at all of it gives 0."""
    net = taught(PURE)
    hidden = target()
    hidden.soft_valid = torch.zeros(64, 64, dtype=torch.bool)
    shown = target()
    shown.soft_valid = torch.ones(64, 64, dtype=torch.bool)
    alone = net(images()[:1], [shown])["loss_hinton"]
    assert alone > 0.01
    assert net(images()[:1], [hidden])["loss_hinton"] == 0
    torch.testing.assert_close(net(images(), [shown, hidden])["loss_hinton"], alone, rtol=1e-4, atol=0)


def test_a_student_that_is_its_teacher(file):
    """KL 0, and no gradient of it."""
    cfg = read(file)
    path = file.parent / "same.pth"
    same = save_network(cfg, path)
    net = student(read(file, *taught_by(path), *losses(PURE)))
    net.load_state_dict(same.state_dict(), strict=False)
    loss = net(images(), masks())["loss_hinton"]
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert max(p.grad.abs().max().item() for p in net.network.parameters()) < 1e-6
    with torch.no_grad():
        net.network.classifier[-1].bias[0] += 1
    assert net(images(), masks())["loss_hinton"] > 1e-3


def test_all_void(taught):
    """Every loss on logits is 0 with a gradient of zeros; those of features, which see all positions, are finite."""
    net = taught(*EVERY)
    void = [target(torch.full((64, 64), 255)) for _ in range(2)]
    got = net(images(), void)
    assert got.keys() == {f"loss_{spec['TYPE']}" for spec in EVERY}
    on_features = {"loss_mgd", "loss_at"}
    for name, value in got.items():
        assert torch.isfinite(value) and (name in on_features or name == "loss_holistic" or value == 0), name
    sum(value for name, value in got.items() if name not in on_features).backward()
    for parameter in net.network.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec["TYPE"])
def test_every_loss_teaches(spec, taught):
    """By itself; the cross-entropy with the labels stands beside all but hinton, which brings it along."""
    net = taught(spec)
    got = net(images(), masks())
    assert got.keys() == {f"loss_{spec['TYPE']}"} | ({"loss_ce"} if spec["TYPE"] != "hinton" else set())
    got[f"loss_{spec['TYPE']}"].backward()
    assert net.network.backbone.conv1.weight.grad.abs().sum() > 0


def test_the_critic_of_holistic_takes_its_step(taught):
    """After the student's, once a batch; no optimizer of the student's has its parameters."""
    net = taught({"TYPE": "holistic", "WIDTH": 4, "SIZE": 16})
    critic = net.distiller.losses.parts["loss_holistic"].critic
    before = [p.clone() for p in critic.parameters()]
    assert not any(p.requires_grad for p in critic.parameters())
    net.distiller.begin_step(0)
    net(images(), masks())
    assert all(torch.equal(p, old) for p, old in zip(critic.parameters(), before))
    net.distiller.end_step(0)
    after = [p.clone() for p in critic.parameters()]
    assert not all(torch.equal(p, old) for p, old in zip(after, before))
    net.distiller.end_step(0)
    assert all(torch.equal(p, old) for p, old in zip(critic.parameters(), after))


def test_schedules_follow_the_step(taught):
    """Half of a cosine over 6 steps: half the weight."""
    net = taught({"TYPE": "pixel", "SCHEDULE": "cosine"})
    values = []
    for step in (0, 3):
        net.distiller.begin_step(step)
        values.append(net(images(), masks())["loss_pixel"].item())
    assert values[1] == pytest.approx(values[0] / 2)


def test_the_shipped_configurations():
    """The paper's α and T; the policy of fcn_kd.yaml is what a cached teacher needs."""
    cfg = read(BASE.parent / "fcn_kd.yaml", *_SMALL, "MODEL.WEIGHTS", "", "DISTILL.TEACHER", "cached")
    net = student(cfg)
    assert net.distiller.teacher is None and net.distiller.losses.has_label_term
    said = target(torch.zeros(64, 64).long())
    said.soft_seg, said.soft_valid = torch.zeros(21, 64, 64), torch.ones(64, 64, dtype=torch.bool)
    assert net(images(), [said, said])["loss_hinton"] > 0
    with pytest.raises(
        UserError, match="image x: the teacher's cache has nothing for it; run tools/cache_teacher.py"
    ):
        net(images(), [said, target()])
    for name in ("fcn_kd.yaml", "cifar_kd.yaml"):
        cfg = read(BASE.parent / name)
        assert cfg.DISTILL.TEACHER == "online"
        (entry,) = read_entries(cfg.DISTILL.LOSSES)
        assert (entry.kind, entry["ALPHA"], entry["TEMPERATURE"]) == ("hinton", 0.9, 20.0)
