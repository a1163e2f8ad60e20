"""Networks scored on one test set, image by image, and the images that are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..data.images import read_image
from ..data.records import Dataset, Record
from ..errors import UserError
from ..evaluation.semantic import SegmentationRecords
from ..report_panels import choose_records
from .sources import Source

CHANGED, WORST, SPACED = "changed", "worst", "spaced"  # how images are chosen


def score(dataset: Dataset, sources: Sequence[Source]) -> list[SegmentationRecords]:
    """The records of each source, in one pass over the images that have a mask.

    Raises:
        UserError: no image has one, or a network fails at an image.
    """
    labelled = [record for record in dataset.records if record.has_sem_seg]
    if not labelled:
        raise UserError(f"DATASETS.TEST: no image of {dataset.name} has a mask; there is nothing to compare")
    found = [SegmentationRecords(("background", *dataset.classes)) for _ in sources]
    for record in tqdm(labelled, desc="scoring", unit="image", dynamic_ncols=True):
        image, truth = read_image(record), dataset.read_sem_seg(record)
        for source, records in zip(sources, found):
            records.add(record.image_id, source.label_map(record, image), truth)
    return found


@dataclass(frozen=True)
class Choice:
    """Images that are shown, and in words how they were chosen."""

    records: tuple[Record, ...]
    how: str


def choose_named(dataset: Dataset, names: Sequence[str]) -> Choice:
    """The images named, in that order, each once.

    Raises:
        UserError: the data set has no such image.
    """
    by_id = {record.image_id: record for record in dataset.records}
    for name in names:
        if name not in by_id:
            raise UserError(
                f"--images {name}: {dataset.name} has no such image; its ids are like {dataset.image_ids[0]}"
            )
    return Choice(tuple(by_id[name] for name in dict.fromkeys(names)), "named on the command line")


def choose_spaced(dataset: Dataset, count: int) -> Choice:
    """``count`` images evenly spaced over the data set, whatever anyone says about them."""
    records = tuple(choose_records(dataset, count))
    return Choice(records, f"{len(records)} evenly spaced over the test images, whatever was said about them")


Named = tuple[str, Mapping[str, float]]


def choose_scored(dataset: Dataset, count: int, after: Named, before: Named | None = None) -> Choice:
    """``count`` images by the share of right pixels: those where it changed most, up or down, from ``before`` to
    ``after``; without ``before``, those where it is least. Ties go to the first by id.

    Args:
        after, before: name of the network, and image id → pixel accuracy in percent; images where it is NaN (all void)
            are left out.
    """
    keys, how = dict(after[1]), f"whose share of right pixels is least with {after[0]}"
    if before is not None:
        keys = {name: -abs(value - before[1][name]) for name, value in keys.items()}
        how = f"whose share of right pixels changed most, for better or worse, from {before[0]} to {after[0]}"
    ranked = sorted((key, name) for name, key in keys.items() if not math.isnan(key))
    by_id = {record.image_id: record for record in dataset.records}
    records = tuple(by_id[name] for _, name in ranked[:count])
    return Choice(records, f"the {len(records)} {how}: not a fair sample")


def pixel_accuracy(records: SegmentationRecords) -> dict[str, float]:
    """Image id → percent."""
    return {name: scores["pACC"] for name, scores in records.image_scores().items()}


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[int, int]:
    """Images that are better and worse after than before; those that are equal, or NaN, are neither."""
    differences = np.array([after[name] - before[name] for name in after])
    return int((differences > 0).sum()), int((differences < 0).sum())
