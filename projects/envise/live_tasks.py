"""The live task of a configuration."""

from __future__ import annotations

import sys

from fvcore.common.config import CfgNode

from .live import live_source
from .live_cascade import LiveCascade
from .run import OnlineRun


def live_overrides(source: str | None, max_samples: int | None) -> list[str]:
    """``KEY VALUE`` pairs of a source that a command line names: the whole of it, in its own order; or with
    ``max_samples`` so much of the configuration's stream.

    Raises:
        UserError: no such source.
    """
    pairs = [] if max_samples is None else ["STREAM.SAMPLES", str(max_samples)]
    if source is None:
        return pairs
    own = ["STREAM.SOURCE", live_source(source), "STREAM.PAIRS", "", "STREAM.SHIFTS", "()"]
    return [*own, *(pairs or ["STREAM.SAMPLES", "0"])]


def build_task(cfg: CfgNode, *, packed: str = "auto") -> LiveCascade:
    """Stream, teacher and student.

    Args:
        packed: as of :class:`.live_cascade.LiveCascade`.

    Raises:
        UserError: what is named is not there, or does not fit.
    """
    often = cfg.clone()
    often.defrost()
    often.ONLINE.CHECKPOINT_PERIOD = sys.maxsize  # states are written here, after the log
    often.freeze()
    run = OnlineRun.from_config(often)
    classes = run.stream.classes or getattr(run.distiller.teacher, "classes", ())
    return LiveCascade(run, cfg.OUTPUT_DIR, cfg.INPUT.SIZE, packed=packed, classes=classes)
