"""The rule of a re-scoring, and down to which score detections are looked at, both from held-out images."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.errors import UserError

from .config import KEY
from .detections import Found
from .region_context import RegionContext
from .rescore import Judged, average_precisions, judge
from .rescore_rule import Rule, fit_rule, folds

logger = logging.getLogger(__name__)


def choose_rule(found: Found, context: RegionContext, cfg: CfgNode) -> Rule:
    """Fit the rule on held-out detections. Of several ``RESCORE.MIN_SCORES`` that one is taken with which these images
    gain most AP at IoU .5, each scored by a rule that was fitted on others; the highest of equals, which costs least.

    Raises:
        UserError: a value outside 0…1, or as of :func:`.rescore_rule.fit_rule`.
    """
    options = cfg.MODEL.BLINDNET.RESCORE
    try:
        least = sorted({float(value) for value in options.MIN_SCORES}, reverse=True)
        if not all(0 <= value < 1 for value in least):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"{KEY}.RESCORE.MIN_SCORES: {options.MIN_SCORES!r}; give scores in 0…1, or () for MIN_SCORE"
        ) from None
    if not least:
        return _fit(judge(found, context, cfg, options.MIN_SCORE), cfg, options.MIN_SCORE)
    tried: dict[float, tuple[float, Rule]] = {}
    for value in least:
        judged = judge(found, context, cfg, value)
        try:
            rule = _fit(judged, cfg, value)
        except UserError as error:
            logger.warning("RESCORE.MIN_SCORES: %g is left out: %s", value, error)
            if value == least[-1] and not tried:
                raise
            continue
        tried[value] = held_out_gain(judged, cfg), rule
        logger.info("from a score of %g on: %+.2f AP at IoU .5 on held-out images", value, tried[value][0])
    chosen = max(tried, key=lambda value: (tried[value][0], value))
    pairs = tuple((value, gain) for value, (gain, _) in tried.items())
    return dataclasses.replace(tried[chosen][1], tried=pairs)


def held_out_gain(judged: Judged, cfg: CfgNode) -> float:
    """Points of AP at IoU .5 that the detections gain, those of each fold of images by a rule of the other folds; folds
    whose others fit none keep their scores."""
    cases, scores = judged.cases, judged.cases.scores.copy()
    fold = folds(cases, cfg.SEED)
    for k in np.unique(fold):
        mine = fold == k
        try:
            rule = _rule_of(judged, ~mine, cfg)
        except UserError as error:
            logger.warning("a fold of the held-out images keeps its scores: %s", error)
            continue
        scores[mine] = rule.rescore(cases.take(mine))
    plain = cfg.clone()
    plain.defrost()
    plain.TEST.BOOTSTRAP = 0
    gains = average_precisions(judged.found, judged.with_scores(scores), plain)["bbox_gain"]
    return float(gains["AP50"])


def _fit(judged: Judged, cfg: CfgNode, least: float) -> Rule:
    return dataclasses.replace(_rule_of(judged, np.ones(len(judged.cases), bool), cfg), min_score=least)


def _rule_of(judged: Judged, chosen: np.ndarray, cfg: CfgNode) -> Rule:
    """Of the chosen detections of which the context says something; of the others a rule changes nothing."""
    told = chosen & judged.counted & judged.cases.known
    options = cfg.MODEL.BLINDNET.RESCORE
    classes = judged.found.dataset.classes
    return fit_rule(judged.cases.take(told), judged.right[told], classes, options.TERMS, seed=cfg.SEED)
