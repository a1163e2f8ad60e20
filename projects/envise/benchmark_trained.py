"""The cascade of a finished run as it was trained, with its own gate, against its teacher alone: wall time and accuracy
over the last samples of its stream, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scenekd.benchmark.measure import Row
from scenekd.benchmark.options import Options, worker_threads
from scenekd.config import load_config
from scenekd.errors import UserError
from scenekd.nets.packed_native import library
from scenekd.registry import register

from .benchmark_cascade import GOES_ON, cut, timed
from .phases import ANSWER
from .run import OnlineRun
from .stream import StreamBatch

NAME = "deployed"
_TOGETHER = 32  # beside the batches of the run itself: what ONLINE.ANSWER_BATCH_SIZE is worth


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """Of ``--run``; one row says what is missing."""
    for missing, what in (
        (options.run is None, "give --run DIR, a finished run of envise with a binary student"),
        (library() is None, "the kernels of packed bits need a C++ compiler and ninja"),
    ):
        if missing:
            yield Row(NAME, "cascade as trained / teacher alone, wall time", detail=what)
            return
    with worker_threads():
        yield from _trained(options, Path(str(options.run)))


def _trained(options: Options, folder: Path) -> Iterator[Row]:
    """
    Raises:
        UserError: no run of a stream that has ended with a student that answers.
    """
    keys = {f"ONLINE.{key}": str(value) for key, value in GOES_ON.items()}
    keys |= {"OUTPUT_DIR": str(folder), "MODEL.DEVICE": "cpu"}
    cfg = load_config(folder / "config.yaml", [text for pair in keys.items() for text in pair])
    run = OnlineRun.from_config(cfg)
    if not run.resume() or run.distiller.phases.phase != ANSWER:
        raise UserError(f"--run: {folder} is no finished run whose student answers; choose another")
    first = run.distiller.phases.changes[-1][0] + 1
    places = np.arange(max(first, run.stream.position - options.pick(1600, 640, 40)), run.stream.position)
    images, own = run.stream.read(places), run.distiller.options.answer_batch_size
    about = f"{folder}{_accuracy(run, cut(places, images, own), places)}"
    for size in sorted({own, _TOGETHER}):
        name = f"{cfg.MODEL.ENVISE.NETWORK} as trained, batch {size}: cascade / teacher alone, wall time"
        yield from timed(options, run.distiller, cut(places, images, size), name, about, suite=NAME)


def _accuracy(run: OnlineRun, stream: list[StreamBatch], places: np.ndarray) -> str:
    """That of the cascade and of the teacher on the same samples, where labels are known."""
    if not run.stream.truth.is_known:
        return ""
    label = run.stream.truth.labels[places]
    answers = np.concatenate([run.distiller.process(part).answers for part in stream])
    logits = [run.distiller.teacher.logits(part.images.float()) for part in stream]
    told = np.concatenate([one.argmax(1).cpu().numpy() for one in logits])
    return f", accuracy {np.mean(answers == label):.1%}, the teacher's {np.mean(told == label):.1%}"
