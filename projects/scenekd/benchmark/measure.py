"""How things are measured: interleaved times, peak memory of torch's allocations, and the row of a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

MEMORY_METHOD = (
    "peak memory: largest sum of live torch allocations above the start (torch.profiler; CUDA: its allocator)"
)


@dataclass
class Row:
    """One measured number.

    Attributes:
        suite, name: what was measured.
        value: the median; None where it could not be measured, which ``detail`` explains.
        low, high: smallest and largest of the repeats (or of the images), where there are several.
        unit: ``x`` for a ratio.
        target: (``>=`` or ``<=``, bound); None where nothing is asked.
        detail: the absolute numbers behind the value, and what exactly was compared.
    """

    suite: str
    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    target: tuple[str, float] | None = None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a value."""
        if self.target is None or self.value is None:
            return None
        sign, bound = self.target
        return self.value >= bound if sign == ">=" else self.value <= bound


@dataclass
class Times:
    """Seconds a call of two sides, repeat by repeat."""

    ours: list[float]
    peer: list[float]

    @property
    def speedup(self) -> tuple[float, float, float]:
        """Median, smallest and largest of peer / ours, paired by repeat."""
        return spread([p / o for o, p in zip(self.ours, self.peer)])

    @property
    def cost(self) -> tuple[float, float, float]:
        """Median, smallest and largest of ours / peer, paired by repeat."""
        return spread([o / p for o, p in zip(self.ours, self.peer)])

    def describe(self, peer: str) -> str:
        """The medians in words."""
        ours, theirs = (milliseconds(statistics.median(side)) for side in (self.ours, self.peer))
        return f"ours {ours}, {peer} {theirs}"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest, largest."""
    return statistics.median(values), min(values), max(values)


def milliseconds(seconds: float) -> str:
    """Seconds as readable milliseconds."""
    return f"{1e3 * seconds:.4g} ms"


def interleave(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    repeats: int,
    min_seconds: float = 0.1,
    warm: bool = True,
) -> Times:
    """Time two sides in turn, see :func:`take_turns`."""
    return Times(*take_turns((ours, peer), repeats=repeats, min_seconds=min_seconds, warm=int(warm)))


def take_turns(
    sides: Sequence[Callable[[], object]], *, repeats: int, min_seconds: float = 0.1, warm: int = 1
) -> list[list[float]]:
    """Seconds a call of each side, timed in turn (A B A B …), so that a change of the machine's load meets all.

    Args:
        repeats: samples of each side.
        min_seconds: a sample repeats a short call until it lasts so long, and divides.
        warm: untimed calls of each side before; 0: none, and one call makes a sample.
    """
    times: list[list[float]] = [[] for _ in sides]
    calls = [1] * len(sides)
    for side, work in enumerate(sides):
        for _ in range(warm):
            work()
        if warm:
            calls[side] = max(1, round(min_seconds / max(_time(work, 1), 1e-7)))
    for _ in range(repeats):
        for side, work in enumerate(sides):
            times[side].append(_time(work, calls[side]))
    return times


def _time(work: Callable[[], object], calls: int) -> float:
    synchronise()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronise()
    return (time.perf_counter() - start) / calls


def synchronise() -> None:
    """Wait for the GPU, where it is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int:
    """Largest sum of live torch allocations during ``work``, above what was live before, in bytes.

    On the CPU from the allocation events of torch's profiler, so neither the allocator's caching nor other
    programs matter; numpy's arrays are not seen.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        synchronise()
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return peak
