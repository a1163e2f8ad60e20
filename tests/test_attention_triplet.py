"""Attention maps and the attention triplet loss by hand; gradients in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scenekd.losses.attention_maps import (
    Look,
    channel_weights,
    class_attention,
    last_linear,
    look_of,
    top_wrong_class,
)
from scenekd.losses.attention_triplet import AttentionTripletLoss, triplet_distances, unit_maps


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A convolution, its spatial mean, a linear head; or, ``deep``, something else between."""

    def __init__(self, deep=False, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.deep = nn.Sequential(nn.Conv2d(6, 6, 2), nn.Tanh()) if deep else nn.Identity()
        self.head = nn.Linear(6, classes)

    def look(self, images):
        features = self.conv(images).relu()
        return features, self.head(self.deep(features).mean(dim=(2, 3)))


def look(net, images):
    return look_of(*net.look(images), last_linear(net))


def test_maps_by_hand():
    # Two channels over two pixels, h · w = 2. Class 0 has weights (2, −4): α = (1, −2).
    features = torch.tensor([[[[3.0, 1]], [[1.0, 2]]]])
    seen = Look(features, torch.zeros(1, 2), torch.tensor([[2.0, -4], [0, 6]]))
    label = torch.tensor([0])
    # Grad-CAM: max(0, 3 − 2), max(0, 1 − 4). Activation: 1 · 3², 1 · 1², without the channel that speaks against.
    assert class_attention(seen, label).tolist() == [[[1, 0]]]
    assert class_attention(seen, label, kind="activation").tolist() == [[[9, 1]]]
    # Class 1: α = (0, 3): 3 · 1, 3 · 2, and 3 · 1², 3 · 2².
    assert class_attention(seen, label + 1).tolist() == [[[3, 6]]]
    assert class_attention(seen, label + 1, kind="activation").tolist() == [[[3, 12]]]
    assert top_wrong_class(torch.tensor([[3.0, 2, 1], [3, 2, 1]]), torch.tensor([0, 2])).tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["grad_cam", "activation"])
def test_a_linear_head_needs_no_backward_pass(kind):
    """Maps from its weights are those of autograd, and so are all gradients of a loss of them, the head's too."""
    net, images, labels = Net().double(), rand(5, 3, 7, 6), torch.tensor([0, 3, 1, 1, 2])
    found = []
    for exact in (True, False):
        seen = look(net, images)
        assert seen.head is net.head.weight
        if not exact:
            seen = Look(seen.features, seen.logits)
        maps = class_attention(seen, labels, kind=kind, create_graph=True)
        loss = (unit_maps(maps) * rand(5, 42, seed=1)).sum()
        found.append((maps, *torch.autograd.grad(loss, [net.conv.weight, net.head.weight])))
    for exact, wanted in zip(*found):
        torch.testing.assert_close(exact, wanted, rtol=1e-6, atol=1e-12)
    assert found[0][0].abs().max() > 0


def test_no_gradient_is_asked_for(monkeypatch):
    net, images, labels = Net(), rand(2, 3, 5, 5).float(), torch.tensor([0, 1])
    teacher = Look(rand(2, 6, 5, 5, seed=4).abs().float(), rand(2, 4).float(), net.head.weight.detach().abs())
    loss = AttentionTripletLoss(margin=2.0)  # the hinge is open

    def refuse(*args, **kwargs):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    loss(look(net, images), teacher, labels).loss.backward()
    assert net.conv.weight.grad.abs().max() > 0
    with pytest.raises(AssertionError, match="a backward pass"):
        loss(look(Net(deep=True), images), teacher, labels)


def test_any_other_head_takes_it():
    net, images, labels = Net(deep=True).double(), rand(2, 3, 5, 5), torch.tensor([1, 0])
    seen = look(net, images)
    assert seen.head is None
    # By finite differences: α_d is the mean over the map of the change of the logit with a cell of channel d, so the
    # change when all cells of the channel grow by ε is h · w · α_d · ε.
    alpha = channel_weights(seen, labels)
    for d in range(6):
        moved = seen.features.detach().clone()
        moved[:, d] += 1e-6
        logits = net.head(net.deep(moved).mean(dim=(2, 3)))
        change = (logits - seen.logits).gather(1, labels[:, None])[:, 0] / 1e-6
        torch.testing.assert_close(change, 25 * alpha[:, d], rtol=1e-4, atol=1e-6)
    # A layer of another size than the features is no head of theirs, nor is one after a dropout.
    features, logits = Net().look(rand(2, 3, 5, 5).float())
    assert look_of(features, logits, nn.Linear(3, 4)).head is None
    assert look_of(features, logits * 1.5, Net().head).head is None
    assert last_linear(nn.Conv2d(1, 1, 1)) is None


LEFT, RIGHT, BOTH = ([[[1.0, 0]]], [[[0.0, 1]]], [[[1.0, 1]]])


