"""What the runs of a row scored, and what may be said of the difference to another row."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from ..data.catalog import load_datasets
from ..data.records import Dataset
from ..evaluation.statistics import PairedDifference, minimum_detectable_effect, paired_difference
from ..recorder import training_cost
from ..sample import IGNORE_INDEX
from .runs import Run
from .spec import Metric

BACKGROUND = "background"


def images_per_class(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Images that can score a class, ``{"bbox": {class: n}, "sem_seg": {class: n}}``: those with a box of it
    that is not difficult; those whose mask holds it (``background`` too).
    """
    names = (BACKGROUND, *dataset.classes)
    boxes, masks = np.zeros(len(dataset.classes), int), np.zeros(len(names), int)
    for record in dataset.records:
        if record.labels is not None:
            plain = ~record.difficult if record.difficult is not None else slice(None)
            boxes[np.unique(record.labels[plain])] += 1
        if record.has_sem_seg:
            there = np.unique(dataset.read_sem_seg(record))
            masks[there[there != IGNORE_INDEX]] += 1
    return {
        "bbox": dict(zip(dataset.classes, boxes.tolist())),
        "sem_seg": dict(zip(names, masks.tolist())),
    }


class ClassMeans:
    """Means over the classes with at least ``min_images`` test images: a class with two images is noise."""

    def __init__(self, min_images: int) -> None:
        self.min_images = min_images
        self._counts: dict[tuple[str, ...], dict[str, dict[str, int]]] = {}

    def counts(self, cfg: CfgNode) -> dict[str, dict[str, int]]:
        """:func:`images_per_class` of the test set of a configuration."""
        key = (cfg.DATASETS.ROOT, *cfg.DATASETS.TEST)
        if key not in self._counts:
            self._counts[key] = images_per_class(load_datasets(cfg.DATASETS.TEST, cfg, train=False))
        return self._counts[key]

    def left_out(self, cfg: CfgNode, task: str) -> dict[str, int]:
        """Class → its test images, of the classes that are left out."""
        return {name: n for name, n in self.counts(cfg).get(task, {}).items() if n < self.min_images}

    def mean(self, metric: Metric, cfg: CfgNode, numbers: Mapping[str, Any]) -> float:
        """The metric in percent, NaN where it was not measured.

        Args:
            numbers: of the metric's task, as in ``results.json``.
        """
        if metric.read is not None:
            return metric.read(cfg, numbers) if numbers else math.nan
        if not metric.per_class:
            value = numbers.get(metric.name)
            return math.nan if value is None else float(value)
        out = self.left_out(cfg, metric.task)
        values = [
            value
            for key, value in numbers.items()
            if key.startswith(metric.per_class)
            and isinstance(value, (int, float))
            and key.removeprefix(metric.per_class) not in out
        ]
        return statistics.fmean(values) if values else math.nan


@dataclass(frozen=True)
class RowScores:
    """A row's numbers.

    Attributes:
        values: metric → seed → percent, what is not finite left out.
        seconds: of one training's steps, mean. images: that one training saw. steps: of one training.
        memory: MiB at the peak of one training, mean; NaN where it was not measured.
    """

    values: Mapping[str, Mapping[int, float]]
    seconds: float = math.nan
    images: int = 0
    steps: int = 0
    memory: float = math.nan

    @property
    def step_cost(self) -> float:
        """Milliseconds a step."""
        return 1000 * self.seconds / self.steps if self.steps else math.nan

    def mean(self, metric: str) -> float:
        """Over the seeds; NaN without any."""
        values = self.values.get(metric, {}).values()
        return statistics.fmean(values) if values else math.nan

    def sd(self, metric: str) -> float:
        """Standard deviation over the seeds (n − 1); NaN below two."""
        values = list(self.values.get(metric, {}).values())
        return statistics.stdev(values) if len(values) > 1 else math.nan

    @property
    def seeds(self) -> list[int]:
        """All seeds with some number."""
        return sorted({seed for by_seed in self.values.values() for seed in by_seed})


