"""Keys of rows and grids: ``A.B``, ``A.LIST.0.B`` into a list, and ``A.B *`` for a factor on what is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import overlay_keys
from ..errors import UserError

TIMES = " *"


def with_key(tree: Any, key: str, value: Any) -> Any:
    """A copy of a tree of keys in which ``key`` has a value; mappings are laid over what is there.

    Raises:
        UserError: a number leads to no entry of a list, or a factor to no number.
    """
    return _with(tree, key.removesuffix(TIMES), value, key)


def _with(node: Any, rest: str, value: Any, key: str) -> Any:
    head, _, rest = rest.partition(".")
    if isinstance(node, (list, tuple)):
        if not head.isdecimal() or int(head) >= len(node):
            raise UserError(f"{key}: no entry {head} in a list of {len(node)}")
        place = int(head)
        inside = _with(node[place], rest, value, key) if rest else value
        return [*node[:place], inside, *node[place + 1 :]]
    below = node if isinstance(node, Mapping) else {}
    if rest:
        return {**below, head: _with(below.get(head), rest, value, key)}
    if key.endswith(TIMES):
        return {**below, head: _times(below.get(head), value, key)}
    return overlay_keys(below, {head: value})


def _times(number: Any, factor: float, key: str) -> Any:
    """Whole numbers stay whole, at least 1; every one of a list is multiplied."""
    if isinstance(number, (list, tuple)):
        return [_times(one, factor, key) for one in number]
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise UserError(f"{key}: neither file nor preset gives a number, but {number!r}")
    return max(1, round(number * factor)) if isinstance(number, int) else number * factor
