"""What a live stream looks like on a terminal: one block that renews itself; elsewhere plain lines."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from .live import LiveTask, LiveView, Status

_RATE_SECONDS = 5.0  # over which samples a second are taken


class _Rate:
    """Samples a second, over the last seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen = deque[tuple[float, int]]()

    def see(self, samples: int) -> None:
        now = self._clock()
        self._seen.append((now, samples))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_SECONDS:
            self._seen.popleft()

    def __str__(self) -> str:
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return "… samples/s"
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return f"{(last - first) / (end - start):.1f} samples/s"


class BlockView:
    """For a terminal: the block is written over, some times a second.

    Args:
        title: first of the first line. seconds: between two of them. clock: in seconds.
    """

    def __init__(
        self,
        file: TextIO,
        title: str,
        *,
        seconds: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._title, self._seconds, self._clock = file, title, seconds, clock
        self._rate, self._next, self._lines = _Rate(clock), 0.0, 0

    def update(self, task: LiveTask) -> None:
        """See :class:`.live.LiveView`."""
        self._rate.see(task.position)
        if self._clock() >= self._next:
            self._show(task.status())
            self._next = self._clock() + self._seconds

    def finish(self, task: LiveTask) -> None:
        """See :class:`.live.LiveView`."""
        self._show(task.status())

    def _show(self, status: Status) -> None:
        width = shutil.get_terminal_size().columns - 1  # a full line would wrap, and the block move
        column = max(len(name) for name, _ in status.details) + 2
        head = f"{self._title} · {status.samples} samples · {status.phase} · {self._rate}"
        lines = [head, *(f"  {name:<{column}}{value}" for name, value in status.details)]
        up = f"\x1b[{self._lines}F" if self._lines else ""
        self._file.write(up + "".join(f"{line[:width]}\x1b[K\n" for line in lines) + "\x1b[J")
        self._file.flush()
        self._lines = len(lines)


class LineView:
    """For a file or pipe: a line when the phase changes, every so many seconds, and at the end."""

    def __init__(
        self, file: TextIO, *, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file, self._seconds, self._clock = file, seconds, clock
        self._rate, self._phase, self._next, self._shown = _Rate(clock), "", 0.0, -1

    def update(self, task: LiveTask) -> None:
        """See :class:`.live.LiveView`."""
        self._rate.see(task.position)
        if task.phase != self._phase or self._clock() >= self._next:
            self._show(task.status())
            self._shown = task.position
            self._phase, self._next = task.phase, self._clock() + self._seconds

    def finish(self, task: LiveTask) -> None:
        """See :class:`.live.LiveView`."""
        if task.position != self._shown:
            self._show(task.status())

    def _show(self, status: Status) -> None:
        told = (f"{name} {value}" for name, value in status.details)
        line = " · ".join((f"{status.samples} samples", status.phase, *told, str(self._rate)))
        print(line, file=self._file, flush=True)


def view_for(file: TextIO, title: str) -> LiveView:
    """The block where ``file`` is a terminal, else lines."""
    return BlockView(file, title) if file.isatty() else LineView(file)
