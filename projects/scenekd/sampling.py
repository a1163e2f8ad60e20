"""The one sampler and the one source of random numbers.

Every draw of a training run has a global index: iteration t, process r of R, position j of a process's batch
of b images have index t·R·b + r·b + j. Which image it shows and how it is augmented follow from (seed, index)
alone, never from worker or process state, so a resumed run equals an uninterrupted one bit for bit, for any
number of workers, and both engines see the same batches.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

# Streams keep the uses of one index independent of each other.
STREAM_AUGMENT = 0
STREAM_ORDER = 1
STREAM_POLICY = 2
STREAM_MODEL = 3
STREAM_HIDE = 4
STREAM_PERMUTE = 5
STREAM_CLASS = 6
STREAM_IMAGE = 7
STREAM_RANK = 8
STREAM_AUDIT = 9
STREAM_REPLAY = 10
STREAM_KEEP = 11


def draw_rng(seed: int, index: int, stream: int = STREAM_AUGMENT) -> np.random.Generator:
    """The generator of draw ``index`` in one stream; equal arguments give equal numbers everywhere."""
    return np.random.default_rng([seed, stream, index])


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_records: int) -> np.ndarray:
    return draw_rng(seed, epoch, STREAM_ORDER).permutation(num_records)


def record_index(seed: int, index: int, num_records: int) -> int:
    """The record that draw ``index`` shows: each pass over the data is a fresh permutation."""
    epoch, position = divmod(index, num_records)
    return int(_epoch_order(seed, epoch, num_records)[position])


class DrawSampler(Sampler[list[int]]):
    """A batch sampler of global draw indices for one process, from ``start`` up to ``stop`` iterations.

    Args:
        batch_size: images of one iteration in this process.
        start, stop: first iteration, and the one after the last.
        rank, world_size: this process, and how many there are.
    """

    def __init__(self, batch_size: int, *, start: int, stop: int, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size, self.start, self.stop = batch_size, start, stop
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.start, self.stop):
            first = (iteration * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


class ShareSampler(Sampler[int]):
    """Every record once, each in exactly one process: evaluation without padding or truncation."""

    def __init__(self, num_records: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, num_records, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seed torch for the model's own randomness in one iteration of one process."""
    torch.manual_seed(_model_seed(f"{seed}/{STREAM_MODEL}/{iteration}/{rank}"))


def iteration_generator(seed: int, iteration: int, rank: int, use: str) -> torch.Generator:
    """A generator on the CPU for one use in one iteration of one process, beside :func:`seed_iteration`'s state."""
    return torch.Generator().manual_seed(_model_seed(f"{seed}/{STREAM_MODEL}/{iteration}/{rank}/{use}"))


def _model_seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@contextlib.contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Run a foreign transform with ``random``, numpy and torch seeded from ``rng``, then restore them."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - foreign code uses it
    torch_state = torch.random.get_rng_state()
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.random.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.random.set_rng_state(torch_state)
