"""Distillation losses of logits and features: closed forms, and what all of them share."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scenekd.losses.attention import attention_transfer
from scenekd.losses.channel_wise import channel_wise_kd
from scenekd.losses.correlation import correlation_kd
from scenekd.losses.decoupled import decoupled_kd
from scenekd.losses.distill import hinton_kd, pixel_wise_kd
from scenekd.losses.masked_generation import MaskedGeneration, generation_loss, kept_positions
from scenekd.losses.pair_wise import pair_wise_kd, similarity_distance


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels_of(*shape, classes=3, seed=0):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def dkd(student, teacher, valid=None, **options):
    """Decoupled distillation with void where not valid, for the tests of all losses."""
    labels = labels_of(*student.shape[:1], *student.shape[2:])
    if valid is not None:
        labels = labels.masked_fill(~valid, 255)
    return decoupled_kd(student, teacher, labels, **options)


# Losses of logits that take valid positions.
OF_LOGITS = {
    "pixel": pixel_wise_kd,
    "dkd": dkd,
    "dist": correlation_kd,
    "dist by image": lambda *a, **k: correlation_kd(*a, over="image", **k),
    "cwd": channel_wise_kd,
    "pair": lambda *a, **k: pair_wise_kd(*a, scale=1.0, **k),
}
OF_FEATURES = {"at": attention_transfer, "mgd": generation_loss}
ALL = OF_LOGITS | OF_FEATURES


# What all share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_learn_at_equality(name):
    """A divergence is 0; the cross-entropy of the pixel-wise loss is the teacher's entropy; no gradient either way."""
    student = rand(2, 3, 4, 6).requires_grad_()
    loss = ALL[name](student, student.detach().clone())
    loss.backward()
    p = student.detach().softmax(1)
    expected = -(p * p.log()).sum(1).mean().item() if name == "pixel" else 0
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", ALL)
def test_equality_in_single_precision(name):
    student = (20 * rand(2, 3, 4, 6)).float().requires_grad_()
    loss = ALL[name](student, student.detach().clone())
    loss.backward()
    assert student.grad.abs().max() < 1e-6
    assert name == "pixel" or abs(loss.item()) < 1e-6


