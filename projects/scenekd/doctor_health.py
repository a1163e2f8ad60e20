"""The doctor's reading of a finished run: why its numbers are what they are.

Every check takes what a run leaves behind: its configuration, the lines of ``metrics.json`` (training lines have
``total_loss``, the others are evaluations), ``results.json``, and the teachers' own scores where they were taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .doctor_curves import best_evaluation, evaluations, fall_at_end, loss_names, raw_series, rise, wobble
from .doctor_findings import Finding, error, run_checks, warning
from .errors import UserError

SCORES_FILE = "teacher_scores.json"
_SCORES = {"segmentation": ("sem_seg", ("mIoU",)), "detection": ("bbox", ("mAP", "AP50", "AP"))}

_RISE = 0.5  # a loss that ends above its best by this part of it has diverged
_FALL = 0.05  # a loss that still falls by this part over the last quarter is not done
_WARMUP_SHARE = 0.2
_EPOCHS = 10
_OFF_RATE = 2.0  # a rate this many times off what the batch size asks for
_STARVED_SHARE = 0.05  # of the weighted losses
_PROGRESS = 0.25  # a starved term has fallen by less than this part of the best term's fall
_WOBBLE = 1.0  # percentage points between neighbouring evaluations
_LATE = 0.6  # a best evaluation before this part of the run is early


@dataclass
class RunFacts:
    """What is known of a run.

    Attributes:
        cfg: its configuration. lines: of ``metrics.json``. results: of ``results.json``, {} without.
        teachers: task → {"sem_seg": {"mIoU": …}, …}, each teacher's own scores.
    """

    cfg: Any
    lines: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    teachers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def check_health(facts: RunFacts) -> list[Finding]:
    """All checks; each finding is what, the evidence, and what to do."""
    return run_checks(
        [
            ("teachers", lambda: check_teachers(facts)),
            ("losses did not rise", lambda: check_divergence(facts)),
            ("length of the training", lambda: check_length(facts)),
            ("learning rate and batch size", lambda: check_rate(facts.cfg)),
            ("balance of the losses", lambda: check_balance(facts)),
            ("steadiness of the evaluations", lambda: check_wobble(facts)),
            ("the last evaluation is about the best", lambda: check_overfit(facts)),
            ("every class is predicted", lambda: check_classes(facts.results)),
        ]
    )


def read_teacher_scores(folder: Path, cfg: Any) -> dict[str, Mapping[str, Any]]:
    """``teacher_scores.json`` of each task's teacher: in its cache, beside it, or in the run's folder.

    Raises:
        UserError: a file is damaged.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for task in _SCORES:
        if not cfg.TEACHER[task.upper()].TYPE:
            continue
        cache = Path(cfg.TEACHER[task.upper()].CACHE or folder / "teacher_cache" / task)
        for path in (cache / SCORES_FILE, cache.parent / SCORES_FILE, folder / SCORES_FILE):
            if path.is_file():
                try:
                    scores = json.loads(path.read_text(encoding="utf-8"))
                except ValueError as reason:
                    raise UserError(f"{path}: damaged ({reason}); score the teacher again") from None
                if _SCORES[task][0] in scores:
                    found[task] = scores
                    break
    return found


def check_teachers(facts: RunFacts) -> list[Finding]:
    """A teacher that knows less than its student, or that says something else than the ground truth."""
    findings = []
    for task, (group, metrics) in _SCORES.items():
        key = task.upper()
        if facts.cfg.DISTILL[key].POLICY == "ground_truth":
            continue
        both = [
            (metric, own, student)
            for metric in metrics
            if (own := _number(facts.teachers.get(task, {}), group, metric)) is not None
            and (student := _number(facts.results, group, metric)) is not None
        ]
        if both and both[0][1] < both[0][2]:
            metric, own, student = both[0]
            what = f"the {task} teacher scores {metric} {own:.1f} alone, its student {student:.1f}"
            fix = f"it is worse than ground truth: DISTILL.{key}.POLICY fill_missing, or a better teacher"
            findings.append(warning(what, fix))
        truth, taught = (raw_series(facts.lines, f"source/{task}/{s}") for s in ("ground_truth", "teacher"))
        if min(len(truth), len(taught)) < 8:
            continue
        rose, end = rise(taught), fall_at_end(truth)
        if rose > 0.1 and fall_at_end(taught) < 0 < end:
            what = (
                f"{task}: the loss against the teacher rises ({taught[-1]:.3g}, {rose:.0%} above its best) while "
                f"the one against ground truth falls ({truth[-1]:.3g}): they disagree"
            )
            findings.append(
                warning(what, f"lower DISTILL.{key}.FRACTION or TEACHER_WEIGHT; look at its masks")
            )
    return findings


