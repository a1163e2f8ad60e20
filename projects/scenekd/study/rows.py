"""The rows of a study, from ``rows.yaml``.

groups    name → heading on the page; ``--only`` takes a name, or its part before a dot, for all of its rows
rows      one mapping a row, or one for several: ``vary`` names a key that takes a value at each of ``points``
sweeps    a row, a metric, and a grid of keys, for ``--sweep``
figures   what is drawn, see :mod:`.figures`
pairs     rows set side by side, see :mod:`.looks`: ``title, before, after`` and the row of their ``teacher``
budgets, forecasts   see :mod:`.advice`

Fields of a row: ``id, title, group, file`` (YAML beside ``rows.yaml``); ``roles`` (overlays that a preset has for
it); ``set`` (key → value, on top of the file); ``published`` (metric → percent); ``compared`` (ids of the rows it is
compared with, the first one in the figures too); ``headroom`` (ids of the rows that learn from the labels at hand and
from all labels); ``note``; ``kind`` (``train``; ``test``: ``MODEL.WEIGHTS`` as they are; ``filter``: a scored teacher,
see :mod:`.filters`); ``same_time`` (see :mod:`.same_time`); ``parts`` (of the results those that the row shows: a task,
or ``task/prefix`` for the numbers named ``prefix/<name>``; so one run can be several rows); ``common`` (False: the
preset's COMMON is not laid over it, for it is of another system and has other keys).
Keys of ``set``, ``vary`` and a sweep's grid reach into lists by number (``DISTILL.LOSSES.0.WEIGHT``); ``KEY *``
multiplies what file and preset say.
Of several: their ids are ``<id>@<x>``, their points ``{x, value (x by default), <metric>: published}``, and ``{x}``
stands for x in ``title``, ``compared`` and ``headroom``; of a series that has no such x, these two leave it out.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError

KINDS = ("train", "test", "filter")
CHOSEN = "chosen"  # <row>/chosen: the best setting of its sweep
_FIELDS = {
    "id",
    "title",
    "group",
    "file",
    "roles",
    "set",
    "published",
    "compared",
    "headroom",
    "note",
    "kind",
    "same_time",
    "parts",
    "common",
}


@dataclass(frozen=True)
class Row:
    """One row; see the module for the fields. ``series`` is the id in the file, ``x`` the place in its figure."""

    id: str
    title: str
    group: str
    file: Path
    series: str
    x: float | None = None
    roles: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    compared: tuple[str, ...] = ()
    headroom: tuple[str, ...] = ()
    note: str = ""
    kind: str = "train"
    same_time: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    common: bool = True


@dataclass(frozen=True)
class Sweep:
    """A grid over keys, whose best setting by ``metric`` on a validation split becomes a row of its own."""

    row: str
    metric: str
    grid: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """A figure: ``kind`` points (a metric over x for some series), steps (metrics over training, some rows), bars
    (some rows side by side), or one of the system's own."""

    title: str
    kind: str
    series: tuple[str, ...]
    metrics: tuple[str, ...]
    x: str = ""
    level: str = ""


@dataclass(frozen=True)
class Pair:
    """Two rows that differ in what they learn by, and the row of the teacher ("": none)."""

    title: str
    before: str
    after: str
    teacher: str = ""


@dataclass(frozen=True)
class Table:
    """Everything in a ``rows.yaml``."""

    path: Path
    groups: Mapping[str, str]
    rows: tuple[Row, ...]
    sweeps: tuple[Sweep, ...]
    figures: tuple[Figure, ...]
    budgets: tuple[Mapping[str, str], ...] = ()
    forecasts: tuple[Mapping[str, Any], ...] = ()
    pairs: tuple[Pair, ...] = ()

    def row(self, name: str) -> Row:
        """By its id."""
        for row in self.rows:
            if row.id == name:
                return row
        raise UserError(f"{self.path}: no row {name!r}; --list shows them")

    def select(self, words: Iterable[str]) -> list[Row]:
        """The rows that any of the words names: id, series, group, part of a group before a dot, or a pattern
        with ``*``; in the table's order.

        Raises:
            UserError: a word names none.
        """
        chosen: set[str] = set()
        for word in words:
            found = {row.id for row in self.rows if _names(word, row)}
            if not found:
                raise UserError(f"--only {word}: no such row or group; --list shows them")
            chosen |= found
        return [row for row in self.rows if row.id in chosen]


