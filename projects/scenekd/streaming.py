"""Runs over a stream: no loader, no number of iterations that is known before.

A system whose package has ``open_stream(cfg, *, engine, resume) -> StreamSession`` is trained by one; the engines'
loops drive it batch by batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from fvcore.common.config import CfgNode
from torch import nn


class StreamSession(Protocol):
    """What an engine drives: :meth:`begin`, then :meth:`next_batch` and :meth:`process` to the end, then :meth:`end`.

    Attributes:
        cfg: frozen, with the names of the classes. net: that learns, on its device. optimizer: of it.
        start: batches that an earlier run has processed. total: batches that there are at most; 0 where nobody knows.
    """

    cfg: CfgNode
    net: nn.Module
    optimizer: torch.optim.Optimizer
    start: int
    total: int

    def begin(self) -> None:
        """Open what is written as the run goes."""
        ...

    def next_batch(self) -> Any | None:
        """The next batch; None at the end of the stream."""
        ...

    def process(self, batch: Any) -> Mapping[str, float]:
        """Answer the batch, learn from it, write the state; numbers for the engine's log."""
        ...

    def end(self) -> None:
        """The stream has ended, or the run was cut: close what :meth:`begin` has opened."""
        ...

    def complete(self) -> dict[str, dict[str, Any]]:
        """Save the network; the final results, as in ``results.json``."""
        ...

    def figures(self) -> Mapping[str, bytes]:
        """Caption → PNG for the report, of a completed run."""
        ...
