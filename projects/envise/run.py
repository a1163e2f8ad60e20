"""A run over a stream that can be cut at any moment: the loop that an engine drives, and its state on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scenekd.errors import UserError
from scenekd.models import choose_device, load_initial_weights

from .attention import build_attention
from .counts import TruthReport
from .online import OnlineDistiller
from .saved import StateFiles
from .scores import OutlierScore
from .step import Answers, ExtraLoss
from .stream import Stream, StreamBatch, build_stream
from .students import build_student
from .teachers import build_stream_teacher, check_teacher_knows

logger = logging.getLogger(__name__)


class OnlineRun:
    """A stream, and who learns from it.

    Args:
        folder: of the state. period: batches between two states. seed: of the stream, held against a state's.
        classes: names of the student's classes.

    Attributes:
        batches: processed so far.
        engine: name of the framework that drives the run, kept in its state; "": none.
        before_save: called with each batch's answers, before the state that follows them is written.
    """

    def __init__(
        self,
        stream: Stream,
        distiller: OnlineDistiller,
        folder: str | Path,
        *,
        period: int = 1,
        seed: int = 0,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.stream, self.distiller = stream, distiller
        self._files = StateFiles(folder, _place)
        self.report = TruthReport(stream.truth)
        self.batches, self._period, self._seed = 0, max(1, period), seed
        self.classes, self.engine = classes or stream.classes, ""
        self.before_save: Callable[[Answers], None] | None = None

    @classmethod
    def from_config(
        cls, cfg: CfgNode, *, score: OutlierScore | None = None, extra_loss: ExtraLoss | None = None
    ) -> OnlineRun:
        """From a configuration; arguments as of :class:`.online.OnlineDistiller`, by default what ``ONLINE`` names.

        Raises:
            UserError: no such data, teacher or student, or they do not fit.
        """
        stream = build_stream(cfg)
        teacher, classes = build_stream_teacher(cfg, stream.classes)
        check_teacher_knows(teacher.answered, stream.priors, classes)
        student = build_student(cfg, len(classes))
        load_initial_weights(student, cfg.MODEL.WEIGHTS)
        student.to(choose_device(cfg))
        if extra_loss is None:
            extra_loss = build_attention(cfg, student, teacher.head)
        distiller = OnlineDistiller(student, teacher, len(classes), cfg, score=score, extra_loss=extra_loss)
        period = cfg.ONLINE.CHECKPOINT_PERIOD
        return cls(stream, distiller, cfg.OUTPUT_DIR, period=period, seed=cfg.SEED, classes=classes)

    def advance(self) -> Answers | None:
        """Process the next batch and write the state; None at the end of the stream."""
        batch = self.next_batch()
        return None if batch is None else self.process(batch)

    def next_batch(self) -> StreamBatch | None:
        """The next batch; None at the end of the stream.

        Raises:
            UserError: see :meth:`.stream.Stream.next_batch`.
        """
        return self.stream.next_batch(self.distiller.batch_size)

    def process(self, batch: StreamBatch) -> Answers:
        """Answer a batch, learn from it where that is the phase, and write the state."""
        answers = self.distiller.process(batch)
        self.report.add(answers)
        self.batches += 1
        if self.before_save is not None:
            self.before_save(answers)
        if self.batches % self._period == 0:
            self.save()
        return answers

    def save(self) -> None:
        """Write the state: all of it where weights, replay or score may have changed since it was last written."""
        state = {
            "batches": self.batches,
            "seed": self._seed,
            **({"engine": self.engine} if self.engine else {}),
            "batch_size": self.distiller.options.batch_size,
            "answer_batch_size": self.distiller.options.answer_batch_size,
            "stream": self.stream.state_dict(),
            "report": self.report.state_dict(),
            **self.distiller.light_state_dict(),
        }
        self._files.save(state, self.distiller.state_dict)

    def resume(self) -> bool:
        """Go on from the state on disk; False, with a warning, where there is none.

        Raises:
            UserError: it is of another run.
        """
        path = self._files.path
        if not path.is_file():
            logger.warning("%s: nothing to resume, starting afresh", path)
            return False
        state = self._files.read()
        wanted = {
            "SEED": ("seed", self._seed),
            "ONLINE.BATCH_SIZE": ("batch_size", self.distiller.options.batch_size),
            "ONLINE.ANSWER_BATCH_SIZE": ("answer_batch_size", self.distiller.options.answer_batch_size),
        }
        state.setdefault("answer_batch_size", state.get("batch_size"))  # written before they could differ
        for key, (name, value) in wanted.items():
            if state.get(name) != value:
                raise UserError(
                    f"{path}: written with {key} {state.get(name)}, not {value}; set that to resume"
                )
        try:
            self.distiller.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{path}: the state of another configuration ({reason}); give another OUTPUT_DIR"
            ) from None
        self.stream.load_state_dict(state["stream"])
        self.report.load_state_dict(state["report"])
        self.batches = state["batches"]
        return True

    def summary(self) -> dict[str, Any]:
        """Counts by phase, changes of phase, agreement of each window; and what the labels say, where known."""
        distiller = self.distiller
        return {
            "counts": distiller.counts.summary(),
            "changes": [list(change) for change in distiller.phases.changes],
            "agreement_windows": list(distiller.phases.windows),
            "steps": distiller.step,
            "unreadable": len(self.stream.unreadable),
            "truth": self.report.summary() if self.stream.truth.is_known else {},
        }


def _place(state: Mapping[str, Any]) -> list[int]:
    """Steps and changes of phase: while both stay, weights, optimizer, replay and score do."""
    return [int(state["step"]), len(state["phases"]["changes"])]