def check_divergence(facts: RunFacts) -> list[Finding]:
    """Losses that end far above their best."""
    findings = []
    for name in loss_names(facts.lines):
        series = raw_series(facts.lines, name)
        if len(series) >= 8 and np.isfinite(series).all() and (rose := rise(series)) > _RISE:
            what = f"{name} diverged: it ends {rose:.0%} above its best"
            findings.append(error(what, "lower SOLVER.BASE_LR, or set SOLVER.CLIP_GRADIENTS.ENABLED True"))
    return findings


def check_length(facts: RunFacts) -> list[Finding]:
    """Runs that ended before they were done."""
    solver, findings = facts.cfg.SOLVER, []
    falling = {}
    for name in loss_names(facts.lines):
        series = raw_series(facts.lines, name)
        if len(series) >= 16 and np.isfinite(series).all() and (fall := fall_at_end(series)) > _FALL:
            falling[name] = fall
    if falling:
        told = ", ".join(f"{name} by {fall:.0%}" for name, fall in falling.items())
        what = f"under-trained: in the last quarter of the run losses still fall ({told})"
        findings.append(warning(what, f"raise SOLVER.MAX_ITER above {solver.MAX_ITER}, and STEPS with it"))
    share = solver.WARMUP_ITERS / max(1, solver.MAX_ITER)
    if share > _WARMUP_SHARE:
        what = f"the warm-up takes {share:.0%} of the run ({solver.WARMUP_ITERS} of {solver.MAX_ITER} steps)"
        findings.append(warning(what, "lower SOLVER.WARMUP_ITERS, or raise MAX_ITER"))
    meta = facts.results.get("meta", {})
    images, seen = meta.get("train", {}).get("images"), meta.get("images_seen")
    if images and seen is not None and seen / images < _EPOCHS:
        what = f"each training image was seen {seen / images:.1f} times ({seen} views of {images} images)"
        findings.append(
            warning(what, f"under {_EPOCHS} epochs a network rarely settles; raise SOLVER.MAX_ITER")
        )
    return findings


def check_rate(cfg: Any) -> list[Finding]:
    """A learning rate that was not moved with the batch size, against ``SOLVER.REFERENCE_*``.

    Between a rate proportional to the batch (Goyal et al., 2017) and one to its square root (Krizhevsky, 2014)
    all is well, and up to a factor of two beyond.
    """
    solver = cfg.SOLVER
    if not solver.REFERENCE_IMS_PER_BATCH or not solver.REFERENCE_LR or solver.BASE_LR <= 0:
        return []
    ratio = solver.IMS_PER_BATCH / solver.REFERENCE_IMS_PER_BATCH
    low, high = sorted((solver.REFERENCE_LR * ratio, solver.REFERENCE_LR * math.sqrt(ratio)))
    if low / _OFF_RATE <= solver.BASE_LR <= high * _OFF_RATE:
        return []
    what = (
        f"SOLVER.BASE_LR {solver.BASE_LR:g} at IMS_PER_BATCH {solver.IMS_PER_BATCH} does not fit this config's "
        f"reference, {solver.REFERENCE_LR:g} at {solver.REFERENCE_IMS_PER_BATCH}"
    )
    return [warning(what, f"set BASE_LR to {low:.2g} … {high:.2g}, or the reference to what was tuned")]