@pytest.mark.parametrize("name", ALL)
def test_unchanged_by_image_size(name):
    """A map beside itself, and under itself, is a larger image of the same kind."""
    student, teacher = rand(2, 3, 4, 6), rand(2, 3, 4, 6, seed=1)
    loss = ALL[name]
    if name == "dkd":  # its labels are drawn by shape

        def loss(student, teacher):
            labels = labels_of(2, 4, 6).tile(1, student.shape[2] // 4, student.shape[3] // 6)
            return decoupled_kd(student, teacher, labels)

    torch.testing.assert_close(
        loss(student, teacher), loss(student.tile(1, 1, 2, 3), teacher.tile(1, 1, 2, 3))
    )


@pytest.mark.parametrize("name", ALL)
def test_gradcheck(name):
    teacher = rand(2, 3, 2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: ALL[name](s, teacher), rand(2, 3, 2, 3).requires_grad_())


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_the_teacher(name):
    """Computed in single precision; no gradient goes to the teacher."""
    student, teacher = (rand(2, 3, 4, 6, seed=i).half() for i in (0, 1))
    wanted = ALL[name](student.float(), teacher.float())
    student.requires_grad_()
    teacher.requires_grad_()
    loss = ALL[name](student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and teacher.grad is None and student.grad.isfinite().all()
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("name", ALL)
def test_mixed_precision_does_not_reach_inside(name):
    """Under autocast on single-precision maps: the value without it."""
    student, teacher = (rand(2, 3, 4, 6, seed=i).float() for i in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ALL[name](student, teacher)
    torch.testing.assert_close(found, ALL[name](student, teacher))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_void_is_not_seen(name):
    """Not its values, NaN even, and not in the gradient. Void columns are as if they were not there."""
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[:, :, 4:] = False
    student, teacher = rand(2, 3, 4, 6).requires_grad_(), rand(2, 3, 4, 6, seed=1)
    loss = OF_LOGITS[name](student, teacher, valid=valid)
    if name == "dkd":
        cut = decoupled_kd(student[..., :4], teacher[..., :4], labels_of(2, 4, 6)[..., :4])
    else:
        cut = OF_LOGITS[name](student[..., :4], teacher[..., :4])
    torch.testing.assert_close(loss, cut)
    teacher[..., 4:] = math.nan
    with torch.no_grad():
        student[..., 4:] = 1e9
    again = OF_LOGITS[name](student, teacher, valid=valid)
    again.backward()
    torch.testing.assert_close(again, cut)
    assert (student.grad[..., 4:] == 0).all() and student.grad[..., :4].abs().max() > 0


@pytest.mark.parametrize("name", OF_LOGITS)
def test_images_and_batches_of_void(name):
    """An image of void is left out; a batch of void is 0 with a gradient of zeros."""
    student, teacher = rand(2, 3, 4, 6).requires_grad_(), rand(2, 3, 4, 6, seed=1)
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[1] = False
    if name == "dkd":
        alone = decoupled_kd(student[:1], teacher[:1], labels_of(2, 4, 6)[:1])
    else:
        alone = OF_LOGITS[name](student[:1], teacher[:1])
    torch.testing.assert_close(OF_LOGITS[name](student, teacher, valid=valid), alone)
    loss = OF_LOGITS[name](student, teacher, valid=torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == 0 and (student.grad == 0).all()


# Pixel-wise -----------------------------------------------------------------------------------------------------


def test_pixel_wise_closed_form():
    # Teacher (ln 3, 0): (3/4, 1/4). Student (0, 0): (1/2, 1/2). −¾ ln ½ − ¼ ln ½ = ln 2.
    loss = pixel_wise_kd(torch.zeros(1, 2, 1, 1), torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1))
    assert loss.item() == pytest.approx(math.log(2))
    # Student (ln 3, 0): the entropy, −¾ ln ¾ − ¼ ln ¼ = 2 ln 2 − ¾ ln 3. Logits of whole images, too.
    same = torch.tensor([[math.log(3), 0.0]])
    assert pixel_wise_kd(same, same).item() == pytest.approx(2 * math.log(2) - 0.75 * math.log(3))


# DKD ------------------------------------------------------------------------------------------------------------


def test_decoupled_closed_form():
    # Label 0. Teacher (ln 4, ln 3, 0): (1/2, 3/8, 1/8), target ½, others (3/4, 1/4). Student (0, 0, 0): thirds,
    # target 1/3, others (1/2, 1/2). TCKD = ½ ln (½ / ⅓) + ½ ln (½ / ⅔) = ½ ln (9/8).
    # NCKD = ¾ ln (¾ / ½) + ¼ ln (¼ / ½) = ¾ ln (3/2) − ¼ ln 2. T = 1.
    teacher, student = torch.tensor([[math.log(4), math.log(3), 0.0]]), torch.zeros(1, 3)
    of_target, of_others = 0.5 * math.log(9 / 8), 0.75 * math.log(1.5) - 0.25 * math.log(2)
    loss = decoupled_kd(student, teacher, torch.tensor([0]), temperature=1, alpha=2, beta=5)
    assert loss.item() == pytest.approx(2 * of_target + 5 * of_others, rel=1e-5)
    # T = 2 with twice the logits is the same distribution, times T² = 4.
    loss = decoupled_kd(student, 2 * teacher, torch.tensor([0]), temperature=2, alpha=2, beta=5)
    assert loss.item() == pytest.approx(4 * (2 * of_target + 5 * of_others), rel=1e-5)


def test_decoupled_parts_make_hintons_divergence():
    # The paper's equation 7: KL = TCKD + (1 − p_teacher) · NCKD, position by position; here with one position.
    student, teacher = rand(1, 5), rand(1, 5, seed=1)
    labels = torch.tensor([3])
    options = {"labels": labels, "temperature": 3.0}
    others = 1 - (teacher / 3).softmax(1)[0, 3].item()
    loss = decoupled_kd(student, teacher, alpha=1, beta=others, **options)
    torch.testing.assert_close(loss, hinton_kd(student, teacher, temperature=3, alpha=1))


def test_decoupled_with_two_classes_and_certainty():
    """With two classes nothing is left among the others; a certain teacher and student give finite numbers."""
    student, teacher = rand(2, 2), rand(2, 2, seed=1)
    labels = torch.tensor([0, 1])
    both = decoupled_kd(student, teacher, labels, temperature=2, alpha=1, beta=8)
    torch.testing.assert_close(both, hinton_kd(student, teacher, temperature=2, alpha=1))
    student = (1000 * torch.eye(3)).requires_grad_()
    loss = decoupled_kd(student, 1000 * torch.eye(3).roll(1, 0), torch.tensor([0, 1, 2]), temperature=1)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


# DIST -----------------------------------------------------------------------------------------------------------


def test_correlation_against_pearson():
    """torch's corrcoef as the oracle, over classes and over positions."""
    student, teacher = rand(2, 4, 3, 5), rand(2, 4, 3, 5, seed=1)

    def rows(logits):
        return (logits / 2).softmax(1).permute(0, 2, 3, 1).reshape(-1, 4)

    def apart(a, b):
        return torch.stack([1 - torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(a, b)]).mean()

    p, q = rows(student), rows(teacher)
    loss = correlation_kd(student, teacher, temperature=2, beta=3, gamma=5)
    torch.testing.assert_close(loss, 4 * (3 * apart(p, q) + 5 * apart(p.T, q.T)))
    by_image = correlation_kd(student, teacher, temperature=2, beta=3, gamma=5, over="image")
    intra = (apart(p[:15].T, q[:15].T) + apart(p[15:].T, q[15:].T)) / 2
    torch.testing.assert_close(by_image, 4 * (3 * apart(p, q) + 5 * intra))


def test_correlation_closed_form():
    # Two classes: probabilities (p, 1 − p) centred are ±(p − ½), so r between classes is the sign: here −1, 1 − r = 2.
    # Over one position nothing varies: both are zero vectors, 0. β = 3: 6.
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert correlation_kd(student, teacher, beta=3, gamma=7).item() == pytest.approx(6)
    # Three classes, three images; a teacher that orders alike, but by softer steps, is near; the student's own scale
    # of probabilities does not matter, so it is no divergence of distributions.
    student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 0.5, 1.0]])
    assert correlation_kd(student, teacher).item() < 0.05 < pixel_wise_kd(student, teacher).item()


