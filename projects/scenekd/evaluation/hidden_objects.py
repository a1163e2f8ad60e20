"""Hidden objects: how high the true class of what is hidden ranks, by n, by class, and by what was hidden.

Shape shorthand: N: cases; C: classes; P: pictures; b: resamples; S: statistics. Ties count in expectation
(:mod:`.ranking`). Intervals come from a bootstrap over pictures, as the objects of one are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax
from torch import Tensor

from ..hidden import HiddenObject
from .arrays import class_logits, defined_mean, group_matrix
from .calibration import BINS, bin_of
from .image_records import ImageRecords
from .ranking import chances_within, true_ranks
from .statistics import bootstrap_interval

TOPS = (1, 5, 10)
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.4)  # upper ends of the groups of mask ratio; the last is open
MANY = 4  # from so many visible objects on they are one group


class Ranked(NamedTuple):
    """One case: what was hidden, how many classes score above the true one and equal to it (itself counted), the
    probability of the likeliest class, and −log of the true one's in nats."""

    case: HiddenObject
    above: int
    tied: int
    confidence: float
    log_loss: float


class HiddenObjectRecords(ImageRecords[Ranked]):
    """The network's word on every hidden object.

    Args:
        classes: C names.
    """

    def add(self, image_id: str, scores: np.ndarray | Tensor, case: HiddenObject) -> None:
        """Record one case; one that is there already is left as it is.

        Args:
            scores: (C,) finite; their softmax is the probability of each class.

        Raises:
            ValueError: not C finite scores, or a label outside 0…C−1.
        """
        if image_id in self._records:
            return
        logits = class_logits(scores, len(self.classes))
        above, tied = true_ranks(logits[None], np.array([case.label]))[0]
        logs = log_softmax(logits)
        confidence = min(float(np.exp(logs.max())), 1.0)
        self._records[image_id] = Ranked(case, int(above), int(tied), confidence, -float(logs[case.label]))

    def summary(self, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """In percent, but for ``mean_rank`` (1…C), ``log_loss`` (mean −log probability of the true class, nats; what
        always says the class frequencies has their entropy) and counts.

        ``top1``, ``top5``, ``top10`` (those below C), ``mean_rank``, ``area`` under the top-n curve (its mean over n:
        100 is ideal, constant scores give (C + 1) / 2C), ``balanced_accuracy`` (mean over the classes' top-1), ``ECE``
        (:mod:`.calibration`); ``TOP1-<class>``; ``objects``, ``pictures``; ``top_n``, the curve, C numbers;
        ``groups``: kind of group → group → objects, top1 and top5 of it.

        Args:
            bootstrap: resamples of the pictures for the 95 % intervals ``<key>_interval`` = [low, high]; 0: none.
        """
        records = self._sorted()
        statistic = _Statistic(records, len(self.classes))
        pictures = statistic.num_pictures
        values = statistic(np.ones((1, pictures)))[0]
        bounds = None
        if bootstrap:
            bounds = bootstrap_interval(statistic, pictures, resamples=bootstrap, seed=seed)
        keys = ["mean_rank", "log_loss", "balanced_accuracy", "ECE", "area"]
        keys += [f"top{n}" for n in TOPS] + [f"TOP1-{name}" for name in self.classes]
        result: dict[str, Any] = {}
        for place, key in enumerate(keys):
            if key.removeprefix("top").isdigit() and int(key[3:]) >= len(self.classes):
                continue
            unit = 1.0 if key in ("mean_rank", "log_loss") else 100.0
            result[key] = unit * float(values[place])
            if bounds is not None:
                result[f"{key}_interval"] = [unit * float(bound[place]) for bound in bounds]
        result |= {"objects": len(records), "pictures": pictures}
        curve = slice(len(keys), len(keys) + len(self.classes))
        result["top_n"] = (100 * values[curve]).tolist()
        if bounds is not None:
            result["top_n_interval"] = [(100 * bound[curve]).tolist() for bound in bounds]
        result["groups"] = _group_table(records, len(self.classes))
        return result


class _Statistic:
    """Weights of the pictures (b, P) → the statistics (b, S) in 0…1: mean rank (1…C), log loss (nats), balanced
    accuracy, ECE, area, top-n of TOPS, top-1 of each class, the curve."""

    def __init__(self, records: Sequence[Ranked], num_classes: int) -> None:
        names, picture = np.unique([record.case.picture for record in records], return_inverse=True)
        self.num_pictures, self._picture = len(names), picture
        ranks = np.array([(record.above, record.tied) for record in records])
        pairs, pair = np.unique(ranks, axis=0, return_inverse=True)
        self._within = chances_within(pairs, num_classes)
        self._by_pair = group_matrix(pair.reshape(-1), len(pairs))
        self._right = self._within[pair.reshape(-1), 0]
        self._rank = ranks[:, 0] + (ranks[:, 1] + 1) / 2
        confidence = np.array([record.confidence for record in records])
        self._gap = self._right - confidence
        self._log_loss = np.array([record.log_loss for record in records])
        self._by_class = group_matrix(np.array([record.case.label for record in records]), num_classes)
        self._by_bin = group_matrix(bin_of(confidence), BINS)
        self._tops = [min(n, num_classes) - 1 for n in TOPS]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        cases = weights.astype(np.float64)[:, self._picture]
        total = cases.sum(axis=1)
        curve = (self._by_pair @ cases.T).T @ self._within / total[:, None]
        with np.errstate(invalid="ignore"):
            of_class = (self._by_class @ (cases * self._right).T).T / (self._by_class @ cases.T).T
        columns = [
            cases @ self._rank / total,
            cases @ self._log_loss / total,
            defined_mean(of_class),
            np.abs(self._by_bin @ (cases * self._gap).T).sum(axis=0) / total,
            curve.mean(axis=1),
        ]
        return np.concatenate([np.stack(columns, axis=1), curve[:, self._tops], of_class, curve], axis=1)


def _group_table(records: Sequence[Ranked], num_classes: int) -> dict[str, dict[str, dict[str, float]]]:
    chances = chances_within(np.array([(r.above, r.tied) for r in records]), num_classes)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for kind, name_of in _KINDS.items():
        names = [name_of(record.case) for record in records]
        if not any(names):
            continue
        rows = table[kind] = {}
        for name in sorted(
            set(names), key=lambda name: (len(name), name) if kind == "visible" else (0, name)
        ):
            own = chances[[other == name for other in names]]
            rows[name] = {"objects": len(own), "top1": 100 * float(own[:, 0].mean())}
            if num_classes > 5:
                rows[name]["top5"] = 100 * float(own[:, 4].mean())
    return table


def ratio_group(ratio: float) -> str:
    """The group of a mask ratio, such as ``0.02-0.05``: the share of the picture in the hole's bounds."""
    ends = (0.0, *RATIOS, 1.0)
    place = int(np.searchsorted(RATIOS, ratio, side="left"))
    return f"{ends[place]:.2f}-{ends[place + 1]:.2f}"


_KINDS = {
    "ratio": lambda case: ratio_group(case.ratio),
    "shape": lambda case: case.shape,
    "visible": lambda case: str(case.visible) if case.visible < MANY else f"{MANY}+",
    "scene": lambda case: case.scene,
}
