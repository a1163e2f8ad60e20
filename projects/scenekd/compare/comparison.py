"""One comparison from names of files: everything opened, scored, held against each other and measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from ..data.catalog import load_datasets
from ..data.images import read_image
from ..data.records import Dataset
from ..errors import UserError
from ..evaluation.semantic import SegmentationRecords
from ..report_panels import Picture
from ..study.scores import images_per_class
from .cost import ROUNDS, Cost, measure_costs
from .gains import MIN_IMAGES, Gains, class_gains, image_intervals
from .pictures import compare_pictures
from .scoring import (
    CHANGED,
    SPACED,
    WORST,
    Choice,
    changes,
    choose_named,
    choose_scored,
    choose_spaced,
    pixel_accuracy,
    score,
)
from .sources import METRICS, TEACHER, Source, iou_of, open_student, open_teacher, read_numbers

RESULTS = ".json"  # of files that hold results, not weights

Seeds = tuple[str, Sequence[int | None]]  # a name and the seeds of its trainings


@dataclass(frozen=True)
class Training:
    """One training's numbers in percent: ``scores`` of no single class (``mean``: over the classes with enough test
    images), ``iou`` of each, background too. ``records``: image by image, None where only results are at hand."""

    file: str
    seed: int | None
    trained_on: tuple[str, ...]
    scores: Mapping[str, float]
    iou: Mapping[str, float]
    records: SegmentationRecords | None = None


@dataclass(frozen=True)
class Model:
    """All trainings of one name, and the network of the first that has one."""

    name: str
    trainings: tuple[Training, ...]
    source: Source | None

    @property
    def seeds(self) -> Seeds:
        """For :func:`pair_seeds`."""
        return self.name, [one.seed for one in self.trainings]

    @property
    def records(self) -> SegmentationRecords | None:
        """Of that network."""
        return next((one.records for one in self.trainings if one.records is not None), None)


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        models: the teacher first, where it is asked for. gains: of each student over the first one.
        choice: the images shown. changes: images that are better and worse with the second of ``ends`` than with the
            first; None where not both were scored.
    """

    dataset: Dataset
    models: tuple[Model, ...]
    gains: tuple[Gains, ...]
    costs: tuple[Cost, ...]
    choice: Choice
    min_images: int
    ends: tuple[str, str]
    changes: tuple[int, int] | None = None

    def pictures(self) -> Iterator[Picture]:
        """Of the chosen images."""
        sources = [model.source for model in self.models if model.source is not None]
        if sources:
            yield from compare_pictures(self.dataset, self.choice.records, sources)

    def image_scores(self, image_id: str) -> dict[str, dict[str, float]]:
        """Name → mIoU and pACC of an image, of those that were scored on it."""
        found = {model.name: model.records for model in self.models}
        return {
            name: records.image_scores()[image_id]
            for name, records in found.items()
            if records is not None and image_id in records
        }


@dataclass(frozen=True)
class Wanted:
    """Which images are shown: the ids named, else ``count`` of them by ``how``, see :mod:`.scoring`."""

    names: tuple[str, ...] = ()
    how: str = CHANGED
    count: int = 6


