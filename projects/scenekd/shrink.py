"""The ladder of a trained network: float and int8, by PyTorch and by onnxruntime; score, latency and size of each.

Every step is the file that :mod:`.export` and :mod:`.export_int8` write, run by its own runtime on the CPU, one image
at a time, and scored by the evaluator that scores checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from .benchmark.measure import spread, take_turns
from .benchmark.options import machine
from .calibration_images import calibration_batches
from .errors import UserError
from .evaluation.evaluator import Evaluator
from .evaluation.run import evaluate
from .experiment import Experiment
from .export import export
from .export_int8 import export_int8
from .export_onnx import Session, require_onnx
from .files import write_text
from .quantize import Int8Options, choose_backend, using
from .report_html import number, table, write_page
from .sample import Prediction
from .teachers.live_build import build_online

HEADLINE = {"segmentation": ("sem_seg", "mIoU"), "classification": ("classification", "accuracy")}
FLOAT, INT8 = "float, PyTorch", "int8, PyTorch"
FLOAT_ONNX, INT8_ONNX = "float, ONNX", "int8, ONNX"
TEACHER = "teacher, PyTorch"
WARM_UP = 3  # TorchScript compiles in its second call


@dataclass
class Step:
    """One row of the ladder.

    Attributes:
        name: of the step. file: its name; "" for the teacher. bytes: its size.
        score: mIoU or accuracy on the test set, in percent.
        seconds: median time of one image. speedup: (median, smallest, largest) of the float step's seconds over this
            one's, paired by turn.
        detail: what is in the file.
    """

    name: str
    file: str = ""
    bytes: int | None = None
    score: float | None = None
    seconds: float | None = None
    speedup: tuple[float, float, float] | None = None
    detail: str = ""


@dataclass
class Ladder:
    """All steps, the metric's name, and the machine with its settings."""

    metric: str
    steps: list[Step]
    machine: dict[str, Any]

    def rows(self) -> Iterator[list[str]]:
        """As text: step, score, speed, milliseconds, megabytes, detail."""
        for step in self.steps:
            speed = "" if step.speedup is None else f"{step.speedup[0]:.2f}"
            if step.speedup is not None and step.name != FLOAT:
                speed += f" [{step.speedup[1]:.2f} … {step.speedup[2]:.2f}]"
            yield [
                step.name,
                number(step.score),
                speed,
                number(None if step.seconds is None else 1e3 * step.seconds, 1),
                number(None if step.bytes is None else step.bytes / 1e6),
                step.detail,
            ]

    @property
    def headers(self) -> list[str]:
        """Of :meth:`rows`."""
        return ["step", self.metric, "speed, × float", "ms an image", "MB", "file"]

    @property
    def caption(self) -> str:
        """How it was measured."""
        about = self.machine
        return (
            f"{self.metric} in percent, one image at a time; median of {about['repeats']} samples taken in turn, "
            f"after {WARM_UP} calls, {about['threads']} threads on {about['cpu']}, load {about['load'][0]}"
        )

    def text(self) -> str:
        """The table for a terminal."""
        lines = [self.headers, *self.rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headers) - 1)]
        shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0])) for line in lines]
        return "\n".join([*(line.rstrip() for line in shown), self.caption])

    def write(self, folder: Path) -> None:
        """``shrink.json`` and ``shrink.html`` in ``folder``."""
        steps = [dataclasses.asdict(step) for step in self.steps]
        body = {"metric": self.metric, "machine": self.machine, "steps": steps}
        write_text(folder / "shrink.json", json.dumps(body, indent=2) + "\n")
        write_page(
            folder / "shrink.html",
            "float to int8",
            [("Steps", [table(self.headers, self.rows(), self.caption)])],
        )


@dataclass
class _Side:
    """A step, and what answers in its name; ``backend``: torch's engine for int8, while it is asked."""

    step: Step
    run: Callable[[Tensor], Any]
    backend: str

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with using(self.backend), torch.inference_mode():
            yield

    def time(self, image: Tensor) -> Callable[[], object]:
        """The work to time."""

        def work() -> None:
            with self.ready():
                self.run(image)

        return work


