"""What a finished run keeps for its pictures, so that several runs can be drawn side by side: ``separation.npz`` and
``attention.npz``.

F: samples whose features are looked at; K: samples whose maps are shown; S: side of an image; h, w: size of a map.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scenekd.errors import UserError
from scenekd.evaluation.separation import on_plane, plane
from scenekd.files import write_bytes
from scenekd.visualize_attention import attention_panel
from scenekd.visualize_outliers import separation_chart

from .outcome import Outcome, feature_groups

SEPARATION, ATTENTION = "separation.npz", "attention.npz"

T = TypeVar("T")


@dataclass(frozen=True)
class SeparationView:
    """Features on the plane of their two principal directions.

    Attributes:
        points: (F, 2) float32. outlier: (F,) bool. label: (F,) int64. classes: names by label.
    """

    points: np.ndarray
    outlier: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class AttentionSamples:
    """Samples with the maps of teacher and student for the teacher's class.

    Attributes:
        positions: (K,) int64 of the stream. names: K, the teacher's classes. images: (K, S, S, 3) uint8 RGB.
        masks: (K, S, S) uint8, 1 on the object, 0 elsewhere, 255 where that is not known.
        teacher: (K, h', w') and student: (K, h, w) float32 ≥ 0.
    """

    positions: np.ndarray
    names: tuple[str, ...]
    images: np.ndarray
    masks: np.ndarray
    teacher: np.ndarray
    student: np.ndarray


def separation_view(outcome: Outcome, classes: tuple[str, ...]) -> SeparationView | None:
    """None where one of the sides has fewer than two samples, or the features only one channel."""
    inliers, outliers = feature_groups(outcome)
    if min(len(inliers), len(outliers)) < 2 or inliers.shape[1] < 2:
        return None
    place = plane(np.concatenate([inliers, outliers]))
    rows = outcome.feature_rows
    points = on_plane(outcome.features, place).astype(np.float32)
    return SeparationView(points, outcome.outlier[rows], outcome.label[rows], classes)


def separation_of_runs(views: Mapping[str, SeparationView]) -> bytes:
    """One PNG, a plot for each run by its name; each on its own plane.

    Raises:
        ValueError: no runs, or their classes differ.
    """
    if len({view.classes for view in views.values()}) != 1:
        raise ValueError("the separation of runs is drawn of one or more runs of the same classes")
    panels = {
        name: (view.points[~view.outlier], view.label[~view.outlier], view.points[view.outlier])
        for name, view in views.items()
    }
    return separation_chart(panels, next(iter(views.values())).classes)


def attention_of_runs(runs: Mapping[str, AttentionSamples]) -> bytes:
    """One PNG: the samples that all runs show, the teacher's map of each, and the student's of each run by its name.

    Raises:
        ValueError: no runs, or they have no sample in common: they are not of one stream.
    """
    if not runs:
        raise ValueError("there are no runs to draw")
    first = next(iter(runs.values()))
    rows = {
        name: [
            np.flatnonzero((one.positions == at) & (one.images == image).all(axis=(1, 2, 3)))
            for at, image in zip(first.positions, first.images)
        ]
        for name, one in runs.items()
    }
    shared = [k for k in range(len(first.positions)) if all(len(found[k]) for found in rows.values())]
    if not shared:
        raise ValueError(f"{', '.join(runs)} show no sample in common; they are not runs over one stream")
    columns = {"teacher": first.teacher[shared]}
    for name, one in runs.items():
        columns[name] = one.student[[int(rows[name][k][0]) for k in shared]]
    names = [first.names[k] for k in shared]
    return attention_panel(first.images[shared], columns, first.masks[shared], names)


def save_view(path: str | Path, view: SeparationView | AttentionSamples) -> None:
    """Write a view as NumPy arrays."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in asdict(view).items()}
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_separation(path: str | Path) -> SeparationView:
    """What a run has left in ``separation.npz``.

    Raises:
        UserError: it is not there, or no such file.
    """
    return _read(path, SeparationView)


def read_attention(path: str | Path) -> AttentionSamples:
    """What a run has left in ``attention.npz``.

    Raises:
        UserError: it is not there, or no such file.
    """
    return _read(path, AttentionSamples)


def _read(path: str | Path, kind: type[T]) -> T:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values: dict[str, Any] = {name: arrays[name] for name in kind.__annotations__}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else "holds no such view"
        raise UserError(f"{path}: {reason}; run the stream again") from None
    for name in ("names", "classes"):
        if name in values:
            values[name] = tuple(map(str, values[name]))
    return kind(**values)
