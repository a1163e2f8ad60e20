"""What a preset prepares before its rows are run: data, teachers, caches. Done once; gone on with after a kill.

A stage is a mapping in ``STAGES``, ``kind`` and:

scenes   ``folder, splits`` (name → images), ``seed``: drawn pictures.
lists    ``source, folder, lists``: a VOC-layout folder that shows the images of ``source`` and has lists of its own.
coco     ``source, folder, part, share``: a COCO-layout folder with a share of ``part``'s images held out.
crops    ``source, folder, splits, classes, size, margin``: the objects of a VOC-layout folder as images of one class.
train    ``file, keys``: a network, laid over by COMMON, those of ``roles`` and ``keys``, in ``{output}/stages/<name>``;
         ``common: False`` for one of another system, over which COMMON is not laid.
cache    ``file, keys, task``: what the teacher of a task says of ``DATASETS.TRAIN``.

With ``task`` a stage is needed only by rows that learn from that task's teacher, with ``role`` only by rows that
have the role. ``after`` names the stages that a training starts from.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .. import checkpoint
from ..data.scenes import generate_scenes
from ..errors import UserError
from ..files import write_text
from ..report import teacher_tasks
from ..side_by_side import run_together
from .coco_split import split_coco
from .crops import crop_objects
from .lists import link_with_lists
from .rows import Row
from .runs import Run, Runs, State, write_config

TOOLS = Path(__file__).parents[3] / "tools"
_DONE = "stage.yaml"


class Stages:
    """The stages of one study.

    Args:
        engine: of ``tools/train_net.py``. jobs: trainings side by side.
    """

    def __init__(self, runs: Runs, *, engine: str, jobs: int) -> None:
        self.runs, self.engine, self.jobs = runs, engine, jobs

    def prepare(self, needed_by: Iterable[Run]) -> None:
        """Run the stages that some runs need, in the preset's order; neighbouring trainings side by side.

        Raises:
            UserError: a stage failed, or was made with other settings.
        """
        runs = list(needed_by)
        stages = [(name, stage) for name, stage in self._ordered() if any(_needs(run, stage) for run in runs)]
        while stages:
            trainings: dict[str, Run] = {}
            while stages and stages[0][1]["kind"] == "train" and not trainings.keys() & _after(stages[0][1]):
                name, stage = stages.pop(0)
                trainings[name] = self._run(name, stage)
            if trainings:
                self._train(list(trainings.values()))
            elif stages:
                self._other(*stages.pop(0))

    def _ordered(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The preset's stages in its order, each one's predecessors before it: a preset that is based on another
        puts stages ahead of the other's.

        Raises:
            UserError: stages that wait for one another, or for one that does not exist.
        """
        stages = self.runs.preset.stages
        ordered: dict[str, Mapping[str, Any]] = {}

        def put(name: str, waiting: tuple[str, ...]) -> None:
            if name in waiting or name not in stages:
                reason = "waits for itself" if name in waiting else "does not exist"
                raise UserError(f"preset {self.runs.preset.name}: the stage {name} {reason}; see `after`")
            for before in stages[name].get("after", ()):
                put(before, (*waiting, name))
            ordered.setdefault(name, stages[name])

        for name in stages:
            put(name, ())
        return list(ordered.items())

    def _other(self, name: str, stage: Mapping[str, Any]) -> None:
        kind = stage["kind"]
        if kind == "scenes":
            generate_scenes(stage["folder"], splits=stage["splits"], seed=stage.get("seed", 0))
        elif kind == "lists":
            link_with_lists(Path(stage["source"]), Path(stage["folder"]), stage["lists"])
        elif kind == "coco":
            split_coco(
                Path(stage["source"]), Path(stage["folder"]), part=stage["part"], share=float(stage["share"])
            )
        elif kind == "crops":
            rest = {key: stage[key] for key in ("splits", "classes", "size")}
            margin = stage.get("margin")
            crop_objects(Path(stage["source"]), Path(stage["folder"]), **rest, margin=margin)
        elif kind == "cache":
            self._cache(self._run(name, stage), stage["task"])
        else:
            raise UserError(f"preset {self.runs.preset.name}: stage {name}: unknown kind {kind!r}")

    def _run(self, name: str, stage: Mapping[str, Any]) -> Run:
        file, roles = self.runs.table.path.parent / stage["file"], tuple(stage.get("roles", ()))
        row = Row(name, name, "", file, name, roles=roles, common=bool(stage.get("common", True)))
        folder = f"stages/{name}"
        cfg = self.runs.config(row, int(stage.get("seed", 0)), folder, keys=stage.get("keys", {}))
        return Run(folder, cfg, row)

    def _train(self, trainings: list[Run]) -> None:
        waiting = [run for run in trainings if self.runs.state(run) is not State.DONE]
        train_together(waiting, self.runs.output, engine=self.engine, jobs=self.jobs)

    def _cache(self, run: Run, task: str) -> None:
        """Cache a task's teacher; ``stage.yaml`` says that it is whole, and with what settings."""
        done = run.folder / _DONE
        found = self.runs.settings(run.cfg, run.name)
        settings = yaml.safe_dump({key: str(value) for key, value in found.items()})
        if done.is_file():
            if done.read_text(encoding="utf-8") != settings:
                raise UserError(f"{run.folder}: made with other settings; delete the folder")
            return
        write_config(run)
        run_tool("cache_teacher.py", "--config-file", str(run.config), "--task", task, "--resume")
        write_text(done, settings)


def _after(stage: Mapping[str, Any]) -> set[str]:
    return set(stage.get("after", ()))


def _needs(run: Run, stage: Mapping[str, Any]) -> bool:
    tasks = ("detection",) if run.row.kind == "filter" else teacher_tasks(run.cfg)
    return stage.get("task") in (None, *tasks) and stage.get("role") in (None, *run.row.roles)


def train_together(
    runs: list[Run], output: Path, *, engine: str, jobs: int, keep_going: bool = False
) -> dict[str, str]:
    """Train side by side, one thread each; an interrupted training goes on. Returns the failed, see
    :func:`scenekd.side_by_side.run_together`.
    """
    if not runs:
        return {}
    for run in runs:
        write_config(run)
    commands = {}
    for run in runs:
        goes_on = ["--resume"] if (run.folder / checkpoint.LAST).is_file() else []
        commands[run.name] = ["--config-file", str(run.config), "--engine", engine, *goes_on]
    steps = {run.name: run.cfg.SOLVER.MAX_ITER for run in runs}
    return run_together(TOOLS / "train_net.py", commands, output, steps, at_once=jobs, keep_going=keep_going)


def evaluate(run: Run, *, engine: str) -> None:
    """Score ``MODEL.WEIGHTS`` of a run on its test set."""
    write_config(run)
    run_tool("train_net.py", "--config-file", str(run.config), "--engine", engine, "--eval-only")


def run_tool(name: str, *args: str) -> None:
    """Run a script of ``tools/`` with one thread, as the trainings are: with another number the teachers'
    output differs in its last digits.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(TOOLS / name), *args], check=False, env=environment)
    if done.returncode:
        raise UserError(f"tools/{name} ended with exit code {done.returncode}; its message is above")
