"""``report.html`` of a run, and one page that compares several runs. One file each, pictures included."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fvcore.common.config import CfgNode
from PIL import Image

from .data.policy import TaskPolicy, from_cache
from .hooks import hooks_of
from .predictor import Predictor
from .recorder import read_metrics
from .report_html import Markup, Number, escape, figure, number, table, write_page
from .report_panels import Picture, TeacherViews, report_panels
from .report_tables import (
    Results,
    error_shares,
    flatten_keys,
    headlines,
    interval_text,
    per_class_table,
    settings,
    teacher_table,
)
from .teachers.protocol import TASKS
from .teachers.score import read_scores
from .visualize_curves import bar_chart, error_chart, evaluation_curves, loss_curves

logger = logging.getLogger(__name__)


def write_report(
    output_dir: str | Path,
    *,
    results: Results,
    cfg: CfgNode | None = None,
    meta: Mapping[str, Any] | None = None,
    lines: Sequence[Mapping[str, Any]] = (),
    panels: Iterable[Picture] = (),
    figures: Mapping[str, bytes] | None = None,
) -> Path:
    """Write ``OUTPUT_DIR/report.html``; returns its path. The teachers' scores are those that lie there.

    Args:
        results: ``{"sem_seg": {…}, "bbox": {…}}`` in percent, as in ``results.json``.
        meta: where the results come from, as in ``results.json``.
        lines: of ``metrics.json``. panels: see :func:`~scenekd.report_panels.report_panels`.
        figures: caption → PNG, shown beside the results.
    """
    output_dir = Path(output_dir)
    drawn = {"losses": loss_curves(lines), "evaluations": evaluation_curves(lines)}
    curves = [figure(png, f"curves of the {what}") for what, png in drawn.items() if png is not None]
    asked = TASKS if cfg is None else teacher_tasks(cfg)
    scores = {task: score for task, score in read_scores(output_dir).items() if task in asked}
    shares = error_shares(results)
    errors = [figure(error_chart(shares), "kinds of wrong boxes in each class")] if shares else []
    sections = [
        ("Results", [*headlines(results), *(figure(png, name) for name, png in (figures or {}).items())]),
        ("Classes", per_class_table(results)),
        ("Wrong boxes", errors),
        ("Teachers", teacher_table(scores)),
        ("Training", curves),
        ("Test images", [figure(picture.pixels, picture.image_id) for picture in panels]),
        ("The run", [table(("", ""), flatten_keys(meta or {}))] if meta else []),
        ("Configuration", settings(cfg) if cfg is not None else []),
    ]
    return write_page(output_dir / "report.html", f"SceneKD: {output_dir.resolve().name}", sections)


def report_run(
    experiment: Any,
    results: Results,
    meta: Mapping[str, Any] | None = None,
    figures: Mapping[str, bytes] | None = None,
) -> Path | None:
    """The report of a finished run; called after ``results.json`` is written.

    What fails costs nothing but itself: without its pictures the report is still written, without a report
    the run has still ended well, and the log says why. Returns None without a report, and in processes that
    write no files.

    Args:
        experiment: a :class:`scenekd.experiment.Experiment`.
        meta: by default what ``OUTPUT_DIR/results.json`` says.
        figures: as in :func:`write_report`.
    """
    if not experiment.is_main:
        return None
    output_dir, cfg = Path(experiment.output_dir), experiment.cfg

    def write() -> Path:
        path = output_dir / "metrics.json"
        return write_report(
            output_dir,
            results=results,
            cfg=cfg,
            meta=_meta_of(output_dir) if meta is None else meta,
            lines=read_metrics(path) if path.is_file() else [],
            panels=_attempt("pictures of test images", output_dir, draw) or (),
            figures=figures,
        )

    def draw() -> list[Picture]:
        return list(run_panels(experiment, cfg.TEST.VISUALIZE))

    return _attempt("report.html", output_dir, write)


def report_stream(cfg: CfgNode, results: Results, draw: Callable[[], Mapping[str, bytes]]) -> Path | None:
    """The report of a run over a stream, after ``results.json`` is written; as :func:`report_run`, what fails costs
    nothing but itself.

    Args:
        draw: caption → PNG.
    """
    output_dir = Path(cfg.OUTPUT_DIR)
    path = output_dir / "metrics.json"
    return _attempt(
        "report.html",
        output_dir,
        lambda: write_report(
            output_dir,
            results=results,
            cfg=cfg,
            meta=_meta_of(output_dir),
            lines=read_metrics(path) if path.is_file() else [],
            figures=_attempt("pictures of the stream", output_dir, draw),
        ),
    )


T = TypeVar("T")


def _attempt(what: str, output_dir: Path, make: Callable[[], T]) -> T | None:
    """What ``make`` returns; what goes wrong is told and gives None: the run itself has ended well."""
    try:
        return make()
    except Exception as error:
        logger.warning("%s: no %s (%s: %s)", output_dir, what, type(error).__name__, error)
        logger.info("%s", what, exc_info=True)
        return None


def run_panels(experiment: Any, count: int) -> Iterable[Picture]:
    """Panels of ``count`` test images of an experiment, with the teachers that its policy asks; 0: none."""
    cfg = experiment.cfg
    if count <= 0 or not cfg.DATASETS.TEST:
        return ()
    own = hooks_of(cfg).panels(experiment, count)
    if own is not None:
        return own
    predictors = {"student": Predictor(experiment.net, cfg, experiment.device)}
    teachers = TeacherViews(cfg, teacher_tasks(cfg))
    return report_panels(predictors, experiment.test_data, teachers=teachers, count=count)


def teacher_tasks(cfg: CfgNode) -> tuple[str, ...]:
    """The tasks whose policy takes something from a teacher."""
    nodes = {task: cfg.DISTILL[task.upper()] for task in TASKS} if from_cache(cfg) else {}
    return tuple(
        task for task, node in nodes.items() if TaskPolicy(node.POLICY, fraction=node.FRACTION).needs_teacher
    )


def save_panels(experiment: Any, folder: str | Path, count: int | None = None) -> int:
    """Write panels as ``FOLDER/<image_id>.png``; of all test images by default. Returns how many."""
    folder, written = Path(folder), 0
    folder.mkdir(parents=True, exist_ok=True)
    for picture in run_panels(experiment, len(experiment.test_data) if count is None else count):
        Image.fromarray(picture.pixels).save(folder / f"{picture.image_id}.png")
        written += 1
    return written


def write_comparison(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str = "Comparison",
    metrics: Sequence[str] = ("mIoU", "mAP", "AP50"),
    trivial: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    panels: Iterable[Picture] = (),
) -> Path:
    """One page for several runs: a table, bars, notes, panels. Returns its path.

    Args:
        rows: ``{"row", "what", <metric>…, "images", "seconds"}`` of each run, optionally ``"seed"`` and
            ``"<metric>_interval"``; bars show the mean of rows of one name.
        trivial: the same for the trivial baseline: the table's first line, and a dashed line in the bars.
        notes: lines of text, such as paired differences.
    """
    shown = [*([trivial] if trivial else []), *rows]
    more = [key for key in ("seed", "images", "seconds") if any(key in row for row in shown)]
    cells = []
    for row in shown:
        numbers = [number(row.get(name)) for name in metrics]
        intervals = [interval_text(row.get(f"{name}_interval")) for name in metrics]
        both = [Number(f"{n} <small>{i}</small>") if i else n for n, i in zip(numbers, intervals)]
        cells.append([row["row"], row.get("what", ""), *both, *(number(row.get(key), 0) for key in more)])
    names = list(dict.fromkeys(row["row"] for row in rows))
    series = {
        name: [_mean(row.get(name) for row in rows if row["row"] == n) for n in names] for name in metrics
    }
    level = {name: _mean([(trivial or {}).get(name)]) for name in metrics}
    chart = [figure(bar_chart(names, series, level), "the table as bars")] if names else []
    sections = [
        ("Results", [table(("row", "labels", *metrics, *more), cells), *chart]),
        ("Paired by seed", [Markup(f"<p>{escape(note)}</p>") for note in notes]),
        ("Test images", [figure(picture.pixels, picture.image_id) for picture in panels]),
    ]
    return write_page(path, title, sections)


def _mean(values: Iterable[Any]) -> float:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _meta_of(output_dir: Path) -> dict[str, Any]:
    path = output_dir / "results.json"
    if not path.is_file():
        return {}
    meta = json.loads(path.read_text(encoding="utf-8")).get("meta", {})
    return dict(meta)
