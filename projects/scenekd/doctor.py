"""What is wrong with this installation, this configuration, this run; and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .doctor_environment import INSTALL, check_environment
from .doctor_findings import ERROR, OK, WARNING, Finding, error

__all__ = ["check_config", "check_environment", "check_folder", "summary"]


def check_config(path: str | Path, overrides: Sequence[str] = ()) -> list[Finding]:
    """The settings of a configuration, its data, and its teachers' saved outputs."""
    try:
        from .config import load_config
        from .doctor_config import check_settings
        from .doctor_data import check_data
    except Exception as reason:  # a broken installation fails in many ways; the environment's check names it
        return [_unusable(reason)]
    from .errors import UserError

    try:
        cfg = load_config(path, overrides)
    except UserError as reason:
        return [error(str(reason))]
    return check_settings(cfg) + check_data(cfg, str(path))


def check_folder(path: str | Path) -> list[Finding]:
    """What a run has left in its output folder."""
    try:
        from .doctor_run import check_run
    except Exception as reason:
        return [_unusable(reason)]
    return check_run(path)


def _unusable(reason: Exception) -> Finding:
    what = f"SceneKD cannot be imported ({type(reason).__name__}: {reason})"
    return error(" ".join(what.split())[:200], f"see the errors above, or {INSTALL}")


def summary(findings: Sequence[Finding]) -> str:
    """How many there are of each level."""
    counts = {level: sum(f.level == level for f in findings) for level in (ERROR, WARNING, OK)}
    return f"{counts[ERROR]} errors, {counts[WARNING]} warnings, {counts[OK]} ok"
