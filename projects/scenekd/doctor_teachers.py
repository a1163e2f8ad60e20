"""The doctor's look at what the teachers of a configuration have said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .doctor_facts import Facts
from .doctor_findings import Finding, error, warning
from .doctor_targets import check_soft_labels
from .errors import UserError
from .teachers.build import check_teacher_overlap
from .teachers.options import NETWORKS
from .teachers.protocol import TASKS, Detections

SAMPLE = 32  # soft labels that are looked at
BOX_SAMPLE = 300  # images whose teacher boxes are looked at


def check_stores(facts: Facts) -> list[Finding]:
    """Caches that are missing, unfinished, made for something else, or without some of the images."""
    findings: list[Finding] = []
    for task in TASKS:
        store, needed = facts.store(task), facts.needed(task)
        findings += facts.problems.get(task, [])
        missing = [image_id for image_id in needed if store is not None and image_id not in store]
        if not missing:
            continue
        what = f"the {task} teacher said nothing about {len(missing)} of {len(needed)} images that need it"
        what += f" (first: {missing[0]}); they learn {task} without it, or not at all"
        if facts.cfg.TEACHER[task.upper()].TYPE in NETWORKS:
            tool = f"python tools/cache_teacher.py --config-file {facts.config_file}"
            findings.append(error(what, f"{tool} --task {task} --resume"))
        else:
            findings.append((error if len(missing) == len(needed) else warning)(what, "add their files"))
    return findings


def check_teacher_data(facts: Facts) -> list[Finding]:
    """Teachers that have seen the test images, or do not say what they have seen."""
    findings: list[Finding] = []
    try:
        lines = check_teacher_overlap(facts.cfg)
    except UserError as reason:
        told = [problem.what for found in facts.problems.values() for problem in found]
        return [] if str(reason) in told else [error(str(reason))]
    for line in lines:
        if "shares 0 images of DATASETS.TEST" not in line:
            findings.append(warning(line, "make sure that none of them is a test image"))
    for task in TASKS:
        store, key = facts.store(task), f"TEACHER.{task.upper()}.TRAINED_ON"
        if store is not None and not (
            store.info.get("trained_on") or facts.cfg.TEACHER[task.upper()].TRAINED_ON
        ):
            findings.append(warning(f"nothing says what the {task} teacher was trained on", f"set {key}"))
    return findings


def check_boxes(facts: Facts) -> list[Finding]:
    """A filter that leaves no boxes; confidences switched off where many are low."""
    store, node = facts.store("detection"), facts.cfg.DISTILL.DETECTION
    ids = _spread([i for i in facts.needed("detection") if store is not None and i in store], BOX_SAMPLE)
    if not ids:
        return []
    try:
        boxes = [store.get_detections(image_id) for image_id in ids]
    except UserError as reason:
        return [error(str(reason))]
    return check_filter(boxes, node.MIN_SCORE, node.USE_CONFIDENCE)


def check_filter(boxes: Sequence[Detections], min_score: float, use_confidence: bool = True) -> list[Finding]:
    """What ``DISTILL.DETECTION.MIN_SCORE`` leaves of a teacher's boxes."""
    scores = np.concatenate([np.zeros(0), *(b.scores for b in boxes)])
    kept = scores[scores >= min_score]
    if not len(scores):
        return [
            error(f"the detection teacher has no box on {len(boxes)} images", "see its cache and classes")
        ]
    if not len(kept):
        what = f"DISTILL.DETECTION.MIN_SCORE {min_score:g} leaves none of {len(scores)} teacher boxes"
        return [error(what, f"the highest score is {scores.max():.3g}; set it below")]
    findings = []
    empty = sum(not (b.scores >= min_score).any() for b in boxes)
    if empty > len(boxes) / 2:
        what = f"DISTILL.DETECTION.MIN_SCORE {min_score:g} leaves no box on {empty} of {len(boxes)} images"
        findings.append(warning(what, "these images become all background; lower it"))
    if not use_confidence and np.median(kept) < 0.5:
        what = f"DISTILL.DETECTION.USE_CONFIDENCE False: half of the boxes score below {np.median(kept):.2g}"
        findings.append(
            warning(what, "raise MIN_SCORE, or use the confidences (thesis: .640 against .414 mAP)")
        )
    return findings


def check_soft(facts: Facts) -> list[Finding]:
    """Soft labels that are not what they are said to be."""
    store = facts.store("segmentation")
    ids = _spread([i for i in facts.needed("segmentation") if store is not None and i in store], SAMPLE)
    try:
        labels = [store.get_segmentation(image_id) for image_id in ids]
    except UserError as reason:
        return [error(str(reason))]
    cfg = facts.cfg
    background = cfg.TEACHER.SEGMENTATION.BACKGROUND
    return check_soft_labels(labels, facts.classes, cfg.DISTILL.SEGMENTATION.TARGET, background)


def _spread(ids: Sequence[str], count: int) -> list[str]:
    places = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)
    return [ids[i] for i in places]
