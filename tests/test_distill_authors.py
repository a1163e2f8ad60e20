"""The losses against what their authors' published code computes, written out anew with numpy, in float64.

Where the two are normalised in other ways, the factor between them is what the docstrings and docs/components.md say.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from scenekd.losses.attention import attention_transfer
from scenekd.losses.channel_wise import channel_wise_kd
from scenekd.losses.correlation import correlation_kd
from scenekd.losses.critic import gradient_penalty
from scenekd.losses.decoupled import decoupled_kd
from scenekd.losses.distill import pixel_wise_kd
from scenekd.losses.masked_generation import generation_loss
from scenekd.losses.pair_wise import pair_wise_kd

N, C, H, W = 3, 5, 6, 8


@pytest.fixture
def maps():
    """(student, teacher), (N, C, H, W) float64."""
    generator = np.random.default_rng(0)
    return 2 * generator.normal(size=(N, C, H, W)), 3 * generator.normal(size=(N, C, H, W))


def _ours(function, *arrays, **options):
    return function(*map(torch.from_numpy, arrays), **options).item()


def test_pixel_wise(maps):
    """Liu et al.: −Σ q log p over classes, positions and images, over the positions of one image."""
    student, teacher = maps
    theirs = -(softmax(teacher, 1) * log_softmax(student, 1)).sum() / (H * W)
    assert _ours(pixel_wise_kd, student, teacher) == pytest.approx(theirs / N, rel=1e-12)


def test_pair_wise(maps):
    """Liu et al.: the squared differences of all cosines of the map that was max-pooled with windows of half its side,
    so of 2 × 2 nodes, over (2 · 2)² and the images."""
    cosines = []
    for values in maps:
        nodes = values.reshape(N, C, 2, H // 2, 2, W // 2).max((3, 5)).reshape(N, C, 4)
        nodes = nodes / np.sqrt((nodes**2).sum(1, keepdims=True))
        cosines.append(np.einsum("ncm,nck->nmk", nodes, nodes))
    theirs = ((cosines[0] - cosines[1]) ** 2).sum() / 4**2 / N
    assert _ours(pair_wise_kd, *maps, grid=2) == pytest.approx(theirs, rel=1e-9)
    assert _ours(pair_wise_kd, *maps, scale=0.25) != pytest.approx(theirs, rel=1e-3)


def test_channel_wise(maps):
    """Shu et al.: Σ q (log q − log p) of the softmax over positions, over images and channels, times T²."""
    p, q = (log_softmax(each.reshape(N, C, -1) / 4, 2) for each in maps)
    theirs = 4**2 * (np.exp(q) * (q - p)).sum() / (N * C)
    assert _ours(channel_wise_kd, *maps, temperature=4.0) == pytest.approx(theirs, rel=1e-10)


def test_decoupled(maps):
    """Zhao et al.: KL of (p_target, Σ others) and, of the others with the target's logit put 1000 lower, KL again, each
    summed over the batch, times T² over the batch; α 1, β 8, T 4. Pixels stand for their images."""
    labels = np.random.default_rng(1).integers(0, C, (N, H, W))
    rows = [each.transpose(0, 2, 3, 1).reshape(-1, C) / 4 for each in maps]
    hit = np.eye(C, dtype=bool)[labels.reshape(-1)]
    pairs = [np.stack([softmax(r, 1)[hit], (softmax(r, 1) * ~hit).sum(1)], 1) for r in rows]
    of_target = (pairs[1] * np.log(pairs[1] / pairs[0])).sum()
    p, q = (log_softmax(r - 1000.0 * hit, 1) for r in rows)
    of_others = (np.exp(q) * (q - p)).sum()
    theirs = 4**2 * (of_target + 8 * of_others) / len(hit)
    assert _ours(decoupled_kd, *maps, labels) == pytest.approx(theirs, rel=1e-10)


def test_correlation(maps):
    """Huang et al.: 1 − the mean of Pearson's r over the rows of (positions of the batch, classes), and over its
    columns; times τ², β = γ = 1."""
    p, q = (softmax(each.transpose(0, 2, 3, 1).reshape(-1, C) / 2, 1) for each in maps)
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T)])
    assert _ours(correlation_kd, *maps, temperature=2.0) == pytest.approx(4 * (inter + intra), rel=1e-9)
    # A constant vector has no r: their ε leaves 0 there, so 1; ours is half the squared distance of 0 and a unit vector
    flat = np.zeros_like(maps[0])
    assert _ours(correlation_kd, flat, maps[1]) == pytest.approx(0.5 + 0.5, rel=1e-9)
    assert _ours(correlation_kd, flat, flat) == 0


def test_masked_generation(maps):
    """Yang et al.: 2e-5 · the sum of squares over the images."""
    theirs = 2e-5 * ((maps[0] - maps[1]) ** 2).sum() / N
    assert 2e-5 * C * H * W * _ours(generation_loss, *maps) == pytest.approx(theirs, rel=1e-12)


def test_attention(maps):
    """Zagoruyko and Komodakis: the mean over images and positions of the squared differences of the maps of mean
    squares, each scaled to length 1."""
    q = [(each**2).mean(1).reshape(N, -1) for each in maps]
    q = [each / np.sqrt((each**2).sum(1, keepdims=True)) for each in q]
    theirs = ((q[0] - q[1]) ** 2).mean()
    assert _ours(attention_transfer, *maps) / (H * W) == pytest.approx(theirs, rel=1e-10)


def test_gradient_penalty(maps):
    """Gulrajani et al.: of D(x) = ½ ‖x‖² + ⟨a, x⟩ the gradient at ε t + (1 − ε) s is that point + a."""
    slope, epsilon = np.random.default_rng(2).normal(size=(1, C, H, W)), np.array([0.0, 0.3, 1.0])
    mix = epsilon.reshape(N, 1, 1, 1)
    point = mix * maps[1] + (1 - mix) * maps[0] + slope
    theirs = ((np.sqrt((point**2).sum((1, 2, 3))) - 1) ** 2).mean()

    def critic(x, images):
        return (x.square() / 2 + torch.from_numpy(slope) * x).sum(dim=(1, 2, 3))

    student, teacher = map(torch.from_numpy, maps)
    got = gradient_penalty(critic, student, teacher, torch.zeros(N, 3, H, W), torch.from_numpy(epsilon))
    assert got.item() == pytest.approx(theirs, rel=1e-10)