def shrink(
    experiment: Experiment,
    folder: Path,
    *,
    calibrate: int,
    options: Int8Options,
    repeats: int = 15,
    teacher: bool = False,
    say: Callable[[str], object] = print,
) -> Ladder:
    """Write the four files to ``folder``, and measure them; ONNX is left out where its packages are missing.

    Args:
        experiment: with the network, ``MODEL.WEIGHTS`` of it whole, and the test set.
        calibrate: training images for the scales. options: of torch's int8.
        repeats: samples of each step's time. teacher: with the teacher of ``TEACHER`` beside it.
        say: is told what is being done.

    Raises:
        UserError: a network that is not quantised, no test set, no calibration images, a backend that is not here, or
            what exporting refuses.
    """
    cfg, net = experiment.cfg, experiment.net.cpu().eval()
    tasks: Any = getattr(net, "tasks", ())
    task: str = tasks[0] if hasattr(net, "network") else ""
    if task not in HEADLINE:
        raise UserError(f"MODEL: a {type(net).__name__} cannot be quantised; take a network of SYSTEM fcn_kd")
    if repeats < 1:
        raise UserError(f"--repeat: {repeats}; give at least one")
    options = dataclasses.replace(options, backend=choose_backend(options.backend))
    kind, metric = HEADLINE[task]
    evaluator = Evaluator.from_config(experiment.test_data, cfg, (kind,))
    batches = calibration_batches(cfg, calibrate)
    images = [batch[0].permute(1, 2, 0).numpy() for batch in batches][:2]
    sides = list(_files(net, cfg, folder, batches, images, options, say))
    if teacher:
        online = build_online(cfg, task)
        sides.append(_Side(Step(TEACHER), lambda image: {"": online.logits(image)}, options.backend))
    field = next(iter(net.outputs(batches[0][:1].float())))  # type: ignore[operator]
    for side in sides:
        say(f"{side.step.name}: scoring {len(experiment.test_data)} images")
        side.step.score = _score(side, field, experiment, evaluator, kind, metric)
    say("timing")
    _time(sides, batches[0][:1].float(), repeats)
    about = machine(torch.get_num_threads()) | {"repeats": repeats, "backend": options.backend}
    return Ladder(metric, [side.step for side in sides], about)


def _files(
    net: nn.Module,
    cfg: CfgNode,
    folder: Path,
    batches: Sequence[Tensor],
    images: Sequence[Any],
    options: Int8Options,
    say: Callable[[str], object],
) -> Iterator[_Side]:
    folder.mkdir(parents=True, exist_ok=True)
    steps = {FLOAT: ("float", "torchscript"), INT8: ("int8", "torchscript")}
    try:
        require_onnx()
        steps |= {FLOAT_ONNX: ("float", "onnx"), INT8_ONNX: ("int8", "onnx")}
    except UserError as error:
        say(f"no ONNX steps: {error}")
    for name, (kind, format) in steps.items():
        say(f"{name}: writing")
        path = folder / f"{kind}.{'onnx' if format == 'onnx' else 'pt'}"
        if kind == "float":
            written = export(net, cfg, path, format=format, images=images)
        else:
            chosen = options if format == "torchscript" else None
            written = export_int8(net, cfg, path, batches, format=format, options=chosen, images=images)
        # onnxruntime is told its threads when it opens a file
        run = Session(path, torch.get_num_threads()) if format == "onnx" else written.run
        yield _Side(Step(name, path.name, path.stat().st_size, detail=written.detail), run, options.backend)


def _score(
    side: _Side, field: str, experiment: Experiment, evaluator: Evaluator, kind: str, metric: str
) -> float:
    def ask(images: Tensor) -> list[Prediction]:
        said = []
        for image in images.split(1):
            (logits,) = side.run(image).values()
            size = (image.shape[-2], image.shape[-1])
            found: dict[str, Any] = {field: torch.as_tensor(logits)[0]}
            said.append(Prediction(size=size, **found))
        return said

    with side.ready():
        results = evaluate(ask, experiment.test_loader(), evaluator)
    return float(results[kind][metric])


def _time(sides: Sequence[_Side], image: Tensor, repeats: int) -> None:
    times = take_turns([side.time(image) for side in sides], repeats=repeats, warm=WARM_UP)
    for side, seconds in zip(sides, times):
        side.step.seconds = spread(seconds)[0]
        side.step.speedup = spread([base / own for base, own in zip(times[0], seconds)])
