"""Several trainings at once, each a process with one thread, under one progress bar."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from .errors import UserError
from .recorder import read_metrics

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass
class _Job:
    name: str
    process: subprocess.Popen[bytes]
    console: IO[bytes]


def run_together(
    tool: Path,
    jobs: Mapping[str, Sequence[str]],
    output: Path,
    steps: Mapping[str, int],
    *,
    at_once: int | None = None,
    keep_going: bool = False,
) -> dict[str, str]:
    """Run ``tool`` once for each job and wait for all; what they print goes to ``OUTPUT/<job>/console.txt``.

    Args:
        jobs: folder below ``output`` → arguments of the tool. steps: of each job, for the bar.
        at_once: processes that run side by side, at least 1; None: all.
        keep_going: a job that fails does not end the others.

    Returns:
        The jobs that failed, each with its own last line; empty without ``keep_going``.

    Raises:
        UserError: a job failed, with its last line; the others are ended, and go on when run again.
    """
    waiting, running = list(jobs), list[_Job]()
    failed: dict[str, str] = {}
    places = len(jobs) if at_once is None else max(at_once, 1)
    try:
        with tqdm(total=sum(steps[name] for name in jobs), unit="step") as bar:
            while waiting or running:
                while waiting and len(running) < places:
                    running.append(_start(tool, waiting.pop(0), jobs, output))
                ended = [job for job in running if job.process.poll() is not None]
                for job in ended:
                    job.console.close()
                    running.remove(job)
                    if job.process.returncode:
                        failed[job.name] = _last_line(output / job.name, job.process.returncode)
                        if not keep_going:
                            raise UserError(f"{job.name}: {failed[job.name]}")
                bar.set_description(_names([job.name for job in running]))
                done = sum(_done(output / name) for name in jobs if name not in waiting)
                bar.update(done - bar.n)
                if not ended:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for job in running:
            job.process.terminate()
            job.process.wait()
            job.console.close()
    return failed


def _start(tool: Path, name: str, jobs: Mapping[str, Sequence[str]], output: Path) -> _Job:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    (output / name).mkdir(parents=True, exist_ok=True)
    console = open(output / name / "console.txt", "wb")  # noqa: SIM115 - closed by the caller
    process = subprocess.Popen(
        [sys.executable, str(tool), *jobs[name]], stdout=console, stderr=subprocess.STDOUT, env=environment
    )
    return _Job(name, process, console)


def _names(running: Sequence[str], shown: int = 4) -> str:
    return ", ".join(running[:shown]) + (f" and {len(running) - shown} more" if len(running) > shown else "")


def _last_line(folder: Path, code: int) -> str:
    lines = (folder / "console.txt").read_text(errors="replace").splitlines()
    last = lines[-1] if lines else "it printed nothing"
    return f"ended with exit code {code}: {last.removeprefix('error: ')}"


def _done(folder: Path) -> int:
    path = folder / "metrics.json"
    lines = read_metrics(path) if path.is_file() else []
    return max((line["iteration"] for line in lines), default=0)
