"""What a run of the benchmark is told, and the machine it runs on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from ..data.scenes import generate_scenes

T = TypeVar("T")
VOC_SIZE = (375, 500)  # height and width of the usual VOC image


@dataclass
class Options:
    """Options of a run.

    Attributes:
        workdir: folder for what the suites write.
        size: ``full``; ``quick`` for a look within a minute or two; ``tiny`` for tests.
        repeat: samples of each side; 0: the suite's own number.
        data: folder of real data (``voc_mini``, ``voc_pool_320``), or None.
        checkpoint: a SceneKD checkpoint with a segmentation task, or None.
        run: folder of a finished run over a stream, or None.
        devices: that torch can compute on here.
    """

    workdir: Path
    size: str = "full"
    repeat: int = 0
    data: Path | None = None
    checkpoint: Path | None = None
    run: Path | None = None
    devices: tuple[str, ...] = field(
        default_factory=lambda: ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    )

    def pick(self, full: T, quick: T, tiny: T) -> T:
        """The value for this size."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.size]

    def repeats(self, full: int = 7) -> int:
        """Samples of each side."""
        return self.repeat or self.pick(full, 3, 1)

    def scenes(self, count: int, size: tuple[int, int]) -> Path:
        """A scenes data set with one split, ``train``, drawn once a run."""
        root = self.workdir / f"scenes_{count}_{size[0]}x{size[1]}"
        generate_scenes(root, splits={"train": count}, size=size, progress=False)
        return root


def machine(threads: int) -> dict[str, Any]:
    """CPU, GPU and versions, for the head of a table."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": threads,
        "load": [round(load, 1) for load in os.getloadavg()],
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def worker_threads() -> Iterator[None]:
    """One thread, as a data loader's worker has."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
