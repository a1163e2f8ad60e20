"""What a training run writes as it goes, the same under both engines.

``metrics.json`` holds one JSON object a line; the engines' event writers (TensorBoard, W&B) run beside it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import checkpoint, optim
from .errors import UserError
from .experiment import Experiment
from .extras import LogMeans
from .files import write_text
from .finite import not_finite
from .results import flatten
from .sampling import seed_iteration


class Recorder:
    """Called by an engine's hook around every optimizer step.

    Args:
        experiment: the run.
        engine: name of the framework that drives it, kept in the resume state.
    """

    def __init__(self, experiment: Experiment, engine: str) -> None:
        self.experiment, self.engine = experiment, engine
        self.cfg = experiment.cfg
        self.path = experiment.output_dir / "metrics.json"
        self._bar: tqdm[Any] | None = None
        self._step_start = self._busy_start = 0.0
        self._sums: dict[str, torch.Tensor] = {}
        self._seconds = self._busy = 0.0
        self._steps = 0
        self._means = LogMeans()

    def start(self) -> None:
        """Open the progress bar; lines of steps that a resumed run takes again are dropped."""
        experiment = self.experiment
        if not experiment.is_main:
            return
        drop_lines_after(self.path, experiment.start_iteration)
        if self.path.is_file():
            # A step's resume state is written before the step is evaluated: its best may be one behind.
            for line in read_metrics(self.path):
                self._improves(line.get(self.cfg.TEST.BEST_METRIC))
        self._bar = tqdm(
            total=self.cfg.SOLVER.MAX_ITER, initial=experiment.start_iteration, desc="train", unit="it"
        )

    def before_step(self, iteration: int) -> float:
        """Seed the model's randomness and set the learning rate of step ``iteration`` (0-based)."""
        self._step_start, self._busy_start = time.perf_counter(), time.process_time()
        self.experiment.extras.begin_step(iteration)
        seed_iteration(self.cfg.SEED, iteration, self.experiment.rank)
        return optim.set_lr(self.experiment.optimizer, self.cfg, iteration)

    def after_step(self, iteration: int, losses: Mapping[str, torch.Tensor]) -> None:
        """Account for step ``iteration``; every LOG_PERIOD steps the means go to ``metrics.json``.

        Raises:
            UserError: a loss is not finite (checked every step on CPU; on CUDA when logging and saving). What the
                network itself returns, :class:`.finite.FiniteGuard` has looked at before.
        """
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros(())).to(value.device) + value.detach()
        self.experiment.extras.after_step(iteration)
        self._means.add(self.experiment.extras.log_values())
        self._steps += 1
        self._seconds += time.perf_counter() - self._step_start
        self._busy += time.process_time() - self._busy_start
        done = iteration + 1
        logging_now = done % self.cfg.SOLVER.LOG_PERIOD == 0 or done == self.cfg.SOLVER.MAX_ITER
        if logging_now or self.checkpoint_due(iteration) or self.experiment.device.type == "cpu":
            self._check_finite(iteration)
        if logging_now:
            self._log(done)
        if self._bar is not None:
            self._bar.update()

    def checkpoint_due(self, iteration: int) -> bool:
        """Whether the resume state is to be written after step ``iteration``."""
        done = iteration + 1
        return done % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0 or done == self.cfg.SOLVER.MAX_ITER

    def save(self, iteration: int, scaler: dict[str, Any] | None = None) -> None:
        """Write ``last.pth``, and at the end ``model_final.pth``."""
        self.experiment.sync_buffers()
        self.experiment.skipped.share()
        if not self.experiment.is_main:
            return
        done = iteration + 1
        self.experiment.save_resume(done, self.engine, scaler)
        if done == self.cfg.SOLVER.MAX_ITER:
            self.experiment.save_model()

    def evaluated(self, done: int, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Log an evaluation after ``done`` steps and keep the best network by TEST.BEST_METRIC."""
        experiment = self.experiment
        if not experiment.is_main:
            return
        flat = flatten(results)
        # JSON has no NaN; a class without ground truth is left out of the line.
        finite = {name: value for name, value in flat.items() if math.isfinite(value)}
        self._append({"iteration": done, **finite})
        wanted = self.cfg.TEST.BEST_METRIC
        if not wanted:
            return
        if wanted not in flat:
            raise UserError(
                f"TEST.BEST_METRIC: no metric {wanted!r}; there are {', '.join(sorted(flat)[:12])}"
            )
        if self._improves(finite.get(wanted)):
            experiment.save_model(checkpoint.MODEL_BEST)

    def _improves(self, value: float | None) -> bool:
        best = self.experiment.best
        if value is None or (best is not None and value <= best):
            return False
        self.experiment.best = value
        return True

    def close(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _check_finite(self, iteration: int) -> None:
        for name, value in self._sums.items():
            if not torch.isfinite(value):
                raise not_finite(f"{name} became {float(value)}", iteration)

    def _log(self, done: int) -> None:
        means = {name: float(value) / self._steps for name, value in self._sums.items()}
        line = {
            "iteration": done,
            "lr": optim.lr_at(self.cfg, done - 1),
            "total_loss": sum(means.values()),
            **means,
            **self._means.pop(),
            "time": self._seconds / self._steps,
        }
        if self.experiment.device.type == "cpu":
            line["cpu_time"] = self._busy / self._steps
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{line['total_loss']:.3f}", refresh=False)
        self._append(line)
        self._sums, self._seconds, self._busy, self._steps = {}, 0.0, 0.0, 0

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.experiment.is_main:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.json``; a line cut off by a kill is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def training_seconds(folder: str | Path) -> float:
    """Seconds on the clock that the training in ``folder`` spent in its steps, by its ``metrics.json``."""
    return _seconds(folder, ("time",))


def training_cost(folder: str | Path) -> float:
    """Seconds that its steps cost: on CPU, of the processor, whatever else the machine did meanwhile; on CUDA, whose
    work the processor's time does not hold, on the clock."""
    return _seconds(folder, ("cpu_time", "time"))


def _seconds(folder: str | Path, names: Sequence[str]) -> float:
    """Of the first of the names that a line has."""
    lines = [line for line in read_metrics(Path(folder) / "metrics.json") if "time" in line]
    steps = [0, *(line["iteration"] for line in lines)]
    means = [next(line[name] for name in names if name in line) for line in lines]
    return sum(mean * (now - before) for mean, before, now in zip(means, steps, steps[1:]))


def drop_lines_after(path: Path, iteration: int) -> None:
    """Leave out of a ``metrics.json`` what lies after ``iteration``, which a run that goes on does again."""
    if not path.is_file():
        return
    kept = [line for line in read_metrics(path) if line["iteration"] <= iteration] if iteration else []
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
