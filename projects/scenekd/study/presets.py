"""Presets: the data, networks and budget with which the rows of a study are run, from ``presets/<name>.yaml``.

BASE         name of a preset that this one changes, key by key
ABOUT        what the preset is, in one paragraph
CAVEATS      sentences that the page shows
DATA         default of ``--data``; ``$NAME`` stands for an environment variable
DEFAULT      what is run without ``--only``
MIN_IMAGES   classes with fewer test images are left out of the means
COMMON       keys laid over every row, but for those of another system (``common: False``)
ROLES        name → keys laid over the rows that have the role; ``<role>.validation`` on top of them where settings
             are chosen, on images apart from the test set
STAGES       what is prepared first, see :mod:`.stages`
UNAVAILABLE  row, series or group → why the preset has no such row

``{output}`` and ``{data}`` in texts stand for the folders of the command line, ``{experiments}`` for the study's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import overlay_keys
from ..errors import UserError
from .rows import Row, read_yaml

VALIDATION = ".validation"
_FIELDS = {
    *("BASE", "ABOUT", "CAVEATS", "DATA", "DEFAULT", "MIN_IMAGES"),
    *("COMMON", "ROLES", "STAGES", "UNAVAILABLE"),
}


@dataclass(frozen=True)
class Preset:
    """A preset with its folders filled in; see the module for the fields."""

    name: str
    about: str
    caveats: tuple[str, ...]
    default: tuple[str, ...]
    min_images: int
    common: Mapping[str, Any]
    roles: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, Mapping[str, Any]]
    unavailable: Mapping[str, str]

    def overlays(
        self, roles: Sequence[str], *, validation: bool = False, common: bool = True
    ) -> list[Mapping[str, Any]]:
        """The trees of keys that are laid over a row; ``common``: COMMON is one of them.

        Raises:
            UserError: the preset does not know a role, or has no validation split for any.
        """
        unknown = [role for role in roles if role not in self.roles]
        if unknown:
            raise UserError(f"preset {self.name}: ROLES has no {unknown[0]!r}")
        names = list(roles)
        if validation:
            apart = [role + VALIDATION for role in roles if role + VALIDATION in self.roles]
            if not apart:
                raise UserError(f"preset {self.name}: no validation split for the roles {', '.join(roles)}")
            names += apart
        return [*([self.common] if common else []), *(self.roles[name] for name in names)]

    def why_unavailable(self, row: Row) -> str:
        """Why the preset has no such row; empty where it has."""
        names = (row.id, row.series, row.group)
        return next((str(self.unavailable[name]) for name in names if name in self.unavailable), "")


def read_preset(folder: Path, name: str, *, output: Path, data: str = "") -> Preset:
    """The preset ``name`` of the study in ``folder``.

    Args:
        output: of the study. data: folder of the data; empty: the preset's own.

    Raises:
        UserError: no such preset, an unknown field, or data that it needs and nobody named.
    """
    content = _read(folder, name)
    data = data or os.path.expandvars(str(content.get("DATA", "")))
    if "$" in data:
        raise UserError(f"--data: the preset {name} needs data; give --data DIR, or set {data.split('/')[0]}")
    filled = _fill(content, {"{output}": str(output), "{data}": data, "{experiments}": str(folder)})
    return Preset(
        name=name,
        about=" ".join(str(filled.get("ABOUT", "")).split()),
        caveats=tuple(" ".join(str(text).split()) for text in filled.get("CAVEATS", ())),
        default=tuple(map(str, filled.get("DEFAULT", ()))),
        min_images=int(filled.get("MIN_IMAGES", 10)),
        common=filled.get("COMMON", {}),
        roles={role: keys or {} for role, keys in filled.get("ROLES", {}).items()},
        stages=filled.get("STAGES", {}),
        unavailable={str(key): text for key, text in filled.get("UNAVAILABLE", {}).items()},
    )


def _read(folder: Path, name: str) -> dict[str, Any]:
    """A preset's content, laid over that of its base."""
    path = folder / "presets" / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"--preset {name}: there are {there}")
    content = read_yaml(path)
    unknown = set(content) - _FIELDS
    if unknown:
        raise UserError(f"{path}: unknown field {sorted(unknown)[0]!r}")
    base = content.get("BASE")
    if base == name:
        raise UserError(f"{path}: BASE names the preset itself")
    return overlay_keys(_read(folder, base), content) if base else content


def _fill(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, texts) for item in value]
    if isinstance(value, str):
        for name, text in texts.items():
            value = value.replace(name, text)
    return value
