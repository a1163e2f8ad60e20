"""One run over a stream: from configuration to ``results.json`` and ``report.html``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ..errors import UserError
from ..report import report_stream
from ..results import check_expected, describe_run, peak_memory, write_results
from ..streaming import StreamSession


def train_on_stream(
    open_stream: Callable[..., StreamSession], cfg: CfgNode, engine: str, *, resume: bool, world_size: int
) -> dict[str, dict[str, Any]]:
    """Drive a session to the end of its stream; returns the results.

    Raises:
        UserError: several processes, or a key that a stream has no use for.
    """
    if world_size > 1:
        raise UserError("--num-gpus: a stream is looked at by one process; set it to 1")
    check_stream_keys(cfg)
    session = open_stream(cfg, engine=engine, resume=resume)
    start = time.perf_counter()
    importlib.import_module(f".{engine}_stream", __package__).drive(session)
    results = session.complete()
    more = {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mib": round(peak_memory(), 1),
        "device": str(next(session.net.parameters()).device),
        "threads": torch.get_num_threads(),
    }
    path = Path(cfg.OUTPUT_DIR) / "results.json"
    write_results(path, results, describe_run(session.cfg, engine, **more))
    report_stream(session.cfg, results, session.figures)
    check_expected(cfg, results)
    return results


def check_stream_keys(cfg: CfgNode) -> None:
    """Refuse what would be ignored.

    Raises:
        UserError: it is switched on.
    """
    solver = cfg.SOLVER
    refused = {
        "SOLVER.AMP.ENABLED": solver.AMP.ENABLED,
        "SOLVER.EMA.ENABLED": solver.EMA.ENABLED,
        "SOLVER.ASYNC_UPDATES.ENABLED": solver.ASYNC_UPDATES.ENABLED,
        "SOLVER.ACCUMULATE_STEPS": solver.ACCUMULATE_STEPS > 1,
    }
    for key, wanted in refused.items():
        if wanted:
            raise UserError(f"{key}: a run over a stream has no such thing; leave it at its default")