def _names(word: str, row: Row) -> bool:
    return (
        word in (row.id, row.series, row.group)
        or row.group.startswith(f"{word}.")
        or fnmatch.fnmatchcase(row.id, word)
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: missing, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no keys")
    return content


def read_table(path: Path) -> Table:
    """The table in a file.

    Raises:
        UserError: not YAML, an unknown field, a name twice, or one that leads nowhere.
    """
    content = read_yaml(path)
    try:
        rows = _known_points([row for entry in content["rows"] for row in _rows(entry, path)])
        table = Table(
            path,
            dict(content["groups"]),
            tuple(rows),
            tuple(Sweep(str(s["row"]), s["metric"], dict(s["grid"])) for s in content.get("sweeps", ())),
            tuple(_figure(entry) for entry in content.get("figures", ())),
            tuple(dict(entry) for entry in content.get("budgets", ())),
            tuple(dict(entry) for entry in content.get("forecasts", ())),
            tuple(Pair(**{key: str(text) for key, text in p.items()}) for p in content.get("pairs", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: {type(error).__name__}: {error}; scenekd/study/rows.py has the fields"
        ) from None
    _check(table)
    return table


def _figure(entry: Mapping[str, Any]) -> Figure:
    series, metrics = tuple(map(str, entry["series"])), tuple(entry.get("metrics", ()))
    return Figure(
        entry["title"], entry["kind"], series, metrics, entry.get("x", ""), str(entry.get("level", ""))
    )


def _rows(entry: Mapping[str, Any], path: Path) -> list[Row]:
    name = str(entry.get("id", "?"))
    unknown = set(entry) - _FIELDS - {"vary", "points"}
    if unknown:
        raise UserError(f"{path}: row {name}: unknown field {sorted(unknown)[0]!r}")
    if "vary" not in entry:
        return [_row(entry, name, path)]
    return [_row(entry, name, path, point) for point in entry["points"]]


def _known_points(rows: list[Row]) -> list[Row]:
    """Without references to points that a series, which exists, does not have: not every series has every x."""
    names, series = {row.id for row in rows}, {row.series for row in rows}

    def known(references: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in references if name in names or name.partition("@")[0] not in series)

    return [dataclasses.replace(r, compared=known(r.compared), headroom=known(r.headroom)) for r in rows]


def _row(entry: Mapping[str, Any], series: str, path: Path, point: Mapping[str, Any] | None = None) -> Row:
    x = None if point is None else point["x"]

    def text(value: Any) -> str:
        return str(value).replace("{x}", f"{x:g}" if x is not None else "{x}")

    def texts(key: str) -> tuple[str, ...]:
        value = entry.get(key, ())
        return tuple(map(text, [value] if isinstance(value, (str, int, float)) else value))

    settings = dict(entry.get("set", {}))
    published = dict(entry.get("published", {}))
    if point is not None:
        settings[entry["vary"]] = point.get("value", x)
        published |= {key: value for key, value in point.items() if key not in ("x", "value")}
    return Row(
        id=series if x is None else f"{series}@{x:g}",
        title=text(entry["title"]),
        group=str(entry["group"]),
        file=path.parent / str(entry["file"]),
        series=series,
        x=None if x is None else float(x),
        roles=texts("roles"),
        settings=settings,
        published={key: float(value) for key, value in published.items()},
        compared=texts("compared"),
        headroom=texts("headroom"),
        note=" ".join(str(entry.get("note", "")).split()),
        kind=str(entry.get("kind", "train")),
        same_time=texts("same_time"),
        parts=texts("parts"),
        common=bool(entry.get("common", True)),
    )


def _check(table: Table) -> None:
    names = [row.id for row in table.rows]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{table.path}: two rows are called {name}")
    for row in table.rows:
        if row.kind not in KINDS:
            raise UserError(f"{table.path}: row {row.id}: kind {row.kind!r} is none of {', '.join(KINDS)}")
        if row.group not in table.groups:
            raise UserError(f"{table.path}: row {row.id}: no group {row.group!r}")
        for other in (*row.compared, *row.headroom, *row.same_time):
            if other not in names:
                raise UserError(f"{table.path}: row {row.id}: no row {other!r} to be compared with")
        if len(row.same_time) not in (0, 2):
            raise UserError(f"{table.path}: row {row.id}: same_time takes two rows")
    series = {row.series for row in table.rows} | {f"{sweep.row}/{CHOSEN}" for sweep in table.sweeps}
    for figure in table.figures:
        for name in (*figure.series, *([figure.level] if figure.level else [])):
            if name not in series and name not in names:
                raise UserError(f"{table.path}: figure {figure.title!r}: no row {name!r}")
    for sweep in table.sweeps:
        table.row(sweep.row)
    for pair in table.pairs:
        for name in filter(None, (pair.before, pair.after, pair.teacher)):
            table.row(name)
    for budget in table.budgets:
        for name in (budget["alone"], budget["teacher"], budget["all"]):
            if name not in series and name not in names:
                raise UserError(f"{table.path}: budgets: no row or series {name!r}")
    for forecast in table.forecasts:
        for name in (forecast["reference"], *forecast["rows"]):
            table.row(name)