def compare(
    cfg: CfgNode,
    files: Sequence[tuple[str, str]],
    *,
    teacher: bool = False,
    wanted: Wanted | None = None,
    min_images: int = MIN_IMAGES,
    rounds: int = ROUNDS,
) -> Comparison:
    """Compare networks on ``DATASETS.TEST``.

    Args:
        cfg: for the data, the teacher, and checkpoints without a configuration.
        files: (name, checkpoint or results.json) of each training; several of one name are seeds of one model.
        teacher: compare that of ``TEACHER.SEGMENTATION`` too.
        wanted: the images shown; by default those that changed most. rounds: timed calls of each network; 0: no costs.

    Raises:
        UserError: a file, name or image that cannot be used.
    """
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST: names no data set; give one, such as \"('voc2012_seg_val',)\"")
    dataset = load_datasets(cfg.DATASETS.TEST, cfg, train=False)
    wanted = wanted or Wanted()
    if wanted.names:
        choose_named(dataset, wanted.names)  # an id that does not exist is told before any work
    opened = [(TEACHER, open_teacher(cfg))] if teacher else []
    numbers = [(name, read_numbers(name, path, dataset)) for name, path in files if path.endswith(RESULTS)]
    networks = [(n, open_student(n, p, cfg, dataset.classes)) for n, p in files if not p.endswith(RESULTS)]
    sources = [source for _, source in (*opened, *networks)]
    known = [*((name, one.seed) for name, one in networks), *((name, one.seed) for name, one in numbers)]
    seeds = [
        (n, [seed for name, seed in known if name == n]) for n in dict.fromkeys(name for name, _ in files)
    ]
    for other in seeds[1:]:  # what cannot be paired is told before any work
        pair_seeds(seeds[0], other)
    images = images_per_class(dataset)["sem_seg"]
    counted = [name for name, count in images.items() if count >= min_images]
    scored = dict(zip(map(id, sources), score(dataset, sources))) if sources else {}
    models = []
    for name in dict.fromkeys((*([TEACHER] if teacher else []), *(name for name, _ in files))):
        own = [source for source in sources if source.name == name]
        trainings = [_from_records(one, scored[id(one)], counted) for one in own]
        trainings += [
            Training(n.file, n.seed, n.trained_on, _with_mean(n.scores, n.iou, counted), n.iou)
            for other, n in numbers
            if other == name
        ]
        models.append(Model(name, tuple(trainings), own[0] if own else None))
    students = models[1:] if teacher else models
    found = tuple(
        _gains(students[0], other, images, counted, min_images=min_images, cfg=cfg) for other in students[1:]
    )
    first, last = students[0], students[-1]
    choice = _choose(dataset, wanted, first, last)
    shown = [model.source for model in models if model.source is not None]
    pictured = choice.records or tuple(dataset.records[:1])
    costs = measure_costs(shown, read_image(pictured[0]), rounds=rounds) if rounds and shown else []
    changed = None
    if first is not last and first.records is not None and last.records is not None:
        changed = changes(pixel_accuracy(first.records), pixel_accuracy(last.records))
    ends = (first.name, last.name)
    return Comparison(dataset, tuple(models), found, tuple(costs), choice, min_images, ends, changed)


def _from_records(source: Source, records: SegmentationRecords, counted: Sequence[str]) -> Training:
    summary = records.summary()
    iou = iou_of(summary)
    scores = {name: summary[name] for name in METRICS}
    return Training(
        source.file, source.seed, source.trained_on, _with_mean(scores, iou, counted), iou, records
    )


def _with_mean(
    scores: Mapping[str, float], iou: Mapping[str, float], counted: Sequence[str]
) -> dict[str, float]:
    values = [iou[name] for name in counted if iou[name] == iou[name]]  # NaN where it is undefined
    return dict(scores) | {"mean": statistics.fmean(values) if values else float("nan")}


def _gains(
    before: Model,
    after: Model,
    images: Mapping[str, int],
    counted: Sequence[str],
    *,
    min_images: int,
    cfg: CfgNode,
) -> Gains:
    pairs = [(before.trainings[i], after.trainings[j]) for i, j in pair_seeds(before.seeds, after.seeds)]
    intervals = None
    if len(pairs) == 1 and cfg.TEST.BOOTSTRAP:
        records = [one.records for one in pairs[0]]
        if records[0] is not None and records[1] is not None:
            intervals = image_intervals(
                records[0], records[1], counted=counted, resamples=cfg.TEST.BOOTSTRAP, seed=cfg.SEED
            )
    return class_gains(
        (before.name, [pair[0].iou for pair in pairs]),
        (after.name, [pair[1].iou for pair in pairs]),
        images,
        min_images=min_images,
        intervals=intervals,
    )


def pair_seeds(before: Seeds, after: Seeds) -> list[tuple[int, int]]:
    """The places of the trainings that have the same seed; a lone one on each side is a pair whatever its seed.

    Raises:
        UserError: several without, or with equal, seeds; or no seed in common.
    """
    if len(before[1]) == len(after[1]) == 1:
        return [(0, 0)]
    for name, seeds in (before, after):
        if None in seeds or len(set(seeds)) < len(seeds):
            named = ", ".join("unknown" if seed is None else str(seed) for seed in seeds)
            raise UserError(
                f"--models {name}: its trainings have seeds {named}; give each seed once, as SEED of its run"
            )
    common = [seed for seed in before[1] if seed in after[1]]
    if not common:
        raise UserError(f"--models {before[0]}, {after[0]}: no seed in common; nothing can be paired")
    return [(list(before[1]).index(seed), list(after[1]).index(seed)) for seed in common]


def _choose(dataset: Dataset, wanted: Wanted, first: Model, last: Model) -> Choice:
    if wanted.names:
        return choose_named(dataset, wanted.names)
    if wanted.how == SPACED or last.records is None:
        return choose_spaced(dataset, wanted.count)
    after = (last.name, pixel_accuracy(last.records))
    if wanted.how == WORST or first is last or first.records is None:
        return choose_scored(dataset, wanted.count, after)
    return choose_scored(dataset, wanted.count, after, (first.name, pixel_accuracy(first.records)))
