"""Several trainings at once, each a process with one thread, under one progress bar."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tqdm import tqdm

from scenekd.errors import UserError
from scenekd.recorder import read_metrics

_SECONDS_BETWEEN_LOOKS = 1.0


def run_together(
    tool: Path, jobs: Mapping[str, Sequence[str]], output: Path, steps: Mapping[str, int]
) -> None:
    """Run ``tool`` once for each job and wait for all; what they print goes to ``OUTPUT/<job>/console.txt``.

    Args:
        jobs: folder below ``output`` → arguments of the tool. steps: of each job, for the bar.

    Raises:
        UserError: a job failed, with its own last line; the others are ended, and go on when run again.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    running: dict[str, subprocess.Popen[bytes]] = {}
    consoles: list[IO[bytes]] = []
    try:
        for folder, arguments in jobs.items():
            (output / folder).mkdir(parents=True, exist_ok=True)
            consoles.append(open(output / folder / "console.txt", "wb"))  # noqa: SIM115 - closed below
            running[folder] = subprocess.Popen(
                [sys.executable, str(tool), *arguments],
                stdout=consoles[-1],
                stderr=subprocess.STDOUT,
                env=environment,
            )
        _wait(running, output, steps)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
        for console in consoles:
            console.close()


def _wait(running: Mapping[str, subprocess.Popen[bytes]], output: Path, steps: Mapping[str, int]) -> None:
    with tqdm(total=sum(steps.values()), desc=", ".join(running), unit="step") as bar:
        while True:
            codes = {folder: process.poll() for folder, process in running.items()}
            bar.update(sum(_done(output / folder) for folder in running) - bar.n)
            for folder, code in codes.items():
                if code:
                    lines = (output / folder / "console.txt").read_text(errors="replace").splitlines()
                    last = lines[-1] if lines else "it printed nothing"
                    raise UserError(f"{folder}: ended with exit code {code}: {last.removeprefix('error: ')}")
            if all(code == 0 for code in codes.values()):
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _done(folder: Path) -> int:
    path = folder / "metrics.json"
    lines = read_metrics(path) if path.is_file() else []
    return max((line["iteration"] for line in lines), default=0)
