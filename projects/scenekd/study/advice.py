"""Advice drawn from a study's runs: what labels are worth beside a teacher, and whether its fitness foretells a gain.

``budgets`` of a rows file: ``metric``; ``alone`` and ``teacher``: series over the percentage of missing labels, whose
scores at (100 − x) % make the two learning curves; ``all``: the row with every label.
``forecasts``: ``metric``; ``reference``: the row without a teacher; ``rows``: those whose gain over it is foretold from
the fitness of their segmentation target (:mod:`scenekd.teachers.fitness`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

from ..data.catalog import load_datasets
from ..errors import UserError
from ..report_html import Markup, Number, escape, number, table
from ..teachers.build import open_store
from ..teachers.fitness import Fitness, segmentation_fitness
from .fitness import Forecast, fit_forecast
from .planner import Worth, label_worth
from .rows import Row
from .runs import Run
from .scores import RowScores

Scores = Mapping[str, RowScores]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """See the module; ``everything`` is the file's ``all``."""

    metric: str
    alone: str
    teacher: str
    everything: str


@dataclass(frozen=True)
class ForecastSpec:
    """See the module."""

    metric: str
    reference: str
    rows: tuple[str, ...]


def worth_of(budget: Budget, rows: Sequence[Row], scores: Scores) -> list[Worth]:
    """What the labels beside the teacher are worth, over the seeds that all rows have; nothing where rows lack."""
    alone = _curve(budget.alone, rows, scores, budget.metric)
    if budget.everything in scores:
        alone[1.0] = scores[budget.everything].values.get(budget.metric, {})
    teacher = _curve(budget.teacher, rows, scores, budget.metric)
    parts = [*alone.values(), *teacher.values()]
    seeds = sorted(set.intersection(*(set(part) for part in parts))) if parts else []
    if not seeds or len(alone) < 2 or not teacher:
        return []
    return label_worth(
        {share: [by_seed[seed] for seed in seeds] for share, by_seed in alone.items()},
        {share: [by_seed[seed] for seed in seeds] for share, by_seed in teacher.items()},
    )


def _curve(series: str, rows: Sequence[Row], scores: Scores, metric: str) -> dict[float, Mapping[int, float]]:
    """Share of labels → seed → score, of the rows of a series that have run and left some labels."""
    return {
        round(1 - row.x / 100, 6): scores[row.id].values.get(metric, {})
        for row in rows
        if row.series == series and row.x is not None and row.x < 100 and row.id in scores
    }


def target_fitness(cfg: CfgNode) -> Fitness | None:
    """The fitness of the segmentation target that a configuration makes, on its own labelled training images."""
    data = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True)
    return segmentation_fitness(data, open_store(cfg, "segmentation"), cfg)


@dataclass(frozen=True)
class Foretold:
    """Rows with their fitness and mean gain, and the line through them; None below four rows or where it fails."""

    names: tuple[str, ...]
    fitness: tuple[Fitness, ...]
    gains: tuple[float, ...]
    forecast: Forecast | None


def foretell(spec: ForecastSpec, scores: Scores, finished: Mapping[str, Mapping[int, Run]]) -> Foretold:
    """Fitness against gain, of the rows that share a seed with the reference and have a labelled image."""
    base = scores[spec.reference].values.get(spec.metric, {}) if spec.reference in scores else {}
    found: list[tuple[str, Fitness, float]] = []
    for name in spec.rows:
        own = scores[name].values.get(spec.metric, {}) if name in scores else {}
        seeds = sorted(set(own) & set(base))
        if not seeds:
            continue
        try:
            fitness = target_fitness(next(iter(finished[name].values())).cfg)
        except UserError as error:  # the data or the cache have gone since
            logger.warning("%s: no fitness: %s", name, error)
            continue
        if fitness is not None and math.isfinite(fitness.information):
            found.append((name, fitness, sum(own[s] - base[s] for s in seeds) / len(seeds)))
    names, fits, gains = zip(*found) if found else ((), (), ())
    try:
        forecast = fit_forecast([fit.information for fit in fits], gains)
    except ValueError:
        forecast = None
    return Foretold(tuple(names), tuple(fits), tuple(gains), forecast)


def worth_table(budget: Budget, found: Sequence[Worth]) -> list[Markup]:
    """ "x % of the labels with the teacher are worth y % without", with 95 % intervals over the seeds."""
    if not found:
        return []
    lines = [
        (number(100 * w.share, 1), number(w.score), _share(w.equal), f"{_share(w.low)} … {_share(w.high)}")
        for w in found
    ]
    headers = ("labels in %", f"{budget.metric} with the teacher", "worth, without it", "95 % interval")
    text = (
        f"{budget.teacher} beside {budget.alone}: shares of labels in percent. Between the shares that were run the "
        "curve is straight in the logarithm; beyond them nothing is known."
    )
    return [table(headers, lines, text)]


def _share(share: float) -> str:
    if share == 0:
        return "less than was run"
    return "more than all" if math.isinf(share) else f"{100 * share:.1f} %"


def forecast_table(spec: ForecastSpec, found: Foretold) -> list[Markup]:
    """Each row's fitness, gain, and the gain foretold from the other rows; then the forecast's own error."""
    if not found.names:
        return []
    predicted: Sequence[float] = found.forecast.predicted if found.forecast else [math.nan] * len(found.names)
    lines: list[Sequence[Any]] = [
        (name, number(fit.information), number(100 * fit.accuracy, 1), Number(f"{gain:+.2f}"), number(p))
        for name, fit, gain, p in zip(found.names, found.fitness, found.gains, predicted)
    ]
    headers = ("row", "information", "accuracy in %", f"gain in {spec.metric}", "foretold from the others")
    text = f"Gain in points over {spec.reference}, mean over seeds. Information: 1 the labels, 0 class frequencies."
    return [table(headers, lines, text), Markup(f"<p>{escape(_judgement(found.forecast))}</p>")]


def _judgement(forecast: Forecast | None) -> str:
    if forecast is None:
        return "Fewer than four rows, or all of one fitness: no forecast."
    return (
        f"gain = {forecast.slope:.2f} · information {forecast.intercept:+.2f}. Each row foretold from the others: "
        f"root mean square error {forecast.error:.2f} points, against {forecast.naive_error:.2f} of their mean gain "
        f"alone; gain or harm told rightly for {100 * forecast.right_sign:.0f} % of {forecast.rows} rows."
    )