def test_where_nothing_varies():
    # A uniform student against a teacher that varies: ½ for classes, and ½ for each of two constant rows of positions.
    student, teacher = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert correlation_kd(student, teacher).item() == pytest.approx(0.5 + 0.5)
    assert correlation_kd(student, student).item() == 0


# CWD ------------------------------------------------------------------------------------------------------------


def test_channel_wise_closed_form():
    # Two channels of two positions, T = 2. Teacher's channel 0: (2 ln 3, 0) / 2 → (3/4, 1/4); student's: uniform.
    # KL = ¾ ln (3/2) + ¼ ln (1/2). Channel 1 is the same in both. T² / C = 2.
    teacher = torch.tensor([[[[2 * math.log(3), 0.0]], [[1.0, 5.0]]]])
    student = torch.tensor([[[[7.0, 7.0]], [[2.0, 6.0]]]])  # a constant added to a channel is not seen
    loss = channel_wise_kd(student, teacher, temperature=2)
    assert loss.item() == pytest.approx(2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)


def test_channel_wise_against_kl_div():
    """torch's own function as the oracle, value and gradient."""
    student, teacher = rand(2, 3, 4, 5).requires_grad_(), rand(2, 3, 4, 5, seed=1)
    rows = [maps.reshape(6, 20) / 4 for maps in (student, teacher)]
    expected = 16 * F.kl_div(
        rows[0].log_softmax(1), rows[1].log_softmax(1), log_target=True, reduction="batchmean"
    )
    loss = channel_wise_kd(student, teacher)
    torch.testing.assert_close(loss, expected)
    wanted, got = (torch.autograd.grad(each, student)[0] for each in (expected, 3 * loss))
    torch.testing.assert_close(got, 3 * wanted)


# Pair-wise ------------------------------------------------------------------------------------------------------


