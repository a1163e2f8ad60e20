"""Random numbers follow from (seed, draw index) alone: across processes, workers and interruptions."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from scenekd.sampling import (
    STREAM_AUGMENT,
    STREAM_MODEL,
    STREAM_ORDER,
    STREAM_POLICY,
    DrawSampler,
    ShareSampler,
    draw_rng,
    record_index,
    seed_iteration,
    seeded,
)


def _numbers(seed, index, stream=STREAM_AUGMENT):
    return tuple(draw_rng(seed, index, stream).integers(2**63, size=4).tolist())


def test_draws_depend_on_seed_index_and_stream_only():
    """Equal arguments give equal numbers whatever was drawn before; any other argument gives others."""
    first = _numbers(3, 17)
    np.random.default_rng(0).random(5)
    _numbers(3, 18)
    assert _numbers(3, 17) == first
    everything = {
        _numbers(seed, index, stream)
        for seed in range(4)
        for index in range(25)
        for stream in (STREAM_AUGMENT, STREAM_ORDER, STREAM_POLICY, STREAM_MODEL)
    }
    assert len(everything) == 4 * 25 * 4


def test_streams_and_neighbours_are_independent():
    """Uniform numbers of two streams, of neighbouring draws and of neighbouring seeds are uncorrelated."""
    n = 2000

    def first_numbers(seed, shift, stream):
        return np.array([draw_rng(seed, i + shift, stream).random() for i in range(n)])

    base = first_numbers(1, 0, STREAM_AUGMENT)
    # A correlation of n independent pairs has standard deviation 1/√n; six of them are 0.13.
    for other in (
        first_numbers(1, 0, STREAM_POLICY),
        first_numbers(1, 1, STREAM_AUGMENT),
        first_numbers(2, 0, STREAM_AUGMENT),
    ):
        assert abs(np.corrcoef(base, other)[0, 1]) < 6 / np.sqrt(n)


@pytest.mark.parametrize(("images", "processes"), [(8, 2), (8, 4), (6, 3), (5, 1)])
def test_processes_together_draw_what_one_draws(images, processes):
    """Each iteration's draws of all processes, in rank order, are the iteration's draws of one process."""
    alone = list(DrawSampler(images, start=0, stop=7))
    shares = [
        list(DrawSampler(images // processes, start=0, stop=7, rank=rank, world_size=processes))
        for rank in range(processes)
    ]
    together = [sum((share[t] for share in shares), []) for t in range(7)]
    assert together == alone == [list(range(t * images, (t + 1) * images)) for t in range(7)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_sampler_is_the_tail(rank):
    """From iteration k on it draws what an uninterrupted run draws there."""
    whole = list(DrawSampler(3, start=0, stop=10, rank=rank, world_size=2))
    for k in range(12):
        rest = DrawSampler(3, start=k, stop=10, rank=rank, world_size=2)
        assert list(rest) == whole[k:]
        assert len(rest) == len(whole[k:])


def test_each_pass_is_a_fresh_permutation():
    """Every record once a pass; passes, seeds and nothing else change the order."""
    passes = [[record_index(5, e * 31 + i, 31) for i in range(31)] for e in range(6)]
    for one in passes:
        assert sorted(one) == list(range(31))
    assert len({tuple(one) for one in passes}) == 6
    assert passes[0] != [record_index(6, i, 31) for i in range(31)]
    # Read backwards and across passes, the answers are the same.
    assert [record_index(5, i, 31) for i in reversed(range(62))] == (passes[0] + passes[1])[::-1]
    assert record_index(5, 10**9, 1) == 0


def test_records_stand_everywhere():
    """Over many passes, each record comes first about equally often."""
    counts = np.bincount([record_index(0, e * 5, 5) for e in range(2000)], minlength=5)
    # Binomial(2000, 1/5): mean 400, standard deviation √(2000·0.2·0.8) = 17.9; six of them are 107.
    assert np.abs(counts - 400).max() < 107


@pytest.mark.parametrize("records", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_share_sampler_covers_every_record_once(records, processes):
    """No padding and no truncation, and no process gets two more than another."""
    shares = [list(ShareSampler(records, rank, processes)) for rank in range(processes)]
    assert sorted(sum(shares, [])) == list(range(records))
    lengths = [len(ShareSampler(records, rank, processes)) for rank in range(processes)]
    assert lengths == [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def _foreign():
    return random.random(), np.random.random(), torch.rand(3).tolist()  # noqa: NPY002


def test_seeded_rules_foreign_code():
    """Inside, random, numpy and torch follow the generator; afterwards their states are as before."""
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    undisturbed = _foreign()
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    with seeded(draw_rng(0, 5)):
        inside = _foreign()
    assert _foreign() == undisturbed
    with seeded(draw_rng(0, 5)):
        assert _foreign() == inside
    with seeded(draw_rng(0, 6)):
        other = _foreign()
    assert all(a != b for a, b in zip(inside, other))


def test_seeded_twice_from_one_generator():
    """Two foreign transforms of one draw get different numbers."""
    rng = draw_rng(0, 5)
    with seeded(rng):
        first = _foreign()
    with seeded(rng):
        assert _foreign() != first


def test_seeded_restores_after_an_error():
    """A transform that fails leaves the states as they were."""
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    with pytest.raises(ZeroDivisionError), seeded(draw_rng(0, 0)):
        _foreign()
        raise ZeroDivisionError
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.array_equal(np.random.get_state()[1], states[2][1])  # noqa: NPY002


def test_model_randomness_by_iteration_and_rank():
    """Dropout masks depend on (seed, iteration, rank) alone, and differ in each."""

    def mask(*key):
        seed_iteration(*key)
        return tuple(torch.rand(4).tolist())

    first = mask(1, 2, 0)
    torch.rand(10)
    assert mask(1, 2, 0) == first
    keys = [(s, i, r) for s in range(3) for i in range(5) for r in range(3)]
    assert len({mask(*key) for key in keys}) == len(keys)
