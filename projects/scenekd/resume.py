"""The state from which an interrupted run goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from . import checkpoint
from .errors import UserError

logger = logging.getLogger(__name__)


def resume_state(cfg: Any) -> dict[str, Any]:
    """What ``OUTPUT_DIR/last.pth`` holds; nothing, with a warning, where it does not exist.

    Raises:
        UserError: the file is no resume state, or of a run that saw other images step by step.
    """
    last = Path(cfg.OUTPUT_DIR) / checkpoint.LAST
    if not last.is_file():
        logger.warning("%s: nothing to resume, starting afresh", last)
        return {}
    state = checkpoint.read(last)
    for key in ("optimizer", "model", "iteration"):
        if key not in state:
            raise UserError(f"{last}: holds no {key!r}, so it is no resume state; delete it or drop --resume")
    # Which image a step shows depends on these two.
    for key, value in (("SEED", cfg.SEED), ("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH)):
        if state.get(key) != value:
            raise UserError(f"{last}: written with {key} {state.get(key)}, not {value}; set that to resume")
    return state
