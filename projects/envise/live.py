"""A live stream: batch after batch until its end or Ctrl-C, with a log of the answers and a state to go on from.

``OUTPUT_DIR/answers.jsonl`` has one JSON object a line, written before the state is: what a resumed run finds there
beyond its state is cut off and comes again.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from fvcore.common.config import CfgNode

from scenekd.config import load_config
from scenekd.errors import UserError
from scenekd.files import write_text

LOG, CONFIG = "answers.jsonl", "config.yaml"


@dataclass(frozen=True)
class Status:
    """How a stream stands.

    Attributes:
        samples: seen so far. phase: what it is doing. details: (name, value) of everything else.
    """

    samples: int
    phase: str
    details: tuple[tuple[str, str], ...]


def share(part: int, whole: int) -> str:
    """A share in words; a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


class LiveTask(Protocol):
    """What is run over a stream."""

    @property
    def position(self) -> int:
        """Of the next sample."""
        ...

    @property
    def phase(self) -> str:
        """What it is doing."""
        ...

    def resume(self) -> bool:
        """Go on from the state on disk; False where there is none.

        Raises:
            UserError: it is of another run.
        """
        ...

    def advance(self) -> Sequence[Mapping[str, Any]] | None:
        """Process the next batch; the lines of the log about it, each with its ``position``. None at the end."""
        ...

    def save(self, *, final: bool = False) -> None:
        """Write the state; where it is not ``final``, as far as the task wants it between batches."""
        ...

    def status(self) -> Status:
        """How it stands."""
        ...


class LiveView(Protocol):
    """Shows how a stream stands."""

    def update(self, task: LiveTask) -> None:
        """After a batch."""
        ...

    def finish(self, task: LiveTask) -> None:
        """At the end."""
        ...


class LiveLog:
    """Appends to ``LOG``.

    Args:
        folder: made where missing. position: of the first sample to come; lines of it and later ones are cut off.
    """

    def __init__(self, folder: Path, position: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG
        kept = _bytes_before(self.path, position) if self.path.is_file() else 0
        self._file = open(self.path, "ab")  # noqa: SIM115 - closed with the log
        self._file.truncate(kept)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines, and hand them to the system at once."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.write(text.encode())
        self._file.flush()

    def __enter__(self) -> LiveLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _bytes_before(path: Path, position: int) -> int:
    """Size of the whole lines about samples before ``position``, from the beginning on."""
    size = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                known = line.endswith(b"\n") and json.loads(line)["position"] < position
            except (ValueError, KeyError, TypeError):
                break
            if not known:
                break
            size += len(line)
    return size


class Interrupt:
    """While it is entered, Ctrl-C (or SIGTERM) asks for an end after the current batch; a second one ends at once.

    Attributes:
        asked: whether it came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        self._before = {each: signal.signal(each, self._ask) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


def run_live(task: LiveTask, log: LiveLog, view: LiveView, *, period: int = 1) -> bool:
    """Process batches until the stream ends (True) or an interrupt came (False).

    Args:
        period: batches between two states.

    Raises:
        UserError: what the task raises; the state on disk is that of an earlier batch.
    """
    batches, ended = 0, False
    with Interrupt() as interrupt:
        while not interrupt.asked:
            rows = task.advance()
            if rows is None:
                ended = True
                break
            log.write(rows)
            batches += 1
            if batches % period == 0:
                task.save()
            view.update(task)
        task.save(final=True)
    view.finish(task)
    return ended


def live_source(text: str) -> str:
    """``STREAM.SOURCE`` of what a command line names: a folder, a video, or the number of a camera.

    Raises:
        UserError: no such file.
    """
    path = Path(text)
    if path.exists():
        return str(path.resolve())
    if text.removeprefix("camera:").isdecimal():
        return f"camera:{int(text.removeprefix('camera:'))}"
    raise UserError(
        f"--source {text}: no such folder or file; give a folder of images, a video file, or a camera's number"
    )


def open_folder(cfg: CfgNode) -> None:
    """Make ``OUTPUT_DIR`` and leave the configuration in it.

    Raises:
        UserError: it holds a run over another source.
    """
    path = Path(cfg.OUTPUT_DIR) / CONFIG
    if path.is_file():
        before = load_config(path)
        source = before.STREAM.SOURCE if "STREAM" in before else None
        if source != cfg.STREAM.SOURCE:
            told = f"a stream of {source or 'DATASETS.TRAIN'}" if source is not None else "another run"
            raise UserError(
                f"{path.parent}: holds {told}, not of {cfg.STREAM.SOURCE or 'DATASETS.TRAIN'}; give another --output "
                "(--weights takes its student along)"
            )
    write_text(path, cfg.dump())
