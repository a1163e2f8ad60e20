"""The teachers of a study's rows, as each run scored them alone before it learnt from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..report_html import Markup
from ..report_tables import teacher_table
from ..teachers.score import TeacherScore, read_scores, score_rows
from .runs import Run

_NAMED = 4  # rows named beside a teacher


def teachers_of(finished: Mapping[str, Mapping[int, Run]]) -> list[Markup]:
    """One line for each different score, with the rows that learn from that teacher; nothing without any.

    Args:
        finished: row id → seed → run, each run under one row.
    """
    found: dict[str, tuple[TeacherScore, list[str]]] = {}
    for row, runs in finished.items():
        for run in runs.values():
            for score in read_scores(run.folder).values():
                rows = found.setdefault(repr(score_rows({"": score})), (score, []))[1]
                rows += [row] if row not in rows else []
    lines = {
        key: dataclasses.replace(score, teacher=f"{score.teacher or 'teacher'} ({_named(rows)})")
        for key, (score, rows) in found.items()
    }
    return teacher_table(lines)


def _named(rows: list[str]) -> str:
    return ", ".join(rows[:_NAMED]) + (f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else "")
