"""``compare.html``, ``compare.json`` and the pictures of one comparison."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import replacing, write_text
from ..report_html import Markup, escape, figure, number, table, write_page
from ..report_panels import Picture
from ..results import plain
from .comparison import Comparison, Training
from .sources import METRICS
from .tables import cost_table, costs_json, gain_pieces, gains_json


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Write ``compare.html``, ``compare.json`` and ``pictures/<image_id>.png``; returns the page's path."""
    pictures = []
    for picture in comparison.pictures():
        pictures.append(picture)
        with replacing(folder / "pictures" / f"{picture.image_id}.png") as temporary:
            Image.fromarray(picture.pixels).save(temporary, format="PNG")
    write_text(folder / "compare.json", json.dumps(plain(_as_json(comparison)), indent=2) + "\n")
    sections = [
        ("What is compared", [_about(comparison), _scores(comparison)]),
        *((f"{g.after} against {g.before}, class by class", gain_pieces(g)) for g in comparison.gains),
        ("What the networks cost", cost_table(comparison.costs)),
        ("Images", _images(comparison, pictures)),
    ]
    names = ", ".join(model.name for model in comparison.models)
    return write_page(folder / "compare.html", f"SceneKD: {names}", sections)


def _about(comparison: Comparison) -> Markup:
    data = comparison.dataset
    labelled = sum(record.has_sem_seg for record in data.records)
    text = f"Tested on {labelled} images of {data.name}. A score counts no void pixels; it is in percent."
    return Markup(f"<p>{escape(text)}</p>")


def _scores(comparison: Comparison) -> Markup:
    lines = []
    for model in comparison.models:
        for training in model.trainings:
            cells = [number(training.scores.get(name)) for name in ("mean", *METRICS)]
            seed = number(training.seed)
            trained = ", ".join(training.trained_on) or "not told"
            file = Markup(f'<small style="overflow-wrap: anywhere">{escape(training.file)}</small>')
            lines.append((model.name, *cells, seed, trained, file))
    headers = (
        f"mIoU of classes with {comparison.min_images} images or more",
        "mIoU",
        "pixel accuracy",
        "mean accuracy",
        "frequency-weighted IoU",
    )
    return table(("network", *headers, "seed", "learned from", "file"), lines)


def _images(comparison: Comparison, pictures: Sequence[Picture]) -> list[Markup]:
    if not pictures:
        return []
    shown = [Markup(f"<p>{escape(f'Images: {comparison.choice.how}.')}</p>")]
    if comparison.changes is not None:
        better, worse = comparison.changes
        first, last = comparison.ends
        text = f"In pixel accuracy {better} of the test images are better and {worse} worse with {last} than {first}."
        shown.append(Markup(f"<p>{escape(text)}</p>"))
    for picture in pictures:
        scores = comparison.image_scores(picture.image_id)
        if scores:
            parts = [
                f"{name}: {number(one['pACC'], 1)} % of the pixels right, mIoU {number(one['mIoU'], 1)}"
                for name, one in scores.items()
            ]
            shown.append(Markup(f"<p><b>{escape(picture.image_id)}</b> — {escape('; '.join(parts))}</p>"))
        shown.append(figure(picture.pixels, picture.image_id))
    return shown


def _as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "test": comparison.dataset.name,
        "images": len(comparison.dataset),
        "min_images": comparison.min_images,
        "models": [
            {"name": model.name, "trainings": [_training_json(one) for one in model.trainings]}
            for model in comparison.models
        ],
        "gains": [gains_json(gains) for gains in comparison.gains],
        "cost": costs_json(comparison.costs),
        "chosen": comparison.choice.how,
        "pictures": {
            record.image_id: comparison.image_scores(record.image_id) for record in comparison.choice.records
        },
    }


def _training_json(training: Training) -> dict[str, Any]:
    return {
        "file": training.file,
        "seed": training.seed,
        "trained_on": list(training.trained_on),
        "scores": dict(training.scores),
        "IoU": dict(training.iou),
    }


def summary(comparison: Comparison) -> str:
    """One line a network, and one a comparison."""
    lines = []
    for model in comparison.models:
        values = [one.scores["mean"] for one in model.trainings]
        spread = f" ± {statistics.stdev(values):.2f} ({len(values)} trainings)" if len(values) > 1 else ""
        lines.append(
            f"{model.name}: mIoU {statistics.fmean(values):.2f}{spread}, of classes with "
            f"{comparison.min_images} test images or more"
        )
    for gains in comparison.gains:
        if gains.mean is not None:
            low, high = gains.mean.interval or (None, None)
            text = f", 95 % interval over {gains.over} {low:+.2f} … {high:+.2f}" if low is not None else ""
            lines.append(f"{gains.after} − {gains.before}: {gains.mean.mean:+.2f} points{text}")
    return "\n".join(lines)
