"""How often each class comes: the prior of a stream, its shifts, and the plan that they make.

C: classes; S: samples of the stream. Every draw follows from the seed and the sample's position, so that a longer
stream begins like a shorter one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.sampling import STREAM_CLASS, STREAM_IMAGE, STREAM_RANK, draw_rng

from .pairs import Pair, read_pair

BLOCK = 4096  # positions whose draws come from one generator
SHIFTED = ("PAIR", "OUTLIER_SHARE", "FREQUENCIES", "ZIPF_EXPONENT", "RANK_SEED", "GIVEN")
KINDS = ("uniform", "zipf", "given")


@dataclass(frozen=True)
class Prior:
    """Of the samples from ``start`` on.

    Attributes:
        probabilities: (C,) float64, sum 1. pair: which classes are inliers and outliers.
    """

    start: int
    probabilities: np.ndarray
    pair: Pair


def read_priors(node: Any, dataset: Dataset) -> list[Prior]:
    """The priors that ``STREAM`` describes, by rising start; the first starts at 0.

    Raises:
        UserError: a value out of range, an unknown key or class, or a class without images that is to come.
    """
    values = {key: node[key] for key in SHIFTED}
    priors = [_prior(0, values, node.PAIRS, dataset, "STREAM")]
    for number, shift in enumerate(node.SHIFTS):
        where = f"STREAM.SHIFTS[{number}]"
        if not isinstance(shift, Mapping) or type(shift.get("AT")) is not int or len(shift) < 2:
            raise UserError(f"{where}: write {{AT: position, KEY: value}} with KEY of {', '.join(SHIFTED)}")
        for key in shift:
            if key not in ("AT", *SHIFTED):
                raise UserError(f"{where}: {key} cannot shift; choose of {', '.join(SHIFTED)}")
        if shift["AT"] <= priors[-1].start:
            raise UserError(f"{where}: AT {shift['AT']} must lie after {priors[-1].start}; sort the shifts")
        values |= {key: value for key, value in shift.items() if key != "AT"}
        priors.append(_prior(shift["AT"], values, node.PAIRS, dataset, where))
    return priors


def _prior(start: int, values: Mapping[str, Any], pairs: str, dataset: Dataset, where: str) -> Prior:
    if bool(pairs) != bool(values["PAIR"]):
        raise UserError(f"{where}.PAIR: PAIRS and PAIR belong together; set both or neither")
    everything = Pair("all", tuple(range(len(dataset.classes))), ())
    pair = read_pair(pairs, values["PAIR"], dataset) if pairs else everything
    share = values["OUTLIER_SHARE"]
    if not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise UserError(f"{where}.OUTLIER_SHARE: {share!r} is no share from 0 to below 1")
    if share and not pair.outliers:
        raise UserError(
            f"{where}.OUTLIER_SHARE: {share} without outliers; name a pair in STREAM.PAIRS and PAIR"
        )
    given = _given(values["GIVEN"], dataset, where)
    probabilities = np.zeros(len(dataset.classes))
    for members, part in ((pair.inliers, 1 - share), (pair.outliers, share)):
        if part:
            probabilities[list(members)] = part * _frequencies(members, values, given, where)
    _check(probabilities, dataset, where)
    return Prior(start, probabilities, pair)


def _given(rows: Any, dataset: Dataset, where: str) -> np.ndarray:
    """(C,) weights."""
    weights = np.zeros(len(dataset.classes))
    for row in rows:
        good = isinstance(row, (tuple, list)) and len(row) == 2 and isinstance(row[1], (int, float))
        if not good or row[0] not in dataset.classes or not 0 <= row[1] < float("inf"):
            raise UserError(f"{where}.GIVEN: {row!r} is no pair (class of {dataset.name}, weight from 0)")
        weights[dataset.classes.index(row[0])] = row[1]
    return weights


def _frequencies(
    members: Sequence[int], values: Mapping[str, Any], given: np.ndarray, where: str
) -> np.ndarray:
    """(members,) with sum 1."""
    kind, count = values["FREQUENCIES"], len(members)
    if kind == "uniform":
        return np.full(count, 1 / count)
    if kind == "zipf":
        if not values["ZIPF_EXPONENT"] >= 0:
            raise UserError(f"{where}.ZIPF_EXPONENT: {values['ZIPF_EXPONENT']} must be at least 0")
        ranks = np.arange(count)
        if values["RANK_SEED"]:
            ranks = draw_rng(values["RANK_SEED"], 0, STREAM_RANK).permutation(count)
        weights = (ranks + 1.0) ** -float(values["ZIPF_EXPONENT"])
    elif kind == "given":
        weights = given[list(members)]
    else:
        raise UserError(f"{where}.FREQUENCIES: {kind!r}; choose one of {', '.join(KINDS)}")
    if not weights.sum():
        raise UserError(f"{where}.GIVEN: no weight for any class that is to come; name some")
    return np.asarray(weights / weights.sum())


def _check(probabilities: np.ndarray, dataset: Dataset, where: str) -> None:
    coming = np.flatnonzero(probabilities)
    if len(coming) < 2:
        raise UserError(
            f"{where}: only the class {dataset.classes[coming[0]]} is to come; there is nothing to learn"
        )
    present = {record.class_label for record in dataset.records}
    missing = [dataset.classes[c] for c in coming if c not in present]
    if missing:
        more = ", …" if len(missing) > 3 else ""
        raise UserError(
            f"{where}: {dataset.name} has no image of {', '.join(missing[:3])}{more}, which are to come; choose "
            "another pair or data set"
        )


def draw_plan(priors: Sequence[Prior], labels: np.ndarray, seed: int, samples: int) -> np.ndarray:
    """(S,) int64: the record that each sample shows. A class's images come each once, in an order that is drawn anew
    for every pass, before one comes again.

    Args:
        labels: (records,) int64, the class of each; below 0: never shown.
    """
    blocks = range(-(-samples // BLOCK))
    draws = np.concatenate([draw_rng(seed, block, STREAM_CLASS).random(BLOCK) for block in blocks])[:samples]
    classes = np.empty(samples, np.int64)
    ends = [prior.start for prior in priors[1:]] + [samples]
    for prior, end in zip(priors, ends):
        edges = np.cumsum(prior.probabilities)
        part = slice(prior.start, min(end, samples))
        # Draws lie below 1; the last class with a chance takes what rounding leaves above its edge.
        last = np.flatnonzero(prior.probabilities)[-1]
        classes[part] = np.minimum(np.searchsorted(edges, draws[part], side="right"), last)
    plan = np.empty(samples, np.int64)
    for label in np.unique(classes):
        positions, images = np.flatnonzero(classes == label), np.flatnonzero(labels == label)
        passes = range(-(-len(positions) // len(images)))
        seeds = (int(number) * len(priors[0].probabilities) + int(label) for number in passes)
        order = np.concatenate([draw_rng(seed, one, STREAM_IMAGE).permutation(images) for one in seeds])
        plan[positions] = order[: len(positions)]
    return plan
