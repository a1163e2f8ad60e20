"""The doctor's look at what a run has left in its output folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint
from .config import load_config
from .doctor_findings import Finding, error, ok, run_checks, warning
from .doctor_health import RunFacts, check_health, read_teacher_scores
from .errors import UserError
from .evaluation.evaluator import TASKS
from .recorder import read_metrics

_FLAT = 0.02  # a loss that fell by less than this part of itself is flat
_MIN_LINES = 8  # fewer say nothing about a trend


def check_run(folder: str | Path) -> list[Finding]:
    """All checks of an output folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return [error(f"{folder}: no such folder", "give the OUTPUT_DIR of a run")]
    if not (folder / "config.yaml").is_file():
        return [error(f"{folder}: holds no config.yaml, as a run leaves it", "give the OUTPUT_DIR of a run")]
    findings = run_checks(
        [
            ("config.yaml", lambda: check_config_file(folder)),
            ("metrics.json: losses are finite and fall", lambda: check_metrics(folder)),
            ("checkpoints can be read", lambda: check_checkpoints(folder)),
            ("the run has ended", lambda: check_ended(folder)),
            ("results.json", lambda: check_results(folder)),
            ("nothing half-written", lambda: check_leftovers(folder)),
        ]
    )
    try:
        facts = read_facts(folder)
    except UserError as reason:
        return [*findings, error(str(reason))]
    return findings + check_health(facts) if facts is not None and facts.lines else findings


def read_facts(folder: Path) -> RunFacts | None:
    """What the checks of a run's health need; None without a readable configuration, of which another check tells,
    as of damaged results.

    Raises:
        UserError: a teacher's scores are damaged.
    """
    try:
        cfg = load_config(folder / "config.yaml")
    except UserError:
        return None
    path = folder / "metrics.json"
    lines = read_metrics(path) if path.is_file() else []
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = {}
    if not isinstance(results, dict):
        results = {}
    return RunFacts(cfg, lines, results, read_teacher_scores(folder, cfg))


def check_config_file(folder: Path) -> list[Finding]:
    """A configuration that is no longer understood."""
    try:
        load_config(folder / "config.yaml")
    except UserError as reason:
        return [error(str(reason), "is this the OUTPUT_DIR of a run?")]
    return []


def check_metrics(folder: Path) -> list[Finding]:
    """Losses that are not finite, or do not fall."""
    path = folder / "metrics.json"
    if not path.is_file():
        return [warning(f"{path}: not there; the run has not reached its first SOLVER.LOG_PERIOD")]
    lines = [line for line in read_metrics(path) if "total_loss" in line]
    return check_losses(lines)


def check_losses(lines: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The training lines of ``metrics.json``."""
    findings = []
    for name in dict.fromkeys(
        k for line in lines for k in line if k == "total_loss" or k.startswith("loss_")
    ):
        points = [(line.get("iteration"), line[name]) for line in lines if name in line]
        bad = [at for at, value in points if value is None or not math.isfinite(value)]
        if bad:
            what = f"{name} is not finite from iteration {bad[0]} on"
            findings.append(error(what, "lower SOLVER.BASE_LR, add SOLVER.WARMUP_ITERS, or clip gradients"))
            continue
        values = np.array([value for _, value in points], float)
        if len(values) < _MIN_LINES:
            continue
        if not values.any():
            findings.append(warning(f"{name} is 0 throughout: nothing teaches this task", "see its labels"))
            continue
        quarter = len(values) // 4
        first, last = values[:quarter].mean(), values[-quarter:].mean()
        if last > first * (1 - _FLAT):
            what = f"{name} is flat: {first:.4g} in the first quarter of the run, {last:.4g} in the last"
            findings.append(warning(what, "check labels, targets and learning rate; doctor CONFIG helps"))
    return findings


def check_checkpoints(folder: Path) -> list[Finding]:
    """Checkpoints that cannot be read, or hold weights that are not finite."""
    findings = []
    for path in sorted(folder.glob("*.pth")):
        try:
            weights = checkpoint.weights_of(checkpoint.read(path))
        except UserError as reason:
            findings.append(error(str(reason), "delete it; the run goes on from another, or starts afresh"))
            continue
        bad = [
            name
            for name, value in weights.items()
            if value.is_floating_point() and not value.isfinite().all()
        ]
        if bad:
            findings.append(error(f"{path}: {len(bad)} weights are not finite, such as {bad[0]}"))
    return findings


def check_ended(folder: Path) -> list[Finding]:
    """A run that was interrupted, and how to go on."""
    last, final = folder / checkpoint.LAST, folder / checkpoint.MODEL_FINAL
    command = f"python tools/train_net.py --config-file {folder / 'config.yaml'} --output-dir {folder}"
    if not last.is_file():
        return [] if final.is_file() else [warning(f"{folder}: no checkpoint yet", command)]
    try:
        done, cfg = checkpoint.read(last).get("iteration"), load_config(folder / "config.yaml")
    except UserError:
        return []  # another check says so
    if not isinstance(done, int):
        return [error(f"{last}: holds no iteration, so it is no resume state")]
    if done < cfg.SOLVER.MAX_ITER:
        what = f"interrupted: {done} of {cfg.SOLVER.MAX_ITER} iterations are saved"
        return [warning(what, f"{command} --resume")]
    return [] if final.is_file() else [warning(f"{final}: not there", f"{command} --resume")]


def check_results(folder: Path) -> list[Finding]:
    """Final numbers that are missing, undefined, or those of a network that has learned nothing."""
    path = folder / "results.json"
    if not path.is_file():
        if not (folder / checkpoint.MODEL_FINAL).is_file():
            return []  # not ended
        test = f"python tools/test.py {folder / 'config.yaml'} {folder / checkpoint.MODEL_FINAL}"
        return [warning(f"{path}: not there", test)]
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return check_numbers({task: results[task] for task in TASKS if task in results})
    except (ValueError, AttributeError, TypeError) as reason:
        return [error(f"{path}: damaged ({reason})", "score the checkpoint again with tools/test.py")]


def check_numbers(results: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """The tasks of ``results.json``."""
    findings = []
    for task, prefix, headline in (
        ("sem_seg", "IoU-", "mIoU"),
        ("bbox", "AP-", "mAP"),
        ("segm", "AP-", "mAP"),
        ("classification", "ACC-", "accuracy"),
        ("hidden_object", "TOP1-", "top1"),
        ("multi_label", "AP-", "mAP"),
    ):
        metrics = results.get(task)
        if metrics is None:
            continue
        if headline in metrics and metrics[headline] is None:
            findings.append(error(f"{task}/{headline} is undefined", "does the test set have labels?"))
        classes = {
            name[len(prefix) :]: value
            for name, value in metrics.items()
            if name.startswith(prefix) and not name.endswith("_interval") and name != f"{prefix}background"
        }
        undefined = [name for name, value in classes.items() if value is None]
        if undefined:
            findings.append(ok(f"{task}: no test label of {', '.join(undefined)}: these do not count"))
        known = [value for value in classes.values() if value is not None]
        if known and max(known) == 0:
            findings.append(warning(f"{task}: every class scores 0: the network has learned nothing of it"))
    return findings


def check_leftovers(folder: Path) -> list[Finding]:
    """Temporary files that a kill has left."""
    found = sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))
    if not found:
        return []
    return [warning(f"{folder}: {', '.join(found)} left by a kill", "delete them while no run is writing")]