def test_pair_wise_closed_form():
    # Two nodes. Student's vectors (1, 0) and (0, 2): cosine 0. Teacher's (3, 0) and (5, 0): cosine 1. The matrices
    # differ by 1 in two of four places: 2 / 4.
    student = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    teacher = torch.tensor([[[[3.0, 5.0]], [[0.0, 0.0]]]])
    assert pair_wise_kd(student, teacher, scale=1).item() == pytest.approx(0.5)
    # More channels than nodes or fewer, the student's or the teacher's: zeros change no similarity.
    wide = F.pad(teacher, (0, 0, 0, 0, 0, 3))
    assert pair_wise_kd(student, wide, scale=1).item() == pytest.approx(0.5)
    assert pair_wise_kd(F.pad(student, (0, 0, 0, 0, 0, 3)), teacher, scale=1).item() == pytest.approx(0.5)


@pytest.mark.parametrize("channels", [(3, 3), (3, 5), (5, 3), (30, 3)])
def test_small_matrices_give_the_direct_form(channels):
    """‖A Aᵀ − B Bᵀ‖² and its gradients for A and B, with (M, M) matrices written out: 12 nodes."""
    a, b = (rand(2, 12, c, seed=i).requires_grad_() for i, c in enumerate(channels))
    direct = (a @ a.mT - b @ b.mT).square().sum(dim=(1, 2))
    found = similarity_distance(a, b)
    torch.testing.assert_close(found, direct)
    for wanted, got in zip(*(torch.autograd.grad(each.sum(), (a, b)) for each in (direct, found))):
        torch.testing.assert_close(got, wanted)


def test_small_matrices_are_exact_near_equality():
    # At distance 1e-4 the direct form in double precision is the oracle; ‖AᵀA‖² + ‖BᵀB‖² − 2 ‖AᵀB‖² in single precision
    # would lose it: each term is about 1e4 and has an error of about 1e-3, the result is about 1e-5.
    a = F.normalize(rand(1, 300, 8), dim=2)
    b = F.normalize(a + 1e-4 * rand(1, 300, 8, seed=1), dim=2)
    direct = (a @ a.mT - b @ b.mT).square().sum().item()
    assert direct < 1e-2
    assert similarity_distance(a.float(), b.float()).item() == pytest.approx(direct, rel=1e-2)


def test_pooling_by_scale_and_by_grid():
    """A window of 2 × 2 at ½; an odd map has smaller windows at its end; grid 2 has four nodes at any size."""
    student, teacher = rand(1, 3, 5, 7), rand(1, 4, 5, 7, seed=1)
    pooled = [F.max_pool2d(maps, 2, ceil_mode=True) for maps in (student, teacher)]
    assert pooled[0].shape[2:] == (3, 4)
    torch.testing.assert_close(pair_wise_kd(student, teacher), pair_wise_kd(*pooled, scale=1))
    quarters = [F.adaptive_max_pool2d(maps, 2) for maps in (student, teacher)]
    torch.testing.assert_close(pair_wise_kd(student, teacher, grid=2), pair_wise_kd(*quarters, scale=1))


def test_pair_wise_nodes_of_some_void():
    """A node counts with the valid positions of its window: the maximum over these."""
    student, teacher = rand(1, 3, 2, 4), rand(1, 3, 2, 4, seed=1)
    valid = torch.tensor([[[True, False, True, True], [False, False, True, True]]])
    nodes = [
        torch.stack([maps[0, :, 0, 0], maps[0, :, :, 2:].flatten(1).amax(1)], dim=1)[None, :, None]
        for maps in (student, teacher)
    ]
    torch.testing.assert_close(pair_wise_kd(student, teacher, valid=valid), pair_wise_kd(*nodes, scale=1))


# AT -------------------------------------------------------------------------------------------------------------


def test_attention_closed_form():
    # Student: squares over channels (9 + 16, 0) → (1, 0). Teacher: (0, 4) → (0, 1), whose squared distance is 2; and
    # (1, 1) → (1, 1) / √2: (1 − 1/√2)² + ½ = 2 − √2.
    student = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    assert attention_transfer(student, torch.tensor([[[[0.0, 2.0]]]])).item() == pytest.approx(2)
    even = attention_transfer(student, torch.tensor([[[[1.0, -1.0]]]]))
    assert even.item() == pytest.approx(2 - math.sqrt(2), rel=1e-6)


# MGD ------------------------------------------------------------------------------------------------------------