def spread_of(counts: Iterable[int]) -> str:
    """What the middle and the bars of a figure are, in words, of rows with so many seeds each."""
    known = sorted({count for count in counts if count})
    if not known or known[-1] == 1:
        return "one seed"
    count = str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return f"mean ± standard deviation of {count} seeds" + (" (of one: no bar)" if known[0] == 1 else "")


def score_row(runs: Mapping[int, Run], metrics: Sequence[Metric], means: ClassMeans) -> RowScores:
    """The numbers of a row from its finished runs, by seed."""
    values: dict[str, dict[int, float]] = {metric.name: {} for metric in metrics}
    for seed, run in runs.items():
        results = read_parts(run.results(), run.row.parts)
        for metric in metrics:
            value = means.mean(metric, run.cfg, results.get(metric.task, {}))
            if math.isfinite(value):
                values[metric.name][seed] = value
    trained = [run for run in runs.values() if run.row.kind == "train"]
    peaks = [run.results().get("meta", {}).get("peak_memory_mib") for run in trained]
    return RowScores(
        values,
        _mean([training_cost(run.folder) for run in trained]),
        max((run.cfg.SOLVER.MAX_ITER * run.cfg.SOLVER.IMS_PER_BATCH for run in trained), default=0),
        max((run.cfg.SOLVER.MAX_ITER for run in trained), default=0),
        _mean([peak for peak in peaks if peak is not None]),
    )


def read_parts(results: Mapping[str, Any], parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of a run's results those that a row shows, by task: all, or ``task`` and ``task/prefix``, of which the numbers
    that are named ``prefix/<name>``, as <name>."""
    if not parts:
        return dict(results)
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        task, _, prefix = part.partition("/")
        numbers = results.get(task, {})
        if prefix:
            start = f"{prefix}/"
            numbers = {k.removeprefix(start): v for k, v in numbers.items() if k.startswith(start)}
        found.setdefault(task, {}).update(numbers)
    return found


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


@dataclass(frozen=True)
class Comparison:
    """A row against a reference in one metric, paired by seed; differences are row − reference, in points.

    Attributes:
        published: the paper's difference; None where it gives none.
        difference: over the seeds that both have; None below two.
        single: the difference of the only common seed.
        headroom: what all labels gain over the labels at hand; None where it is not known.
        lower: whether less of the metric is better.
    """

    row: str
    reference: str
    metric: str
    published: float | None
    difference: PairedDifference | None
    single: float | None = None
    headroom: float | None = None
    lower: bool = False

    @functools.cached_property
    def detectable(self) -> float | None:
        """The smallest true difference that so many pairs find four times in five."""
        if self.difference is None:
            return None
        return minimum_detectable_effect(self.difference.sd, self.difference.n)

    @property
    def verdict(self) -> str:
        """What may be claimed: ``better``, ``worse``, or nothing (``""``)."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return ""
        return "better" if (self.difference.mean > 0) != self.lower else "worse"

    @property
    def has_headroom(self) -> bool | None:
        """Whether the labels at hand leave room that this comparison could see; None where not known."""
        if self.headroom is None or self.detectable is None:
            return None
        return self.headroom > self.detectable


def compare(
    row: tuple[str, RowScores, Mapping[str, float]],
    reference: tuple[str, RowScores, Mapping[str, float]],
    metric: str,
    *,
    headroom: tuple[RowScores, RowScores] | None = None,
    lower: bool = False,
) -> Comparison | None:
    """A comparison of two rows, each (id, scores, published); None where they share no seed.

    Args:
        headroom: scores with the labels at hand, and with all labels.
        lower: whether less of the metric is better.
    """
    first, second = reference[1].values.get(metric, {}), row[1].values.get(metric, {})
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    a, b = [first[s] for s in seeds], [second[s] for s in seeds]
    published = None
    if metric in row[2] and metric in reference[2]:
        published = row[2][metric] - reference[2][metric]
    room = headroom[1].mean(metric) - headroom[0].mean(metric) if headroom else math.nan
    return Comparison(
        row[0],
        reference[0],
        metric,
        published,
        paired_difference(a, b) if len(seeds) > 1 else None,
        b[0] - a[0] if len(seeds) == 1 else None,
        (-room if lower else room) if math.isfinite(room) else None,
        lower,
    )
