"""The rule by which the context's word changes a detector's score, fitted on detections that are known to be right or
wrong.

D: detections; C: classes; K: features.

A logistic regression of "right" on the detector's score and the context,

    logit P(right) = a · logit(score) + Σ_k b_k f_k + a constant of the class,    f_1 = log p(class) / m(class),

where p is the context's distribution for the hidden detection and m its mean over all detections of the fit: what it
says when it has seen nothing in particular. The new score is the one that the detector alone would need for the same
probability: sigmoid(logit(score) + Σ_k b_k f_k / a). So where the context says the same of every detection (all f are
0), every score stays as it is, to the last bit; and a threshold on scores keeps its meaning. The constants of the
classes take up how often the detector is right with each; AP, which ranks within a class, does not see them.

Other features, by name: ``rank``, the place of the class among all by p / m, 1 for the first, −1 for the last, 0 where
all are equal; ``size``, f_1 times the standardised logarithm of the hole's share of the picture; ``objects``, f_1 times
the standardised logarithm of 1 + the number of the picture's other sure detections. All are 0 with a context that knows
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from scenekd.errors import UserError

from .config import KEY

TERMS = ("size", "objects", "rank")
STRENGTHS = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
)  # of the pull to the rule that changes nothing, among which the fit chooses
FOLDS = 5
_LEAST = 1e-4  # a probability below counts as this: one sure error of the context must not decide alone
_EDGE = 1e-15  # scores of 0 and 1 have no logit
_SAME = 1e-9  # of log p / m: rounding of the mean


@dataclass(frozen=True)
class Cases:
    """Detections, and what the context says of them.

    Attributes:
        image: (D,) int64, which picture. labels: (D,) int64 in 0…C−1. scores: (D,) in 0…1.
        probabilities: (D, C), a row of NaN where the context says nothing.
        share: (D,) of the picture that the detection's box covers. others: (D,) other sure detections in its picture.
    """

    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    share: np.ndarray
    others: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> Cases:
        """The cases of ``chosen`` (bool or integers)."""
        return Cases(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @property
    def known(self) -> np.ndarray:
        """(D,) bool: the context says something."""
        return ~np.isnan(self.probabilities).any(axis=1)


@dataclass(frozen=True)
class Rule:
    """A fitted rule.

    Attributes:
        classes: C names. score: a. weights: (K,) b, of the context and then of ``terms``. marginal: (C,) m.
        centre, spread: of the logarithms that ``size`` and ``objects`` standardise. strength: of the regularisation.
        fitted_on: detections, of them right ones, pictures.
        min_score: of the detections that are looked at; None: as the configuration says. tried: pairs of such a score
            and the points of AP that it gained on the pictures of the fit, where it was chosen by that.
    """

    classes: tuple[str, ...]
    score: float
    weights: tuple[float, ...]
    terms: tuple[str, ...]
    marginal: tuple[float, ...]
    centre: tuple[float, float]
    spread: tuple[float, float]
    strength: float
    fitted_on: tuple[int, int, int]
    min_score: float | None = None
    tried: tuple[tuple[float, float], ...] = ()

    def ratios(self, cases: Cases) -> np.ndarray:
        """(D, C): log p / m of every class, 0 where the context says nothing."""
        return log_ratios(cases.probabilities, np.asarray(self.marginal))

    def rescore(self, cases: Cases) -> np.ndarray:
        """(D,) the new scores."""
        _check_scores(cases.scores)
        found = features(cases, self.ratios(cases), self.terms, self.centre, self.spread)
        shift = found @ np.asarray(self.weights) / self.score
        moved = expit(logit(cases.scores.clip(_EDGE, 1 - _EDGE)) + shift)
        return np.where(shift == 0, cases.scores, moved)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any, source: str) -> Rule:
        """From what :meth:`as_dict` gave.

        Raises:
            UserError: it did not.
        """
        try:
            kinds: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
            }
            rule = cls(**kinds)
            numbers = [rule.score, rule.strength, *rule.weights, *rule.marginal, *rule.centre, *rule.spread]
            numbers += [rule.min_score or 0.0]
            if not np.isfinite(np.asarray(numbers, np.float64)).all() or rule.score <= 0:
                raise ValueError
            if len(rule.marginal) != len(rule.classes) or len(rule.weights) != 1 + len(rule.terms):
                raise ValueError
        except (TypeError, ValueError, AttributeError):
            raise UserError(f"{source}: no rule of tools/rescore.py; fit one with --fit") from None
        return rule


def log_ratios(probabilities: np.ndarray, marginal: np.ndarray) -> np.ndarray:
    """(D, C): log p / m; 0 in a row of NaN, and where both are the same up to rounding."""
    ratios = np.log(np.maximum(probabilities, _LEAST)) - np.log(np.maximum(marginal, _LEAST))
    return np.where(np.isnan(ratios) | (np.abs(ratios) < _SAME), 0.0, ratios)


def features(
    cases: Cases,
    ratios: np.ndarray,
    terms: Sequence[str],
    centre: Sequence[float],
    spread: Sequence[float],
) -> np.ndarray:
    """(D, K), see the module."""
    own = ratios[np.arange(len(cases)), cases.labels]
    size, objects = ((log - c) / s for log, c, s in zip(_logarithms(cases), centre, spread))
    above = (ratios < own[:, None]).sum(axis=1) - (ratios > own[:, None]).sum(axis=1)
    named = {"size": own * size, "objects": own * objects, "rank": above / max(ratios.shape[1] - 1, 1)}
    return np.stack([own, *(named[term] for term in terms)], axis=1)


def _logarithms(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    return np.log(np.maximum(cases.share, 1e-6)), np.log1p(cases.others)


def _check_scores(scores: np.ndarray) -> None:
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
        worst = scores[np.argmax(np.abs(scores - 0.5))]
        raise UserError(f"detections: a score of {worst:g}; the rule needs probabilities in 0…1")


def fit_rule(
    cases: Cases, right: np.ndarray, classes: Sequence[str], terms: Sequence[str] = (), *, seed: int = 0
) -> Rule:
    """Fit a rule; the strength of its regularisation is that which tells left-out pictures best, of :data:`STRENGTHS`.

    Args:
        cases: of pictures that neither the test nor, if it can be helped, a training has seen.
        right: (D,) bool. terms: of :data:`TERMS`. seed: of the folds.

    Raises:
        UserError: no detection, all of them right or all wrong, a score out of range, no such term.
    """
    for term in terms:
        if term not in TERMS:
            raise UserError(f"{KEY}.RESCORE.TERMS: {term!r} is none of {', '.join(TERMS)}")
    _check_scores(cases.scores)
    if not 0 < right.sum() < len(right):
        raise UserError(
            f"--fit: {int(right.sum())} of {len(right)} detections are right; a rule needs right and wrong ones"
        )
    known = cases.known
    marginal = (
        cases.probabilities[known].mean(axis=0) if known.any() else np.full(len(classes), 1 / len(classes))
    )
    logs = _logarithms(cases)
    centre = tuple(float(log.mean()) for log in logs)
    spread = tuple(max(float(log.std()), 1e-6) for log in logs)
    found = features(cases, log_ratios(cases.probabilities, marginal), terms, centre, spread)
    columns = np.column_stack([logit(cases.scores.clip(_EDGE, 1 - _EDGE)), found])
    strength = _choose_strength(columns, cases, right, len(classes), seed)
    score, *weights = _regress(columns, cases.labels, right, len(classes), strength)[
        : columns.shape[1]
    ].tolist()
    return Rule(
        classes=tuple(classes),
        score=score,
        weights=tuple(weights),
        terms=tuple(terms),
        marginal=tuple(marginal.tolist()),
        centre=(centre[0], centre[1]),
        spread=(spread[0], spread[1]),
        strength=strength,
        fitted_on=(len(right), int(right.sum()), len(np.unique(cases.image))),
    )


def folds(cases: Cases, seed: int) -> np.ndarray:
    """(D,) int64 in 0…FOLDS − 1: a picture's detections have one fold."""
    pictures, place = np.unique(cases.image, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(pictures))[place] % FOLDS)