def check_balance(facts: RunFacts) -> list[Finding]:
    """A term with hardly any part in the sum that does not get better while another does."""
    lines = [line for line in facts.lines if "total_loss" in line]
    names = [name for name in loss_names(lines) if len(raw_series(lines, name)) >= 8]
    if len(names) < 2:
        return []
    quarter = len(lines) // 4
    weighted = {n: np.mean([abs(line[n]) for line in lines[-quarter:] if n in line]) for n in names}
    fall = {}
    for name in names:
        series = raw_series(lines, name)
        first = np.mean(series[: len(series) // 4])
        fall[name] = 1 - np.mean(series[-(len(series) // 4) :]) / first if first > 0 else 0.0
    best = max(fall, key=lambda name: fall[name])
    total = sum(weighted.values())
    findings = []
    for name in names:
        share = weighted[name] / total if total > 0 else 1.0
        if share < _STARVED_SHARE and fall[best] > 0 and fall[name] < _PROGRESS * fall[best]:
            what = (
                f"{name} is starved: {share:.1%} of the weighted losses at the end, it fell by "
                f"{max(0.0, fall[name]):.0%} of itself where {best} fell by {fall[best]:.0%}"
            )
            fix = "raise its part in MODEL.BLITZNET.LOSS_WEIGHTS, or set MODEL.BLITZNET.BALANCE uncertainty"
            findings.append(warning(what, fix))
    return findings


def check_wobble(facts: RunFacts) -> list[Finding]:
    """Evaluations that jump, where averaged weights would not."""
    if facts.cfg.SOLVER.EMA.ENABLED:
        return []
    findings = []
    for name, (_, values) in evaluations(facts.lines).items():
        jump = wobble(values)
        if jump > _WOBBLE:
            what = f"{name} wobbles by ±{jump:.1f} points from one evaluation to the next"
            findings.append(
                warning(what, "set SOLVER.EMA.ENABLED True; the last step's number is partly luck")
            )
    return findings


def check_overfit(facts: RunFacts) -> list[Finding]:
    """A best evaluation long before the end."""
    findings = []
    for name, (iterations, values) in evaluations(facts.lines).items():
        best = best_evaluation(iterations, values)
        if best is None:
            continue
        at, value = best
        lost = value - values[-1]
        if at < _LATE * facts.cfg.SOLVER.MAX_ITER and lost > max(_WOBBLE, 2 * wobble(values)):
            what = (
                f"over-fitting: {name} was best at iteration {at} of {facts.cfg.SOLVER.MAX_ITER} ({value:.1f}) "
                f"and ended at {values[-1]:.1f}"
            )
            fix = f"set TEST.BEST_METRIC {name}, a shorter MAX_ITER, or more images, teachers or augmentation"
            findings.append(warning(what, fix))
    return findings


def check_classes(results: Mapping[str, Any]) -> list[Finding]:
    """Classes that score 0 where others do not."""
    findings = []
    for group, prefix in (
        ("sem_seg", "IoU-"),
        ("bbox", "AP-"),
        ("classification", "ACC-"),
        ("hidden_object", "TOP1-"),
    ):
        scores = {
            name[len(prefix) :]: value
            for name, value in results.get(group, {}).items()
            if name.startswith(prefix) and isinstance(value, (int, float)) and name != f"{prefix}background"
        }
        never = [name for name, value in scores.items() if value == 0]
        if never and len(never) < len(scores):
            evidence = f"{prefix}<class> is 0 for {len(never)} of {len(scores)}"
            named = ", ".join(never[:8]) + (", …" if len(never) > 8 else "")
            what = f"{group}: {named} never predicted rightly ({evidence})"
            fix = "count their labels with tools/prepare_data.py --report; more of them, or a longer run"
            findings.append(warning(what, fix))
    return findings


def _number(results: Mapping[str, Any], group: str, metric: str) -> float | None:
    value = results.get(group, {}).get(metric)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