@pytest.mark.parametrize(
    ("distance", "same", "apart", "between"),
    [
        # Unit vectors at 0°, 90° and 45°: ‖a − b‖² = 2 − 2 cos.
        ("l2_squared", 0, 2, 2 - math.sqrt(2)),
        ("l2", 0, math.sqrt(2), math.sqrt(2 - math.sqrt(2))),
        ("cosine", 0, 1, 1 - math.sqrt(0.5)),
    ],
)
def test_distances(distance, same, apart, between):
    left, right, both = (torch.tensor(maps) for maps in (LEFT, RIGHT, BOTH))
    for positive, negative, wanted in ((7 * left, right, (same, apart)), (both, 3 * left, (between, same))):
        *found, counted = triplet_distances(left, positive, negative, distance=distance)
        assert [value.item() for value in found] == pytest.approx(wanted)
        assert counted.all()


def triplet(anchor, positive, negative, **options):
    """The loss where the three maps are these: the label is class 0, the student's likeliest other one class 1."""
    student = Look(torch.stack([anchor, negative], dim=1), torch.tensor([[1.0, 0]]), 2 * torch.eye(2))
    teacher = Look(torch.stack([positive, negative], dim=1), torch.tensor([[1.0, 0]]), torch.eye(2))
    return AttentionTripletLoss(**options)(student, teacher, torch.tensor([0]))


def test_loss_by_hand():
    left, right, both = (torch.tensor(maps) for maps in (LEFT, RIGHT, BOTH))
    # d⁺ = 2 − √2, d⁻ = 2: 2 − √2 − 2 + m < 0: nothing to do at m = ½; at m = 2: 2 − √2.
    assert triplet(left, both, right).loss.item() == 0
    assert triplet(left, both, right, margin=2.0).loss.item() == pytest.approx(2 - math.sqrt(2))
    # The student looks at the same place for both classes, d⁻ = 0, and not where the teacher does, d⁺ = 2.
    found = triplet(left, right, left, margin=0.5, weight=3.0)
    assert found.loss.item() == pytest.approx(3 * 2.5)
    assert (found.positive.item(), found.negative.item()) == pytest.approx((2, 0))
    # All three the same: the margin is what is left.
    assert triplet(both, both, both, margin=0.7).loss.item() == pytest.approx(0.7)


def test_sizes_meet_at_the_larger():
    # The teacher's map of 1 × 4 with the student's shape, which is (1, 0) enlarged: bilinear 1, ¾, ¼, 0.
    left = torch.tensor(LEFT)
    positive = torch.tensor([[[1.0, 0.75, 0.25, 0]]])
    near, far, _ = triplet_distances(left, positive, left)
    assert (near.item(), far.item()) == pytest.approx((0, 0), abs=1e-7)
    near, _, _ = triplet_distances(F.interpolate(left[:, None], (1, 4))[:, 0], left, torch.zeros(1, 1, 4))
    # (1, 1, 0, 0)/√2 against (1, ¾, ¼, 0)/√1.625: cos = 1.75/√3.25
    assert near.item() == pytest.approx(2 - 2 * 1.75 / math.sqrt(3.25))


def test_zero_maps():
    left, nothing = torch.tensor(LEFT), torch.zeros(1, 1, 2)
    # A negative of zeros is at distance 1: 0 − 1 + m.
    assert triplet(left, left, nothing, margin=1.5).loss.item() == pytest.approx(0.5)
    # Anchor or positive of zeros: nothing is counted, and the gradient is 0, not NaN.
    for anchor, positive in ((nothing, left), (left, nothing), (1e-12 * left, left)):
        anchor = anchor.clone().requires_grad_()
        found = triplet(anchor, positive, left, margin=1.5)
        found.loss.backward()
        assert found.loss.item() == 0 and not found.counted.any()
        assert torch.equal(anchor.grad, torch.zeros_like(anchor))


def test_mean_is_over_those_that_count():
    """One image of three has no teacher's map: the loss is the mean of the other two."""
    net, images, labels = Net().double(), rand(3, 3, 6, 6), torch.tensor([0, 1, 2])
    teacher = Look(rand(3, 6, 6, 6, seed=4).abs(), rand(3, 4), rand(4, 6, seed=5).abs())
    teacher.features[1] = 0
    found = AttentionTripletLoss(margin=1.0)(look(net, images), teacher, labels)
    rows = torch.tensor([0, 2])
    kept = Look(teacher.features[rows], teacher.logits[rows], teacher.head)
    wanted = AttentionTripletLoss(margin=1.0)(look(net, images[rows]), kept, labels[rows])
    assert found.counted.tolist() == [True, False, True]
    torch.testing.assert_close(found.loss, wanted.loss)


