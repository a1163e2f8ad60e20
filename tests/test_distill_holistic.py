"""Holistic distillation: the critic, its penalty, and the protocol between its steps and the student's."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from scenekd.losses.critic import Critic, SelfAttention, critic_images, distance, gradient_penalty
from scenekd.losses.holistic import HolisticLoss
from scenekd.sampling import iteration_generator


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """D(Q | I) = Σ w · Q + Σ I."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, maps, images):
        return (maps * self.weight).flatten(1).sum(1) + images.flatten(1).sum(1)


def build(**options):
    torch.manual_seed(0)
    return HolisticLoss(3, width=4, **options)


def batch(seed=0):
    """Logits of student and teacher, and images."""
    return rand(2, 3, 8, 8, seed=seed), rand(2, 3, 8, 8, seed=seed + 1), 255 * rand(2, 3, 32, 32).sigmoid()


def test_distance_and_penalty_closed_form():
    # D sums 2 · Q over 1 class and 1 × 4 positions. Student .5, teacher .75 everywhere: 4 · 2 · (.75 − .5) = 2, the
    # image the same in both. ∇D is 2 in 4 places, of length 4, so the penalty is (4 − 1)² = 9, wherever it is taken.
    critic, images = Linear(torch.tensor(2.0)), rand(2, 3, 1, 4)
    student, teacher = torch.full((2, 1, 1, 4), 0.5), torch.full((2, 1, 1, 4), 0.75)
    assert distance(critic, student, teacher, images).item() == pytest.approx(2, abs=1e-5)
    assert distance(critic, student, student, images).item() == 0
    penalty = gradient_penalty(critic, student, teacher, images, torch.tensor([0.2, 0.7]))
    assert penalty.item() == pytest.approx(9, rel=1e-5)


def test_gradients_of_critic_and_penalty():
    """In double precision: the distance for the student's map, the penalty for the critic's own weights, which takes
    second derivatives of every layer."""
    torch.manual_seed(0)
    critic = Critic(2, width=2).double()
    for module in critic.modules():
        if isinstance(module, SelfAttention):
            nn.init.constant_(module.gamma, 0.5)
    student, teacher = (rand(1, 2, 4, 5, seed=i).double().softmax(1) for i in (0, 1))
    images, epsilon = rand(1, 3, 4, 5).double(), torch.tensor([0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: distance(critic, s, teacher, images), student.clone().requires_grad_()
    )
    weights = list(critic.parameters())

    def penalty(*_):
        return gradient_penalty(critic, student, teacher, images, epsilon)

    assert torch.autograd.gradcheck(penalty, weights, fast_mode=True)


def test_attention_starts_as_nothing():
    # γ = 0 gives the input; γ = 1 adds a mean of values, here of one channel with weights of 1 and equal positions.
    layer, maps = SelfAttention(1), torch.tensor([[[[1.0, 3.0]]]])
    assert torch.equal(layer(maps), maps)
    for part in (layer.query, layer.key):
        nn.init.zeros_(part.weight)  # all positions are alike to it
    nn.init.ones_(layer.value.weight)
    nn.init.zeros_(layer.value.bias)
    nn.init.ones_(layer.gamma)
    assert torch.equal(layer(maps), maps + 2)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (64, 48)])
def test_maps_of_any_size(size):
    loss = build(size=16)
    logits = [rand(2, 3, *size, seed=i).requires_grad_() for i in (0, 1)]
    value = loss(*logits, 255 * torch.rand(2, 3, 40, 30))
    value.backward()
    assert value.ndim == 0 and logits[0].grad.abs().max() > 0 and logits[1].grad is None
    assert max(loss._batch[0].shape[2:]) <= 16


def test_images_reach_the_critic():
    """In −1…1, at the size of its maps; another image is another score."""
    images = torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    seen = critic_images(images, (2, 3))
    assert seen.shape == (1, 3, 2, 3) and seen[0, :, 0, 0].tolist() == [-1, 0, 1]
    loss, (student, teacher, images) = build(), batch()
    assert loss(student, teacher, images).item() != loss(student, teacher, 255 - images).item()


def test_the_students_step_leaves_the_critic_alone():
    """The critic's parameters take no gradient in it, and no optimizer that heeds requires_grad gets them."""
    loss, (student, teacher, images) = build(), batch()
    student.requires_grad_()
    loss(student, teacher, images).backward()
    assert student.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in loss.parameters())


