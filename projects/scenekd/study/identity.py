"""When two configurations are one run: what is compared, and what is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from ..config import config_from_text
from ..errors import UserError
from ..report_tables import flatten_keys

# They change where files go and what is printed, not a weight and not a score.
_NO_MATTER = {
    *("OUTPUT_DIR", "VERSION", "WANDB", "CUDNN_BENCHMARK"),
    *("DATALOADER.NUM_WORKERS", "DATASETS.CACHE_MB"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "TEST.VISUALIZE", "TEACHER.SCORE_IMAGES"),
}

Simplify = Callable[[CfgNode, dict[str, Any]], dict[str, Any]]


def settings_of(cfg: CfgNode, name: str, simplify: Simplify | None = None) -> dict[str, Any]:
    """The keys that make a run what it is; paths below the study's output folder are told from there.

    Args:
        name: of the run, its folder below that of the study.
        simplify: takes out what the system does not heed under the other keys, so that runs that cannot differ
            are found to be one.
    """
    output = cfg.OUTPUT_DIR.removesuffix(name).rstrip("/")
    keys = {key: _from(output, value) for key, value in flatten_keys(cfg) if key not in _NO_MATTER}
    return simplify(cfg, keys) if simplify else keys


def _from(output: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_from(output, item) for item in value]
    if isinstance(value, Mapping):
        return {key: _from(output, item) for key, item in value.items()}
    inside = isinstance(value, str) and output and value.startswith(f"{output}/")
    return "{output}" + value.removeprefix(output) if inside else value


def settings_in(path: Path, name: str, simplify: Simplify | None = None) -> dict[str, Any] | None:
    """The same of a saved configuration; None where the file is missing or no longer readable."""
    if not path.is_file():
        return None
    try:
        # Keys that came since have their defaults, as they had when the run was made.
        saved = config_from_text(path.read_text(encoding="utf-8"), source=str(path))
    except UserError:
        return None
    return settings_of(saved, name, simplify)


def first_difference(was: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    """``KEY was → wanted`` of the first key that differs; empty where none does."""
    if was is None:
        return "its configuration cannot be read"
    for key in sorted({*was, *wanted}):
        if was.get(key) != wanted.get(key):
            return f"{key} was {was.get(key)!r}, now {wanted.get(key)!r}"
    return ""


def fingerprint(settings: Mapping[str, Any], *, seed: bool) -> str:
    """A text that is equal for equal settings, with or without the seed."""
    return repr(sorted((key, value) for key, value in settings.items() if seed or key != "SEED"))
