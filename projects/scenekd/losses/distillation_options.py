"""The entries of a list of distillation losses: their keys, defaults and ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .correlation import OVER
from .distill import DIRECTIONS, REDUCTIONS
from .schedules import SCHEDULES

# Keys of every entry.
COMMON: dict[str, Any] = {
    "WEIGHT": 1.0,
    "SCHEDULE": "constant",  # or cosine: down to 0 at the end of training
    "WARMUP": 0,  # iterations until the weight is reached
}
_LOGITS = {"DISTILL_IGNORED": False}  # whether void pixels are taught, too
_LAYERS = {"STUDENT": "", "TEACHER": ""}  # module paths, such as backbone.layer4
_CHANNELS = {"STUDENT_CHANNELS": 0, "TEACHER_CHANNELS": 0}  # of the layers; 0: found by a look at an image

# Keys of the entries of each TYPE, with their defaults.
KINDS: dict[str, dict[str, Any]] = {
    "hinton": {
        "ALPHA": 0.9,
        "TEMPERATURE": 20.0,
        "DIRECTION": "teacher_student",
        "REDUCTION": "positions",
        **_LOGITS,
    },
    "pixel": dict(_LOGITS),
    "pair": {"SCALE": 0.5, "GRID": 0, **_LAYERS, **_LOGITS},  # on logits where no layers are named
    "holistic": {"PENALTY": 10.0, "LR": 1e-4, "WIDTH": 64, "SIZE": 64, **_LOGITS},
    "cwd": {"TEMPERATURE": 4.0, **_LAYERS, **_CHANNELS, **_LOGITS},  # on logits where no layers are named
    "dkd": {"ALPHA": 1.0, "BETA": 8.0, "TEMPERATURE": 4.0},
    "dist": {"TEMPERATURE": 1.0, "BETA": 1.0, "GAMMA": 1.0, "OVER": "batch", **_LOGITS},
    "mgd": {"MASK_RATIO": 0.75, **_LAYERS, **_CHANNELS},
    "at": dict(_LAYERS),
}
FEATURES_ONLY = ("mgd", "at")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: Rule = (lambda v: _number(v) and v > 0, "a number above 0")
_NOT_NEGATIVE: Rule = (lambda v: _number(v) and v >= 0, "a number that is not negative")
_COUNT: Rule = (lambda v: _whole(v) and v >= 0, "a whole number that is not negative")
_SIZE: Rule = (lambda v: _whole(v) and v > 0, "a whole number above 0")
_FLAG: Rule = (lambda v: isinstance(v, bool), "True or False")
_PATH: Rule = (lambda v: isinstance(v, str), "the path of a module, such as backbone.layer4")


def _one_of(names: Sequence[str]) -> Rule:
    return (lambda v: isinstance(v, str) and v in names), f"one of {', '.join(names)}"


_RULES: dict[str, Rule] = {
    "WEIGHT": _NOT_NEGATIVE,
    "SCHEDULE": _one_of(SCHEDULES),
    "WARMUP": _COUNT,
    "ALPHA": _NOT_NEGATIVE,
    "hinton.ALPHA": (lambda v: _number(v) and 0 <= v <= 1, "a number in 0…1"),
    "BETA": _NOT_NEGATIVE,
    "GAMMA": _NOT_NEGATIVE,
    "TEMPERATURE": _POSITIVE,
    "DIRECTION": _one_of(DIRECTIONS),
    "REDUCTION": _one_of(REDUCTIONS),
    "OVER": _one_of(OVER),
    "DISTILL_IGNORED": _FLAG,
    "SCALE": (lambda v: _number(v) and 0 < v <= 1, "a number in (0, 1]"),
    "GRID": _COUNT,
    "PENALTY": _NOT_NEGATIVE,
    "LR": _POSITIVE,
    "WIDTH": _SIZE,
    "SIZE": _SIZE,
    "MASK_RATIO": (lambda v: _number(v) and 0 <= v < 1, "a number in [0, 1)"),
    "STUDENT": _PATH,
    "TEACHER": _PATH,
    "STUDENT_CHANNELS": _COUNT,
    "TEACHER_CHANNELS": _COUNT,
}


@dataclass(frozen=True)
class Entry:
    """One loss of the list.

    Attributes:
        kind: its TYPE. name: its key in the dictionary of losses. where: how errors call it.
        options: all keys but TYPE, with their defaults.
    """

    kind: str
    name: str
    where: str
    options: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.options[key]

    @property
    def on_features(self) -> bool:
        """Whether it compares layers, not logits."""
        return bool(self.options.get("STUDENT"))


def read_entries(specs: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """The entries of a list, checked; ``loss_<type>``, numbered from 1 where one type comes several times.

    Raises:
        UserError: an entry is no mapping, its TYPE or a key is unknown, a value is out of range, or a layer is named
            of one network alone. It names the entry, counted from 0, and the key.
    """
    if isinstance(specs, (str, Mapping)) or not isinstance(specs, Sequence):
        raise UserError(f"distillation losses: give a list of mappings, got {type(specs).__name__}")
    found = [_read(i, spec) for i, spec in enumerate(specs)]
    kinds = [kind for kind, _, _ in found]
    entries, seen = [], dict.fromkeys(kinds, 0)
    for kind, where, options in found:
        seen[kind] += 1
        number = f"_{seen[kind]}" if kinds.count(kind) > 1 else ""
        entries.append(Entry(kind, f"loss_{kind}{number}", where, options))
    return entries


def _read(place: int, spec: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    where = f"distillation loss {place}"
    if not isinstance(spec, Mapping):
        raise UserError(f"{where}: must be a mapping with a TYPE, got {spec!r}")
    kind = spec.get("TYPE")
    if kind not in KINDS:
        raise UserError(f"{where}: TYPE must be one of {', '.join(KINDS)}, got {kind!r}")
    where = f"{where} ({kind})"
    known = {**COMMON, **KINDS[kind]}
    for key, value in spec.items():
        if key == "TYPE":
            continue
        if key not in known:
            raise UserError(f"{where}: unknown key {key}; known: {', '.join(known)}")
        fits, words = _RULES.get(f"{kind}.{key}", _RULES[key])
        if not fits(value):
            raise UserError(f"{where}: {key} must be {words}, got {value!r}")
    options = {**known, **{key: value for key, value in spec.items() if key != "TYPE"}}
    for key, other in (("STUDENT", "TEACHER"), ("TEACHER", "STUDENT")):
        if key in options and not options[key] and (options[other] or kind in FEATURES_ONLY):
            raise UserError(f"{where}: {key} is missing; name a layer of the {key.lower()}'s network")
    return kind, where, options