def test_the_critics_step():
    """It trains on the batch of the last forward pass alone, once, and lets it go; the student takes no gradient."""
    loss, (student, teacher, images) = build(), batch()
    student.requires_grad_()
    before = copy.deepcopy(loss.state_dict())
    assert loss.step(0) is None and loss.steps == 0
    loss(student, teacher, images)
    assert loss.waiting
    assert loss.step(0).isfinite()
    assert not loss.waiting and loss._batch is None and student.grad is None
    after = copy.deepcopy(loss.state_dict())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed >= {"critic.layers.0.weight", "steps", "second"}
    assert loss.step(0) is None
    assert all(torch.equal(after[name], value) for name, value in loss.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in loss.parameters())
    loss.eval()(student, teacher, images)  # a look at the loss does not train
    assert not loss.waiting


def test_the_critics_optimizer_is_adam():
    """torch's, with the betas of WGAN-GP, fed the same gradients, as the oracle."""
    loss = build(lr=1e-2, seed=7)
    peer = copy.deepcopy(loss)
    peer.critic.requires_grad_(True)
    optimizer = torch.optim.Adam(peer.critic.parameters(), lr=1e-2, betas=(0.0, 0.9), eps=1e-8)
    for iteration in range(4):
        student, teacher, images = batch(seed=2 * iteration)
        loss(student, teacher, images)
        loss.step(iteration, rank=3)
        maps = student.softmax(1), teacher.softmax(1), critic_images(images, (8, 8))
        epsilon = torch.rand(2, generator=iteration_generator(7, iteration, 3, "holistic"))
        value = 10 * gradient_penalty(peer.critic, *maps, epsilon) - distance(peer.critic, *maps)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    for ours, theirs in zip(loss.critic.parameters(), peer.critic.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_resumed_critic_equals_an_uninterrupted_one():
    """Its optimizer's state is in the state dict."""
    loss = build(lr=1e-2)
    for iteration in range(4):
        if iteration == 2:
            resumed = HolisticLoss(3, width=4, lr=1e-2)
            resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
        for each in [loss] if iteration < 2 else [loss, resumed]:
            each(*batch(seed=iteration))
            each.step(iteration)
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, loss.state_dict()[name]), name


def test_critic_and_student_play():
    """The critic tells two fixed sets of maps apart; a student that follows it then comes nearer to its teacher."""
    loss, (student, teacher, images) = build(lr=1e-2), batch()
    teacher = 3 * teacher
    first = loss(student, teacher, images).item()
    for iteration in range(25):
        apart = loss(student, teacher, images).item()
        loss.step(iteration)
    assert apart > first + 0.05
    student = student.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(20):
        value = loss(student, teacher, images)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < apart - 0.05


def test_void_is_not_seen():
    loss, (student, teacher, images) = build(), batch()
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[:, :, 5:] = False
    wanted = loss(student, teacher, images, valid=valid)
    student[..., 5:], teacher[..., 5:] = 1e9, math.nan
    student.requires_grad_()
    value = loss(student, teacher, images, valid=valid)
    value.backward()
    torch.testing.assert_close(value, wanted)
    assert (student.grad[..., 5:] == 0).all() and student.grad.abs().max() > 0
    # A batch of void: no loss, and a step without anything to learn from.
    student.grad = None
    before = copy.deepcopy(loss.critic.state_dict())
    nothing = loss(student, teacher, images, valid=torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0 and (student.grad == 0).all() and loss.step(0) is None
    assert all(torch.equal(before[name], value) for name, value in loss.critic.state_dict().items())


def _two_critics(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    loss = build(lr=1e-2)
    for iteration in range(3):
        student, teacher, images = batch(seed=2 * iteration + 10 * rank)
        # In one iteration one process sees void alone; it steps with the other all the same.
        valid = torch.full((2, 8, 8), not (rank == 1 and iteration == 1))
        loss(student, teacher, images, valid=valid)
        loss.step(iteration, rank)
    numbers = torch.cat([value.flatten().double() for value in loss.state_dict().values()])
    other = numbers.clone()
    dist.broadcast(other, 0)
    assert torch.equal(numbers, other) and loss.steps == 3
    dist.destroy_process_group()


def test_two_processes_keep_one_critic(tmp_path):
    """On different batches; optimizer state included."""
    torch.multiprocessing.spawn(_two_critics, args=(str(tmp_path),), nprocs=2)


@pytest.mark.parametrize("option", [{"penalty": -1}, {"lr": 0}, {"width": 0}, {"size": 0}])
def test_misuse(option):
    with pytest.raises(ValueError):
        HolisticLoss(3, **option)


def test_misuse_of_shapes():
    loss, (student, teacher, images) = build(), batch()
    for call in (
        (student, teacher[:, :2], images),
        (student, teacher, images[:1]),
        (student[0], teacher[0], images),
    ):
        with pytest.raises(ValueError):
            loss(*call)