def _choose_strength(columns: np.ndarray, cases: Cases, right: np.ndarray, classes: int, seed: int) -> float:
    """By cross-validation over pictures; the strongest of equals."""
    fold = folds(cases, seed)
    losses = []
    for strength in STRENGTHS:
        total = 0.0
        for k in np.unique(fold):
            test = fold == k
            if not 0 < right[~test].sum() < (~test).sum():
                continue
            found = _regress(columns[~test], cases.labels[~test], right[~test], classes, strength)
            total += _log_loss(_logits(found, columns[test], cases.labels[test]), right[test]).sum()
        losses.append(total)
    best = min(losses)
    return max(s for s, loss in zip(STRENGTHS, losses) if loss <= best + 1e-9 * abs(best))


def _regress(
    columns: np.ndarray, labels: np.ndarray, right: np.ndarray, classes: int, strength: float
) -> np.ndarray:
    """(1 + K + C,): a, b and the constants, that minimise the mean log-loss + strength / 2 · ((a − 1)² + Σ b² + the
    squared deviations of the constants from their mean); a stays positive, and the context's own weight not negative.
    """
    count = columns.shape[1]
    target = np.zeros(count)
    target[0] = 1.0
    members = np.zeros((len(labels), classes))
    members[np.arange(len(labels)), labels] = 1

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        scores = _logits(x, columns, labels)
        wrong = (expit(scores) - right) / len(right)
        away, apart = x[:count] - target, x[count:] - x[count:].mean()
        loss = _log_loss(scores, right).mean() + strength / 2 * (away @ away + apart @ apart)
        slopes = np.concatenate([columns.T @ wrong + strength * away, members.T @ wrong + strength * apart])
        return float(loss), slopes

    bounds = [(0.05, None), (0.0, None), *[(None, None)] * (count - 2 + classes)]
    start = np.concatenate([target, np.zeros(classes)])
    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


def _logits(x: np.ndarray, columns: np.ndarray, labels: np.ndarray) -> np.ndarray:
    count = columns.shape[1]
    return np.asarray(columns @ x[:count] + x[count:][labels])


def _log_loss(logits: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, logits) - right * logits)