def test_generation_closed_form():
    # Generated 1 everywhere against (3, 0): (4 + 1) / 2, whatever the size.
    teacher = torch.tensor([[[[3.0, 0.0]]]])
    assert generation_loss(torch.ones(1, 1, 1, 2), teacher).item() == pytest.approx(2.5)


def test_masks_follow_from_seed_iteration_and_rank():
    """Not from torch's state, which they leave as it is; another iteration, rank, use or seed masks otherwise."""
    size, options = (2, 40, 50), {"seed": 1, "iteration": 3, "rank": 0}
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    kept = kept_positions(size, 0.25, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(kept_positions(size, 0.25, **options), kept)
    for other in ({"seed": 2}, {"iteration": 4}, {"rank": 1}, {"use": "mgd_2"}):
        assert not torch.equal(kept_positions(size, 0.25, **{**options, **other}), kept)
    # 4000 draws, standard deviation √(¼ · ¾ / 4000) = .007.
    assert kept.shape == (2, 1, 40, 50) and kept.mean().item() == pytest.approx(0.75, abs=0.03)
    assert (kept_positions(size, 0.0, **options) == 1).all()


def test_masked_features_are_not_used():
    """The loss has no gradient for a masked position, and some for every other."""
    module = MaskedGeneration(3, 4, seed=1, mask_ratio=0.5)
    student = rand(1, 3, 6, 6).float().requires_grad_()
    module(student, rand(1, 4, 6, 6, seed=1).float(), iteration=2).backward()
    kept = kept_positions((1, 6, 6), 0.5, seed=1, iteration=2, rank=0, use="mgd")
    assert torch.equal(student.grad.abs().sum(1, keepdim=True) > 0, kept > 0)
    assert all(p.grad.abs().max() > 0 for p in module.parameters())


def test_masked_generation_learns_to_generate():
    """The module fits one pair of features; the step is deterministic."""
    torch.manual_seed(0)
    module = MaskedGeneration(3, 4)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    student, teacher = rand(2, 3, 8, 8).float(), rand(2, 4, 8, 8, seed=1).float() / 4 + 1
    losses = []
    for iteration in range(60):
        loss = module(student, teacher, iteration=iteration)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# Misuse ---------------------------------------------------------------------------------------------------------

MAPS = torch.zeros(1, 3, 2, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pixel_wise_kd(MAPS, MAPS[:, :2]),
        lambda: pixel_wise_kd(MAPS, MAPS, valid=torch.ones(1, 3, 3, dtype=torch.bool)),
        lambda: decoupled_kd(MAPS, MAPS, labels_of(1, 2, 2), temperature=0),
        lambda: decoupled_kd(MAPS, MAPS, labels_of(1, 2, 2), alpha=-1),
        lambda: decoupled_kd(MAPS, MAPS, labels_of(1, 2, 2), beta=math.nan),
        lambda: decoupled_kd(MAPS, MAPS, 7 + labels_of(1, 2, 2)),
        lambda: decoupled_kd(MAPS[:, :1], MAPS[:, :1], 0 * labels_of(1, 2, 2)),
        lambda: correlation_kd(MAPS, MAPS, temperature=-1),
        lambda: correlation_kd(MAPS, MAPS, gamma=-1),
        lambda: correlation_kd(MAPS, MAPS, over="pixel"),
        lambda: channel_wise_kd(MAPS, MAPS, temperature=0),
        lambda: channel_wise_kd(MAPS, MAPS[..., :1]),
        lambda: channel_wise_kd(MAPS[:, :, 0, 0], MAPS[:, :, 0, 0]),
        lambda: pair_wise_kd(MAPS, MAPS, scale=0),
        lambda: pair_wise_kd(MAPS, MAPS, scale=2),
        lambda: pair_wise_kd(MAPS, MAPS, grid=-1),
        lambda: pair_wise_kd(MAPS, MAPS[..., :1]),
        lambda: pair_wise_kd(MAPS[:, :, 0], MAPS[:, :, 0]),
        lambda: attention_transfer(MAPS, MAPS[..., :1]),
        lambda: attention_transfer(MAPS[:, :, 0], MAPS[:, :, 0]),
        lambda: generation_loss(MAPS, MAPS[..., :1]),
        lambda: MaskedGeneration(3, 3, mask_ratio=1.0),
    ],
)
def test_misuse(call):
    with pytest.raises(ValueError):
        call()
