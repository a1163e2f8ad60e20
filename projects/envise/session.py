"""A run over a stream as an engine drives it: the online core, what is written as it goes, and the results."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from tqdm import tqdm

from scenekd import checkpoint
from scenekd.errors import UserError
from scenekd.evaluation.efficiency import gain_in_efficiency
from scenekd.files import write_text
from scenekd.flops import Operations, count_operations
from scenekd.recorder import drop_lines_after

from .answer_log import AnswerLog, AnswerTable
from .compare import compare_scores
from .focus import attention_results, attention_samples
from .key_frames import KEY as SEGMENTATION
from .outcome import Outcome, judge, stream_results
from .phases import ANSWER
from .pictures import stream_figures
from .run import OnlineRun
from .scores import build_compared
from .step import Answers
from .stream import StreamBatch
from .views import ATTENTION, SEPARATION, AttentionSamples, save_view, separation_view

logger = logging.getLogger(__name__)


class OnlineSession:
    """A :class:`scenekd.streaming.StreamSession`.

    Args:
        cfg: of the run, with the names of its classes. run: at its first batch, or where it goes on.

    Attributes:
        operations: of student and teacher, for one sample.
    """

    def __init__(self, cfg: CfgNode, run: OnlineRun) -> None:
        self.cfg, self.run = cfg, run
        self.net: nn.Module = run.distiller.student
        self.optimizer: torch.optim.Optimizer = run.distiller.optimizer
        self.start = run.batches
        options = run.distiller.options
        smallest = min(options.batch_size, options.answer_batch_size)
        self.total = math.ceil(run.stream.samples / smallest)  # at most
        self.operations = run_operations(run, cfg.INPUT.SIZE)
        self._folder = Path(cfg.OUTPUT_DIR)
        self._log = AnswerLog(self._folder)
        run.before_save = self._log.add
        self._lines = _Lines(cfg, run, self.operations)
        self._bar: tqdm[Any] | None = None
        self._changes = len(run.distiller.phases.changes)
        self._outcome: Outcome | None = None
        self._compared = build_compared(cfg, self.net)
        self._attention: AttentionSamples | None = None

    def begin(self) -> None:
        """Write ``config.yaml``; drop what a run that goes on writes again; open the progress bar."""
        stream = self.run.stream
        write_text(self._folder / "config.yaml", self.cfg.dump())
        self._log.begin(stream.position if self.start else 0)
        self._lines.begin(self.start)
        self._bar = tqdm(
            total=stream.samples or None, initial=stream.position, desc="stream", unit=" samples"
        )

    def next_batch(self) -> StreamBatch | None:
        """The next batch; None at the end of the stream."""
        return self.run.next_batch()

    def process(self, batch: StreamBatch) -> dict[str, float]:
        """Losses of the last update, agreement and share answered by the teacher in percent, and GiE so far."""
        start, busy = time.perf_counter(), time.process_time()
        answers = self.run.process(batch)
        self._lines.add(answers, time.perf_counter() - start, time.process_time() - busy)
        changes = self.run.distiller.phases.changes
        for position, phase, why in changes[self._changes :]:
            logger.info("sample %d: %s (%s)", position, phase, why)
        self._changes = len(changes)
        if self._bar is not None:
            self._bar.update(len(batch))
            self._bar.set_postfix_str(answers.phase, refresh=False)
        return self._lines.numbers(answers)

    def end(self) -> None:
        """Close the progress bar."""
        self._lines.write()
        if self._bar is not None:
            self._bar.close()

    def complete(self) -> dict[str, dict[str, Any]]:
        """Write the last state, ``model_final.pth`` and what pictures of several runs are drawn from; the results.

        Where ``ONLINE.JUDGE_TEACHER`` says so, the teacher is asked here about what it was not asked in the run, for
        the report alone.
        """
        self.run.save()
        checkpoint.save_model(self.net, self.cfg.dump(), self._folder / checkpoint.MODEL_FINAL)
        if not self.run.distiller.phases.changes:
            logger.warning(
                "the student never reached ONLINE.AGREEMENT %g; the teacher answered the whole stream",
                self.cfg.ONLINE.AGREEMENT,
            )
        self._outcome = judge(self.run, self._log.read(), ask_teacher=self.cfg.ONLINE.JUDGE_TEACHER)
        results = {"stream": stream_results(self.run, self._outcome, self.operations)}
        view = separation_view(self._outcome, self.run.classes)
        if view is not None:
            save_view(self._folder / SEPARATION, view)
        if self._compared:
            compared = compare_scores(self.run, self._outcome, self.operations, self._compared)
            results |= {"outlier_scores": compared} if compared else {}
        return results | self._look_at_attention(self._outcome.table)

    def _look_at_attention(self, table: AnswerTable) -> dict[str, dict[str, Any]]:
        """The section of ``ONLINE.COMPARE_ATTENTION``; what it shows is written, too."""
        if not self.cfg.ONLINE.COMPARE_ATTENTION:
            return {}
        kind = self.cfg.ONLINE.ATTENTION.KIND
        found = attention_results(self.run, table, kind)
        self._attention = attention_samples(self.run, table, kind)
        if self._attention is not None:
            save_view(self._folder / ATTENTION, self._attention)
        return {"attention": found} if found else {}

    def figures(self) -> Mapping[str, bytes]:
        """Caption → PNG, of a completed run."""
        if self._outcome is None:
            raise RuntimeError("the pictures are those of a completed run")
        return stream_figures(self.run, self._outcome, self.cfg.ONLINE.SCORE, self._attention)


class _Lines:
    """The lines of ``metrics.json``: every ``SOLVER.LOG_PERIOD`` batches, what went on since the last one."""

    def __init__(self, cfg: CfgNode, run: OnlineRun, operations: tuple[Operations, Operations]) -> None:
        self.path, self._period = Path(cfg.OUTPUT_DIR) / "metrics.json", cfg.SOLVER.LOG_PERIOD
        self._run, self._operations = run, operations
        self._seen: list[Answers] = []
        self._on_cpu = next(run.distiller.student.parameters()).device.type == "cpu"
        self._seconds = self._busy = 0.0

    def begin(self, batches: int) -> None:
        """Drop the lines after so many batches."""
        drop_lines_after(self.path, batches)

    def add(self, answers: Answers, seconds: float, busy: float) -> None:
        """Count a batch, and write a line where one is due."""
        self._seen.append(answers)
        self._seconds += seconds
        self._busy += busy
        if self._run.batches % self._period == 0:
            self.write()

    def gie(self) -> float:
        """Gain in efficiency so far, of the samples since the student answers, audits included; NaN before."""
        row = self._run.distiller.counts.summary()[ANSWER]
        if not row["samples"]:
            return math.nan
        student, teacher = self._operations
        if not teacher.ops:
            return math.nan
        return 100 * gain_in_efficiency(student.ops, teacher.ops, int(row["samples"]), int(row["asked"]))

    def numbers(self, *answers: Answers) -> dict[str, float]:
        """Of some batches: mean losses, agreement and share to the teacher in percent; GiE so far."""
        losses = [one.losses for one in answers if one.losses]
        names = dict.fromkeys(name for one in losses for name in one)
        found = {name: float(np.mean([one[name] for one in losses if name in one])) for name in names}
        agreed = np.concatenate([one.agreed for one in answers])
        if agreed.size:
            found["agreement"] = 100 * float(agreed.mean())
        found["share_to_teacher"] = 100 * float(np.concatenate([one.by_teacher for one in answers]).mean())
        gie = self.gie()
        return found if math.isnan(gie) else found | {"gie": gie}

    def write(self) -> None:
        """A line of what was counted, where there is something."""
        if not self._seen:
            return
        numbers = self.numbers(*self._seen)
        losses = [value for name, value in numbers.items() if name.startswith("loss_")]
        learnt = {"lr": self._run.distiller.optimizer.param_groups[0]["lr"], "total_loss": sum(losses)}
        line = {
            "iteration": self._run.batches,
            "samples": int(self._seen[-1].positions[-1]) + 1,
            "phase": self._seen[-1].phase,
            **(learnt if losses else {}),
            **numbers,
            "time": self._seconds / len(self._seen),
            **({"cpu_time": self._busy / len(self._seen)} if self._on_cpu else {}),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._seen, self._seconds, self._busy = [], 0.0, 0.0


def run_operations(run: OnlineRun, size: int) -> tuple[Operations, Operations]:
    """What one sample of ``size`` pixels a side costs the student, and the teacher."""
    student, teacher = run.distiller.student, run.distiller.teacher
    student.eval()
    image = torch.zeros(1, 3, size, size, device=next(student.parameters()).device)
    asked: nn.Module = getattr(teacher, "net", nn.Identity())
    return (
        count_operations(student, lambda: student(image)),
        count_operations(asked, lambda: teacher.logits(image)),
    )


def open_stream(cfg: CfgNode, *, engine: str, resume: bool) -> OnlineSession:
    """The session of a configuration; what :mod:`scenekd.streaming` asks of a system.

    Raises:
        UserError: see :meth:`.run.OnlineRun.from_config` and ``resume``.
    """
    if cfg.MODEL.ENVISE.SEGMENTATION.CONFIG:
        raise UserError(f"{SEGMENTATION}.CONFIG: a video is segmented by tools/stream.py; run that")
    run = OnlineRun.from_config(cfg)
    run.engine = engine
    if resume:
        run.resume()
    named = cfg.clone()
    named.defrost()
    named.DATASETS.CLASSES = tuple(run.classes)
    named.freeze()
    return OnlineSession(named, run)
