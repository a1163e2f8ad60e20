import math

import pytest
import torch
import torch.nn.functional as F

from scenekd.losses.distill import hinton_kd


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_closed_form():
    # Two classes. Teacher logits (2 ln 3, 0) at T = 2: (3/4, 1/4). Student (0, 0): (1/2, 1/2) at any T.
    # KL(teacher‖student) = ¾ ln(3/2) + ¼ ln(1/2); KL(student‖teacher) = ½ ln(2/3) + ½ ln 2 = ½ ln(4/3).
    # CE of (1/2, 1/2) = ln 2. α = .9: .9 · 4 · KL + .1 · ln 2.
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    labels = torch.tensor([1])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = hinton_kd(student, teacher, temperature=2, alpha=0.9, labels=labels)
    assert loss.item() == pytest.approx(3.6 * forward + 0.1 * math.log(2), rel=1e-5)
    reverse = 0.5 * math.log(4 / 3)
    loss = hinton_kd(student, teacher, temperature=2, alpha=0.9, labels=labels, direction="student_teacher")
    assert loss.item() == pytest.approx(3.6 * reverse + 0.1 * math.log(2), rel=1e-5)
    # Without labels only α · T² · KL.
    loss = hinton_kd(student, teacher, temperature=2, alpha=0.9)
    assert loss.item() == pytest.approx(3.6 * forward, rel=1e-5)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_zero_with_zero_gradient_at_equality(direction):
    student = rand(2, 5, 3, 4).requires_grad_()
    # The softmax does not see a constant added to all classes of a position.
    loss = hinton_kd(student, student.detach() + 3, temperature=4, alpha=1, direction=direction)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert student.grad.abs().max() < 1e-14