@pytest.mark.parametrize("deep", [False, True])
def test_a_teacher_of_the_first_images(deep):
    """Replayed images, of which no teacher's map is kept, take no part: not in the value, and not in the gradient."""
    net, images, labels = Net(deep).double(), rand(5, 3, 6, 6), torch.tensor([0, 1, 2, 3, 0])
    teacher = Look(rand(3, 6, 6, 6, seed=4).abs(), rand(3, 4), rand(4, 6, seed=5).abs())
    found = []
    for seen in (5, 3):
        result = AttentionTripletLoss(margin=1.0)(look(net, images[:seen]), teacher, labels[:seen])
        found.append((result.loss, *torch.autograd.grad(result.loss, [net.conv.weight, net.head.weight])))
        assert len(result.agrees) == len(result.positive) == 3
    for more, alone in zip(*found):
        torch.testing.assert_close(more, alone)


def test_report_tells_apart_where_the_student_disagrees():
    left, right = torch.tensor(LEFT), torch.tensor(RIGHT)
    maps = torch.stack([left, right], dim=1).expand(3, -1, -1, -1)
    seen = Look(maps, torch.tensor([[1.0, 0], [0, 1], [1, 0]]), torch.eye(2))
    labels = torch.tensor([0, 0, 0])
    teacher = Look(torch.stack([maps[0], maps[0].flip(0), 0 * maps[0]]), seen.logits, torch.eye(2))
    found = AttentionTripletLoss()(seen, teacher, labels)
    assert found.agrees.tolist() == [True, False, True]
    # The second looks elsewhere than its teacher (2); the third's teacher looks nowhere.
    assert found.report() == {
        "counted": pytest.approx(2 / 3),
        "positive_agree": 0,
        "negative_agree": 2,
        "positive_differ": 2,
        "negative_differ": 2,
    }


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["grad_cam", "activation"])
@pytest.mark.parametrize("distance", ["l2", "l2_squared", "cosine"])
def test_gradient(deep, kind, distance):
    """Away from kinks (margin 2 keeps every hinge open), with respect to weights below and above the maps; with a
    deep head this differentiates a gradient again."""
    net, images, labels = Net(deep).double(), rand(3, 3, 5, 5), torch.tensor([0, 1, 2])
    teacher = Look(rand(3, 6, 4, 4, seed=4).abs(), rand(3, 4), rand(4, 6, seed=5).abs())
    loss = AttentionTripletLoss(kind=kind, distance=distance, margin=2.0)
    bias = net.conv.bias.detach() + 0.3  # most cells are active
    names = ("conv.weight", "head.weight")
    start = [dict(net.named_parameters())[name].detach().clone().requires_grad_() for name in names]

    def value(*weights):
        state = dict(zip(names, weights)) | {"conv.bias": bias}
        features, logits = torch.func.functional_call(
            _Looking(net), {f"net.{k}": v for k, v in state.items()}, images
        )
        head = None if deep else weights[1]
        found = loss(Look(features, logits, head), teacher, labels)
        assert found.counted.all()
        return found.loss

    assert torch.autograd.gradcheck(value, start, eps=1e-7, atol=1e-5)


class _Looking(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net.look(images)


def test_the_loss_moves_attention():
    """Ten steps bring the student's map to its teacher's and away from that of its other answer; the teacher's
    weights get no gradient."""
    student, teacher, images = Net(), Net(deep=True), rand(8, 3, 8, 8).float()
    torch.nn.init.normal_(teacher.conv.weight, generator=torch.manual_seed(3))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    loss, gaps = AttentionTripletLoss(margin=1.0), []
    for _ in range(10):
        said = look(teacher, images)
        labels = said.logits.argmax(dim=1)
        found = loss(look(student, images), said, labels)
        gaps.append((found.positive - found.negative)[found.counted].mean().item())
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    assert gaps[-1] < gaps[0] - 0.1
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AttentionTripletLoss(kind="cam"), "kind must be one of"),
        (lambda: AttentionTripletLoss(distance="l1"), "distance must be one of"),
        (lambda: AttentionTripletLoss(margin=-1), "must not be negative"),
        (lambda: AttentionTripletLoss(weight=math.nan), "must not be negative"),
        (
            lambda: AttentionTripletLoss()(_flat(3), _flat(2), torch.tensor([0])),
            "the same two or more classes",
        ),
        (
            lambda: AttentionTripletLoss()(_flat(1), _flat(1), torch.tensor([0])),
            "the same two or more classes",
        ),
        (
            lambda: AttentionTripletLoss()(_flat(2), _flat(2), torch.tensor([0, 1])),
            "there are 2 labels and 1 images",
        ),
        (lambda: class_attention(_flat(2), torch.tensor([0, 1])), "attention needs features"),
        (lambda: class_attention(_flat(2), torch.tensor([0]), kind="x"), "kind must be one of"),
        (lambda: triplet_distances(*[torch.ones(1, 1, 2)] * 3, distance="x"), "distance must be one of"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _flat(classes):
    return Look(torch.ones(1, 2, 3, 3), torch.zeros(1, classes), torch.ones(classes, 2))
