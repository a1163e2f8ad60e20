"""The page of a re-scoring: AP before and after, the rule, and the detections that stand out of their context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fvcore.common.config import CfgNode

from scenekd.data.images import read_image
from scenekd.report_html import Markup, escape, figure, number, table, write_page
from scenekd.report_tables import interval_text, settings
from scenekd.visualize import draw_boxes

from .pictures import draw_case
from .region_context import RegionContext
from .rescore import UNLIKELY, Judged, Results
from .rescore_rule import Rule

PAGE = "rescore.html"
_SIDE = 360  # pixels of a picture's longer side


def write_rescore_page(
    folder: Path,
    results: Results,
    judged: Judged,
    rule: Rule,
    listed: Sequence[dict[str, Any]],
    context: RegionContext,
    cfg: CfgNode,
) -> Path:
    """Write ``rescore.html``; returns its path. ``TEST.VISUALIZE`` of the listed detections are drawn."""
    sections = [
        ("Average precision", [_scores(results, rule.classes)]),
        ("The rule", _rule(rule)),
        ("Out of context", _out_of_context(results["rescore"], listed)),
        ("The unlikeliest", _pictures(judged, rule, listed[: cfg.TEST.VISUALIZE], context)),
        ("Settings", settings(cfg)),
    ]
    return write_page(folder / PAGE, "SceneKD: detections in their context", sections)


def _scores(results: Results, classes: Sequence[str]) -> Markup:
    rows: list[list[Any]] = []
    lines = [("bbox", "AP50", "AP at IoU .5"), ("coco", "AP", "COCO's AP"), ("coco", "AP50", "COCO's AP50")]
    lines += [("bbox", f"AP-{name}", name) for name in classes]
    for task, key, title in lines:
        gain = results[f"{task}_gain"]
        values = [number(results[f"{task}_before"][key]), number(results[task][key]), number(gain[key])]
        rows.append([title, *values, interval_text(gain.get(f"{key}_interval"))])
    caption = "In percent; intervals from a bootstrap over the images, each resample drawn for both. Classes at IoU .5."
    return table(("", "before", "after", "gain", "95 % interval"), rows, caption)


def _rule(rule: Rule) -> list[Markup]:
    count, right, images = rule.fitted_on
    text = (
        f"Fitted on {count} detections of {images} held-out images, {right} of them right: new score = "
        "sigmoid(logit(score) + Σ weight · value / weight of the score). log p / m: how much likelier than usual the "
        f"context takes the class to be. Strength of the regularisation {rule.strength:g}."
    )
    weights = [("logit of the score", rule.score), ("log p / m", rule.weights[0])]
    weights += list(zip(rule.terms, rule.weights[1:]))
    rows = [(name, number(float(value), 3)) for name, value in weights]
    pieces = [Markup(f"<p>{escape(text)}</p>"), table(("value", "weight"), rows)]
    if rule.tried:
        tried = [(f"{least:g}", number(gain)) for least, gain in rule.tried]
        about = (
            f"Detections from a score of {rule.min_score:g} on are looked at: with it these images gained most AP at "
            "IoU .5, those of each fifth by a rule of the others."
        )
        pieces.append(table(("from a score of", "gain in points"), tried, about))
    return pieces


def _out_of_context(numbers: dict[str, Any], listed: Sequence[dict[str, Any]]) -> list[Markup]:
    text = (
        f"Of {numbers['sure']} sure detections {numbers['sure_wrong']} are wrong; of the "
        f"{numbers['out_of_context']} whose class the context takes for {UNLIKELY:g} times less likely than usual, or "
        f"less, {numbers['out_of_context_wrong']} are."
    )
    rows = [
        (
            one["image_id"],
            one["class"],
            number(one["score"]),
            number(one["rescored"]),
            number(100 * one["probability"], 1),
            number(100 * one["usual"], 1),
            ", ".join(f"{name} {100 * p:.0f} %" for name, p in one["likeliest"]),
            {True: "right", False: "wrong", None: "does not count"}[one["right"]],
        )
        for one in listed
    ]
    headers = ("image", "detection", "score", "new score", "context, %", "usual, %", "likeliest", "it is")
    return [Markup(f"<p>{escape(text)}</p>"), *([table(headers, rows)] if rows else [])]


def _pictures(
    judged: Judged, rule: Rule, listed: Sequence[dict[str, Any]], context: RegionContext
) -> list[Markup]:
    by_id = {record.image_id: record for record in judged.found.dataset.records}
    row_of = {int(place): i for i, place in enumerate(judged.place)}
    pieces = []
    for one in listed:
        i = row_of[one["position"]]
        image, label = read_image(by_id[one["image_id"]]), rule.classes.index(one["class"])
        shown = context.picture_without(image, judged.boxes[i])
        said = draw_case(
            shown,
            judged.cases.probabilities[i],
            label,
            rule.classes,
            _SIDE,
            heading=f"detected: {one['class']}",
        )
        scale = _SIDE / max(image.shape[:2])
        large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        boxed = draw_boxes(
            large, scale * judged.boxes[i][None], np.array([label]), rule.classes, np.array([one["score"]])
        )
        text = (
            f"{one['image_id']}: {one['class']} {one['score']:.2f} → {one['rescored']:.2f}; the context says "
            f"{one['likeliest'][0][0]}"
        )
        pieces += [Markup(f"<p>{escape(text)}</p>"), figure(boxed, text), figure(said, text)]
    return pieces
