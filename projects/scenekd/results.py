"""The final numbers of a run: ``results.json``, percentages as 0–100."""

from __future__ import annotations

import json
import math
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from fvcore.common.config import CfgNode

from . import __version__
from .errors import UserError
from .files import write_text


def flatten(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """``{"sem_seg": {"mIoU": 61.0}}`` → ``{"sem_seg/mIoU": 61.0}``; what is not one number is left out."""
    return {
        f"{task}/{name}": float(value)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def describe_run(cfg: CfgNode, engine: str, **more: Any) -> dict[str, Any]:
    """Where results come from: seed, engine, versions, commit, and what else the caller knows."""
    return {
        "seed": cfg.SEED,
        "engine": engine,
        "system": cfg.SYSTEM,
        "evaluator": cfg.TEST.EVALUATOR,
        "versions": {
            "scenekd": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "git_commit": _git_commit(),
        **more,
    }


def peak_memory() -> float:
    """MiB that this process had at most: on the accelerator where it used one, else all of its own."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_results(
    path: str | Path, results: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]
) -> None:
    """Write the numbers and ``meta`` as JSON; NaN (no ground truth) becomes null."""
    content = plain({**results, "meta": dict(meta)})
    write_text(path, json.dumps(content, indent=2) + "\n")


def plain(value: Any) -> Any:
    """Mappings, lists and numpy's scalars as JSON takes them; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_expected(cfg: CfgNode, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare with ``TEST.EXPECTED_RESULTS``: [task, metric, value, tolerance] each.

    Raises:
        UserError: a number lies outside its tolerance or is missing, or a row is malformed.
    """
    for row in cfg.TEST.EXPECTED_RESULTS:
        try:
            task, metric, value, tolerance = row
            value, tolerance = float(value), float(tolerance)
        except (TypeError, ValueError):
            raise UserError(
                f"TEST.EXPECTED_RESULTS: {row!r} is not [task, metric, value, tolerance]"
            ) from None
        actual = results.get(task, {}).get(metric)
        if actual is None or not math.isfinite(actual) or abs(actual - value) > tolerance:
            raise UserError(
                f"TEST.EXPECTED_RESULTS: {task}/{metric} is {actual}, expected {value} ± {tolerance}"
            )
