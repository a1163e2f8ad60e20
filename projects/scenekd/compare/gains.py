"""What each class gains from one network to another.

I: images; K: dense classes, background first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.semantic import SegmentationRecords, segmentation_scores
from ..evaluation.statistics import bootstrap_interval, paired_difference

MIN_IMAGES = 10  # test images below which a class is noise
SEEDS, IMAGES = "seeds", "images"  # what an interval is over

Scores = Mapping[str, float]  # class → IoU in percent


@dataclass(frozen=True)
class Gain:
    """IoU of one class, or a mean over classes, after − before, in points.

    Attributes:
        images: test images that hold the class. values: one for each pair of trainings.
        interval: 95 %, None where there is none: over pairs of trainings (Student's t) where there are several, else
            over the images (bootstrap).
    """

    name: str
    images: int
    values: tuple[float, ...]
    interval: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """Over the pairs."""
        return statistics.fmean(self.values)


@dataclass(frozen=True)
class Gains:
    """All classes of one comparison.

    Attributes:
        before, after: names. classes: largest gain first. apart: those with too few images, likewise.
        mean: over ``classes``; None where there are none. undefined: neither labelled nor predicted.
        over: what the intervals are over, :data:`SEEDS` or :data:`IMAGES`; "" where there are none.
    """

    before: str
    after: str
    classes: tuple[Gain, ...]
    apart: tuple[Gain, ...]
    mean: Gain | None
    undefined: tuple[str, ...]
    over: str
    min_images: int


def class_gains(
    before: tuple[str, Sequence[Scores]],
    after: tuple[str, Sequence[Scores]],
    images: Mapping[str, int],
    *,
    min_images: int = MIN_IMAGES,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Gains:
    """The gains of all classes of ``images``.

    Args:
        before, after: name, and the scores of its trainings; paired by their place.
        images: class → test images that hold it. intervals: class → over the images, for a single pair; "" of the mean.
            Classes with too few images get none of these.

    Raises:
        ValueError: no pair, or other numbers of trainings.
    """
    pairs = list(zip(before[1], after[1], strict=True))
    if not pairs:
        raise ValueError("a gain needs a training before and one after")
    found, undefined = [], []
    for name, count in images.items():
        values = [second.get(name, math.nan) - first.get(name, math.nan) for first, second in pairs]
        if all(map(math.isfinite, values)):
            # Resamples of a handful of images say nothing of others.
            own = intervals if count >= min_images else None
            found.append(Gain(name, count, tuple(values), _interval(name, values, own)))
        else:
            undefined.append(name)
    found.sort(key=lambda gain: -gain.mean)
    many = tuple(gain for gain in found if gain.images >= min_images)
    mean = None
    if many:
        means = [statistics.fmean(column) for column in zip(*(gain.values for gain in many))]
        mean = Gain("mean", 0, tuple(means), _interval("", means, intervals))
    over = SEEDS if len(pairs) > 1 else IMAGES if intervals else ""
    apart = tuple(gain for gain in found if gain.images < min_images)
    return Gains(before[0], after[0], many, apart, mean, tuple(undefined), over, min_images)


def _interval(
    name: str, values: Sequence[float], intervals: Mapping[str, tuple[float, float]] | None
) -> tuple[float, float] | None:
    if len(values) > 1:
        difference = paired_difference([0.0] * len(values), values)
        return difference.low, difference.high
    return (intervals or {}).get(name)


def image_intervals(
    before: SegmentationRecords,
    after: SegmentationRecords,
    *,
    counted: Collection[str],
    resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of each class's gain in points, over resamples of the images that both networks share; "" of the
    mean over the classes ``counted``. What another training would give is not in them.

    Args:
        before, after: records of the same images.
    """
    counts = np.concatenate([before.class_counts(), after.class_counts()])
    many = [k for k, name in enumerate(before.classes) if name in counted]

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights.astype(np.float64) @ counts  # (6, b, K)
        difference = segmentation_scores(*drawn[3:])["iou"] - segmentation_scores(*drawn[:3])["iou"]
        # A class that a resample has lost is left out of its mean, as everywhere.
        with np.errstate(invalid="ignore"):
            defined = ~np.isnan(difference[:, many])
            mean = np.nansum(difference[:, many], axis=1) / defined.sum(axis=1)
        return np.concatenate([difference, mean[:, None]], axis=1)

    low, high = bootstrap_interval(statistic, counts.shape[1], resamples=resamples, seed=seed)
    names = (*before.classes, "")
    return {
        name: (100 * float(a), 100 * float(b)) for name, a, b in zip(names, low, high) if math.isfinite(a)
    }
