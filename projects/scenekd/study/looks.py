"""Two rows, and their teacher, side by side: what each class gains, what the networks cost, what they see.

The gains are over all seeds that both rows have; pictures and costs are of the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..compare.cost import Cost, measure_costs
from ..compare.gains import Gains, class_gains
from ..compare.pictures import compare_pictures
from ..compare.scoring import choose_spaced
from ..compare.sources import Source, iou_of, open_student
from ..compare.tables import cost_table, costs_json, gain_pieces, gains_json
from ..data.catalog import load_datasets
from ..data.images import read_image
from ..errors import UserError
from ..report_html import Markup, escape, figure
from ..report_panels import Picture
from .rows import Pair, Table
from .runs import Run
from .scores import ClassMeans

IMAGES = 4  # shown of each pair

Finished = Mapping[str, Mapping[int, Run]]  # row id → seed → run


@dataclass(frozen=True)
class Look:
    """What was found of one pair; ``problem`` says why there are no pictures and costs."""

    pair: Pair
    gains: Gains
    costs: Sequence[Cost] = ()
    pictures: Sequence[Picture] = ()
    problem: str = ""


def look_at(table: Table, finished: Finished, means: ClassMeans) -> list[Look]:
    """Every pair of the table that shares a seed."""
    looks = []
    for pair in table.pairs:
        before, after = finished.get(pair.before, {}), finished.get(pair.after, {})
        seeds = sorted(set(before) & set(after))
        if not seeds:
            continue
        images = means.counts(after[seeds[0]].cfg)["sem_seg"]
        gains = class_gains(
            (pair.before, [_iou(before[seed]) for seed in seeds]),
            (pair.after, [_iou(after[seed]) for seed in seeds]),
            images,
            min_images=means.min_images,
        )
        shown = [(pair.teacher, run) for run in list(finished.get(pair.teacher, {}).values())[:1]]
        shown += [(pair.before, before[seeds[0]]), (pair.after, after[seeds[0]])]
        try:
            looks.append(Look(pair, gains, *_networks(shown)))
        except UserError as error:
            looks.append(Look(pair, gains, problem=str(error)))
    return looks


def _iou(run: Run) -> dict[str, float]:
    return iou_of(run.results().get("sem_seg", {}))


def _networks(shown: Sequence[tuple[str, Run]]) -> tuple[list[Cost], list[Picture]]:
    cfg = shown[-1][1].cfg
    dataset = load_datasets(cfg.DATASETS.TEST, cfg, train=False)
    sources = [_open(name, run, dataset.classes) for name, run in shown]
    records = choose_spaced(dataset, IMAGES).records
    return measure_costs(sources, read_image(records[0])), list(compare_pictures(dataset, records, sources))


def _open(name: str, run: Run, classes: Sequence[str]) -> Source:
    trained = run.row.kind == "train"
    weights = str(run.folder / checkpoint.MODEL_FINAL) if trained else str(Path(run.cfg.MODEL.WEIGHTS))
    return open_student(name, weights, run.cfg, classes)


def look_sections(looks: Sequence[Look]) -> list[tuple[str, list[Markup]]]:
    """A section of the page for each."""
    sections = []
    for look in looks:
        pieces = [*gain_pieces(look.gains), *cost_table(look.costs)]
        if look.problem:
            pieces.append(Markup(f"<p>{escape(f'No pictures and costs: {look.problem}')}</p>"))
        if look.pictures:
            text = f"{len(look.pictures)} images evenly spaced over the test images, by the networks of one seed."
            pieces.append(Markup(f"<p>{escape(text)}</p>"))
        pieces += [figure(picture.pixels, picture.image_id) for picture in look.pictures]
        sections.append((look.pair.title, pieces))
    return sections


def look_json(look: Look) -> dict[str, Any]:
    """Gains and costs for programs."""
    return {
        "before": look.pair.before,
        "after": look.pair.after,
        "gains": gains_json(look.gains),
        "cost": costs_json(look.costs) if look.costs else None,
        "problem": look.problem,
    }
