"""What this library offers by name. ``engines/`` publishes these records to the frameworks' registries.

A record is (kind, name, factory). Kinds follow MMEngine's root registries: ``model``, ``loss``,
``transform``, ``metric``, ``dataset``, ``hook``, ``teacher``. Nothing here imports a framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .errors import UserError

Factory = TypeVar("Factory", bound=Callable[..., Any])

_RECORDS: dict[tuple[str, str], Callable[..., Any]] = {}


def register(kind: str, name: str) -> Callable[[Factory], Factory]:
    """Decorator: record ``factory`` under (kind, name). A second, different factory is an error."""

    def record(factory: Factory) -> Factory:
        previous = _RECORDS.get((kind, name))
        if previous is not None and previous is not factory:
            raise ValueError(f"{kind} {name!r} is registered already, by {previous.__module__}")
        _RECORDS[(kind, name)] = factory
        return factory

    return record


def lookup(kind: str, name: str) -> Callable[..., Any]:
    """The factory under (kind, name); a :class:`UserError` that lists the known names otherwise."""
    try:
        return _RECORDS[(kind, name)]
    except KeyError:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(names(kind)) or 'none'}") from None


def names(kind: str) -> list[str]:
    """All names of one kind, sorted."""
    return sorted(name for k, name in _RECORDS if k == kind)


def records() -> list[tuple[str, str, Callable[..., Any]]]:
    """Every (kind, name, factory), sorted, for the frameworks' registries."""
    return [(kind, name, factory) for (kind, name), factory in sorted(_RECORDS.items())]
