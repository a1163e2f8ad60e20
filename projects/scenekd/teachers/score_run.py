"""The scores of the teachers that a run learns from: at its start, in its report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.records import Dataset
from ..errors import UserError
from .options import cache_folder
from .protocol import TeacherStore
from .score import TeacherScore, basis_of, read_scores, score_teacher, write_scores

logger = logging.getLogger(__name__)


def score_run(cfg: Any, stores: Mapping[str, TeacherStore], dataset: Dataset) -> dict[str, TeacherScore]:
    """Write ``OUTPUT_DIR/teacher_scores.json`` for the teachers of a run, by task; returns what it holds.

    A score in OUTPUT_DIR or in the teacher's cache is taken where it is of the same teacher, labels and filter;
    else at most ``TEACHER.SCORE_IMAGES`` labelled images are looked at (0: no scores). A teacher that cannot be
    scored is left out, and the log says why: the run does not depend on it.

    Args:
        stores: by task. dataset: the training images, with the labels that are left to them.
    """
    limit, scores = cfg.TEACHER.SCORE_IMAGES, {}
    if not limit:
        return {}
    for task, store in stores.items():
        basis = basis_of(cfg, task, store)
        saved = [read_scores(folder).get(task) for folder in (cfg.OUTPUT_DIR, cache_folder(cfg, task))]
        try:
            fitting = (score for score in saved if score is not None and score.basis == basis)
            scores[task] = next(fitting, None) or score_teacher(cfg, task, dataset, store=store, limit=limit)
        except UserError as error:
            logger.warning("no score of the %s teacher: %s", task, error)
    if scores:
        write_scores(Path(cfg.OUTPUT_DIR), scores)
    return scores
