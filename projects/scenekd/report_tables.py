"""The tables of a report: headline numbers, classes, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode

from .config import get_cfg
from .evaluation.error_analysis import KINDS
from .evaluation.evaluator import ERRORS
from .report_html import Markup, escape, interval_bar, number, table
from .teachers.score import HEADERS, TeacherScore, score_rows

# Task, key of its per-class numbers, and what the column is called.
_PER_CLASS = (
    ("sem_seg", "IoU-", "IoU"),
    ("bbox", "AP-", "AP"),
    ("segm", "AP-", "mask AP"),
    ("classification", "ACC-", "accuracy"),
    ("hidden_object", "TOP1-", "top-1"),
    ("multi_label", "AP-", "AP"),
)
_NAMES = {
    "pACC": "pixel accuracy",
    "mACC": "mean accuracy",
    "fwIoU": "frequency-weighted IoU",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "ECE": "expected calibration error",
    "mean_rank": "mean rank of the true class",
    "log_loss": "−log probability of the true class, nats",
    "area": "area under the top-n curve",
    "top10": "top-10 accuracy",
    "top1": "top-1 accuracy",
}

# Of a run over a stream, those of its numbers that are shown large, and what they are called.
_STREAM = {
    "agreement": "agreement with the teacher",
    "samples_to_convergence": "samples until the student answered",
    "share_to_teacher": "share answered by the teacher",
    "share_asked": "share asked of the teacher, audits included",
    "accuracy": "accuracy of the whole system",
    "teacher_accuracy": "accuracy of the teacher alone",
    "student_accuracy": "accuracy of the student alone",
    "agreement_inliers": "agreement on inliers",
    "gie": "gain in efficiency",
    "auroc": "AUROC of the gate",
    "fpr95": "FPR95 of the gate",
    "aurc": "area under risk and coverage",
    "silhouette": "silhouette of inliers and outliers, −1…1",
}

Results = Mapping[str, Mapping[str, Any]]


def headlines(results: Results) -> list[Markup]:
    """The numbers of each task that belong to no single class, with their 95 % intervals."""
    tiles = []
    for task, _, _ in _PER_CLASS:
        for name, value in results.get(task, {}).items():
            if "-" in name or isinstance(value, (list, tuple, dict)):
                continue
            note = interval_text(results[task].get(f"{name}_interval"))
            tiles.append(
                f'<div class="tile">{escape(_NAMES.get(name, name))}<b>{number(value)}</b>'
                f"<span>{escape(note)}</span></div>"
            )
    tiles += [
        f'<div class="tile">{escape(text)}<b>{number(results["stream"].get(name))}</b></div>'
        for name, text in _STREAM.items()
        if name in results.get("stream", {})
    ]
    if not tiles:
        return [Markup("<p>No results.</p>")]
    return [Markup(f'<div class="tiles">{"".join(tiles)}</div>')]


def per_class_table(results: Results) -> list[Markup]:
    """IoU, AP or accuracy of every class with their intervals; a dash where the ground truth holds none."""
    columns = [(results[task], key, title) for task, key, title in _PER_CLASS if task in results]
    names = dict.fromkeys(
        name[len(key) :]
        for metrics, key, _ in columns
        for name in metrics
        if name.startswith(key) and not name.endswith("_interval")
    )
    if not names:
        return []
    rows = []
    for name in names:
        row: list[Any] = [name]
        for metrics, key, _ in columns:
            value, interval = metrics.get(key + name), metrics.get(f"{key}{name}_interval")
            row += [number(value), interval_text(interval), interval_bar(value, interval)]
        rows.append(row)
    known = any(name.endswith("_interval") for metrics, _, _ in columns for name in metrics)
    heading, caption = (
        ("95 % interval", "; intervals from a bootstrap over the images") if known else ("", "")
    )
    headers = ["class", *(text for _, _, title in columns for text in (title, heading, ""))]
    return [table(headers, rows, f"In percent{caption}.")]


def error_shares(results: Results) -> dict[str, dict[str, float]]:
    """Class → kind of error → percent, all classes first; empty where the run analysed none."""
    found = results.get(ERRORS, {})
    names = [name.removeprefix(f"{KINDS[0]}-") for name in found if name.startswith(f"{KINDS[0]}-")]
    shares = {"all": {kind: found[kind] for kind in KINDS}} if found else {}
    for name in names:
        row = {kind: found[f"{kind}-{name}"] for kind in KINDS}
        shares[name] = {kind: math.nan if value is None else value for kind, value in row.items()}
    return shares


def teacher_table(scores: Mapping[str, TeacherScore]) -> list[Markup]:
    """The teachers alone, as they were scored before anything was learnt from them."""
    if not scores:
        return []
    rows = [[*row[:2], *(number(value) for value in row[2:])] for row in score_rows(scores)]
    caption = (
        "In percent, against the labelled training images, before training. ECE: expected calibration error. "
        "Sparsity: images without a box over the filter; pixels without a class above background. Agreement: "
        "boxes of the ground truth that were found; labelled pixels that are right."
    )
    return [table(HEADERS, rows, caption)]


def interval_text(interval: Sequence[Any] | None) -> str:
    """``low … high``; nothing where there is no interval."""
    if not interval or any(v is None or not math.isfinite(v) for v in interval):
        return ""
    return f"{interval[0]:.1f} … {interval[1]:.1f}"


def flatten_keys(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A tree of keys as (dotted key, value)."""
    rows: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, Mapping):
            rows += flatten_keys(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def settings(cfg: CfgNode) -> list[Markup]:
    """What differs from the defaults as a table, and all of it behind a fold."""
    defaults = dict(flatten_keys(get_cfg(cfg.SYSTEM)))
    changed = [
        (key, value) for key, value in flatten_keys(cfg) if key not in defaults or defaults[key] != value
    ]
    fold = f"<details><summary>all keys</summary><pre>{escape(cfg.dump())}</pre></details>"
    return [table(("key", "value"), changed, "Keys that differ from the defaults."), Markup(fold)]