def test_ends_of_alpha():
    student, teacher = rand(2, 5, 3, 4), rand(2, 5, 3, 4, seed=1)
    labels = torch.randint(0, 5, (2, 3, 4), generator=torch.manual_seed(0))
    labels[0, 0] = 255
    torch.testing.assert_close(
        hinton_kd(student, teacher, temperature=3, alpha=0, labels=labels),
        F.cross_entropy(student, labels, ignore_index=255),
    )
    # torch's kl_div as the oracle: positions as rows, batchmean is then the sum over classes, mean over rows.
    rows = [x.permute(0, 2, 3, 1)[labels != 255] / 3 for x in (student, teacher)]
    expected = 9 * F.kl_div(
        rows[0].log_softmax(1), rows[1].log_softmax(1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(hinton_kd(student, teacher, temperature=3, alpha=1, labels=labels), expected)


def test_alpha_zero_is_plain_cross_entropy_to_the_bit():
    """In single precision, value and gradient; a teacher that says nothing sensible changes nothing."""
    labels = torch.randint(0, 5, (2, 7, 9), generator=torch.manual_seed(0))
    labels[0, :3] = 255
    found = []
    for kd in (True, False):
        student = rand(2, 5, 7, 9).float().requires_grad_()
        if kd:
            teacher = torch.full_like(student, math.nan).detach()
            loss = hinton_kd(student, teacher, temperature=20, alpha=0, labels=labels)
        else:
            loss = F.cross_entropy(student, labels, ignore_index=255)
        loss.backward()
        found.append((loss.detach(), student.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_reduction_over_elements():
    # torch's kl_div as the oracle: the mean over its elements is over N · C · positions.
    student, teacher = rand(2, 5, 3, 4), rand(2, 5, 3, 4, seed=1)
    options = {"temperature": 20.0, "alpha": 0.9}
    rows = [(logits / 20).log_softmax(1) for logits in (student, teacher)]
    expected = 0.9 * 400 * F.kl_div(*rows, log_target=True, reduction="none").mean()
    torch.testing.assert_close(hinton_kd(student, teacher, reduction="elements", **options), expected)
    # Over valid positions it is a fifth of the other; the cross-entropy stays.
    labels = torch.randint(0, 5, (2, 3, 4), generator=torch.manual_seed(0))
    labels[0, 0] = 255
    cross_entropy = 0.1 * F.cross_entropy(student, labels, ignore_index=255)
    by_positions, by_elements = (
        hinton_kd(student, teacher, labels=labels, reduction=r, **options) - cross_entropy
        for r in ("positions", "elements")
    )
    torch.testing.assert_close(by_elements, by_positions / 5)


def test_what_stands_in_void_may_be_anything():
    student, teacher = rand(1, 3, 2, 4).requires_grad_(), rand(1, 3, 2, 4, seed=1)
    labels = torch.tensor([[[0, 1, 2, 0], [255, 255, 255, 255]]])
    wanted = hinton_kd(student, teacher, temperature=2, alpha=0.5, labels=labels)
    teacher[:, :, 1] = math.nan
    loss = hinton_kd(student, teacher, temperature=2, alpha=0.5, labels=labels)
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    student, teacher = (rand(2, 5, 3, 4, seed=i).half() for i in (0, 1))
    labels = torch.randint(0, 5, (2, 3, 4), generator=torch.manual_seed(0))
    options = {"temperature": 20.0, "alpha": 0.9, "labels": labels}
    loss = hinton_kd(student, teacher, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, hinton_kd(student.float(), teacher.float(), **options))


def test_ignored_positions():
    student, teacher = rand(1, 3, 2, 4).requires_grad_(), rand(1, 3, 2, 4, seed=1)
    labels = torch.tensor([[[0, 1, 2, 0], [255, 255, 255, 255]]])
    options = {"temperature": 2.0, "alpha": 0.5}
    loss = hinton_kd(student, teacher, labels=labels, **options)
    cut = hinton_kd(student[:, :, :1], teacher[:, :, :1], labels=labels[:, :1], **options)
    torch.testing.assert_close(loss, cut)
    loss.backward()
    assert (student.grad[:, :, 1] == 0).all()
    # distill_ignored: the KL term, and it alone, sees the second row, too.
    everywhere = hinton_kd(student, teacher, labels=labels, distill_ignored=True, **options)
    expected = hinton_kd(student, teacher, **options) + 0.5 * F.cross_entropy(
        student, labels, ignore_index=255
    )
    torch.testing.assert_close(everywhere, expected)


def test_another_ignore_index():
    student, teacher = rand(2, 3), rand(2, 3, seed=1)
    loss = hinton_kd(
        student, teacher, temperature=1, alpha=0.5, labels=torch.tensor([1, -1]), ignore_index=-1
    )
    alone = hinton_kd(student[:1], teacher[:1], temperature=1, alpha=0.5, labels=torch.tensor([1]))
    torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize("distill_ignored", [False, True])
def test_everything_ignored_is_finite(distill_ignored):
    student = rand(1, 3, 2, 2).requires_grad_()
    labels = torch.full((1, 2, 2), 255)
    loss = hinton_kd(
        student, student.detach(), temperature=2, alpha=0.9, labels=labels, distill_ignored=distill_ignored
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert student.grad.abs().max() < 1e-15


def test_unchanged_by_image_size():
    student, teacher = rand(2, 3, 2, 5), rand(2, 3, 2, 5, seed=1)
    labels = torch.randint(0, 3, (2, 2, 5), generator=torch.manual_seed(0))
    labels[1, 1, 1:] = 255
    options = {"temperature": 20.0, "alpha": 0.9}
    torch.testing.assert_close(
        hinton_kd(student, teacher, labels=labels, **options),
        hinton_kd(student.tile(2, 1, 3, 4), teacher.tile(2, 1, 3, 4), labels=labels.tile(2, 3, 4), **options),
    )


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_gradcheck(direction):
    teacher, labels = rand(2, 3, 2, seed=1), torch.tensor([[0, 255], [2, 1]])

    def loss(student):
        return hinton_kd(student, teacher, temperature=2, alpha=0.7, labels=labels, direction=direction)

    assert torch.autograd.gradcheck(loss, rand(2, 3, 2).requires_grad_())


def test_no_gradient_into_the_teacher():
    teacher = rand(2, 3).requires_grad_()
    hinton_kd(rand(2, 3, seed=1).requires_grad_(), teacher, temperature=2, alpha=0.5).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"alpha": -0.1},
        {"alpha": 1.1},
        {"direction": "both"},
        {"reduction": "mean"},
        {"teacher": torch.zeros(2, 4)},
        {"labels": torch.zeros(3, dtype=torch.int64)},
        {"labels": torch.zeros(2)},
        {"labels": torch.tensor([0, 3])},
        {"labels": torch.tensor([0, -1])},
    ],
)
def test_misuse(change):
    arguments = {"teacher": torch.zeros(2, 3), "temperature": 1.0, "alpha": 0.5, **change}
    with pytest.raises(ValueError):
        hinton_kd(torch.zeros(2, 3), arguments.pop("teacher"), **arguments)
