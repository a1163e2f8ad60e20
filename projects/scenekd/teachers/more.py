"""Further detection teachers of a configuration, ``TEACHER.DETECTION.MORE``, and the merging of all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..config_defaults import own_defaults
from ..errors import UserError
from .merged import MergedStore
from .options import NETWORKS, SHAPING, cache_folder, teacher_node
from .protocol import TeacherStore
from .uri import is_uri, node_from_uri

_FIRST = "TEACHER.DETECTION"
_KEY = f"{_FIRST}.MORE"
# Of the whole, not of one teacher.
_SHARED = ("MORE", "MERGE", "MERGE_IOU", "MERGE_SIGMA")
_URI = "URI"  # in a mapping: what a string in its place would be


class OneTeacher(NamedTuple):
    """One of a task's teachers: its key, and the configuration in which ``TEACHER.<TASK>`` is its node."""

    task: str
    key: str
    cfg: Any

    @property
    def node(self) -> Any:
        """``TEACHER.<TASK>``."""
        return teacher_node(self.cfg, self.task)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Errors within that speak of ``TEACHER.DETECTION``, or of no key at all, name this teacher's key."""
        try:
            yield
        except UserError as error:
            text = str(error)
            if not self.key.startswith(_KEY) or self.key in text:
                raise
            if _FIRST in text:
                raise UserError(text.replace(_FIRST, self.key)) from None
            if self.node.TYPE:
                raise UserError(f"{self.key}: {text}") from None
            text = text.replace("with this config", "with that one")
            raise UserError(f"{self.key}, cached by a configuration of its own: {text}") from None


def each_teacher(cfg: Any, task: str) -> list[OneTeacher]:
    """The teachers of a task: the given one, and one for every entry of ``MORE``.

    An entry is a URI, or a mapping of keys of ``TEACHER.DETECTION``, among them ``URI`` in place of ``TYPE`` and
    ``NAME``; what it does not state is at its default, not as in the first teacher. A network without ``CACHE``
    has one beside the first teacher's, named after it. ``{CACHE: folder}`` is enough for a cache that was made
    with a configuration of its own.

    Raises:
        UserError: an entry is neither, states no source, or a key or value that does not exist there; two
            teachers that differ would share a cache.
    """
    more = cfg.TEACHER.DETECTION.MORE if task == "detection" else ()
    more = (more,) if is_uri(more) else more  # in the keywords of an MMEngine config
    first = OneTeacher(task, f"TEACHER.{task.upper()}", cfg)
    teachers = [first, *(_further(cfg, entry, f"{_KEY}[{i}]") for i, entry in enumerate(more))]
    if len(teachers) > 1:
        _check_caches(teachers)
    return teachers


def asked_teachers(cfg: Any, tasks: Sequence[str]) -> list[OneTeacher]:
    """The teachers of some tasks whose caches are to be made, each cache once.

    Those that are no network are passed over; but a task without any network keeps its first teacher, of which
    :func:`.build.build_teacher` says why it cannot be asked.
    """
    asked: dict[str, OneTeacher] = {}
    for task in tasks:
        teachers = each_teacher(cfg, task)
        for one in [one for one in teachers if one.node.TYPE in NETWORKS] or teachers[:1]:
            asked.setdefault(_place(one), one)
    return list(asked.values())


def _further(cfg: Any, entry: Any, key: str) -> OneTeacher:
    node = own_defaults().TEACHER.DETECTION
    for name, value in _stated(entry, key).items():
        if name not in node or name in _SHARED:
            known = ", ".join(own for own in (_URI, *node) if own not in _SHARED)
            raise UserError(f"{key}: {name!r} is no key of a further teacher; choose among {known}")
        if type(value) is int and isinstance(node[name], float):
            value = float(value)
        try:
            node.merge_from_list([name, value])
        except ValueError:
            raise UserError(f"{key}.{name}: {value!r} is not of type {type(node[name]).__name__}") from None
    if not (node.CACHE or node.WEIGHTS or node.TYPE):
        raise UserError(f"{key}: set its CACHE, or TYPE and WEIGHTS, or {_URI}")
    own = cfg.clone()
    own.defrost()
    own.TEACHER.DETECTION = node
    one = OneTeacher("detection", key, own)
    with one.naming():
        is_network = one.node.TYPE in NETWORKS
    if is_network and not node.CACHE:
        node.CACHE = str(cache_folder(cfg, "detection").parent / _cache_name(node))
    return one


def _stated(entry: Any, key: str) -> dict[str, Any]:
    """The keys that an entry states, its URI spelled out; ``WEIGHTS`` beside a URI wins, as in the first's node."""
    if is_uri(entry):
        return dict(node_from_uri(entry, key))
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{key}: {entry!r} is no mapping of keys, such as {{CACHE: folder}}, and no SCHEME://NAME"
        )
    if _URI not in entry:
        return dict(entry)
    twice = [name for name in ("TYPE", "NAME") if name in entry]
    if twice:
        raise UserError(f"{key}: {_URI} says {' and '.join(twice)} already; state one or the other")
    if not is_uri(entry[_URI]):
        raise UserError(f"{key}.{_URI}: {entry[_URI]!r} has not the form SCHEME://NAME")
    return node_from_uri(entry[_URI], f"{key}.{_URI}") | {k: v for k, v in entry.items() if k != _URI}


def _cache_name(node: Any) -> str:
    """``detection-<type>-<name>``: the last two parts of the name, or of the path where there is none."""
    parts = Path(node.NAME or node.WEIGHTS).parts[-2:]
    name = re.sub(r"\.(ya?ml|py|pth|pkl)$", "", "-".join(parts))
    return re.sub(r"[^\w.-]+", "_", f"detection-{node.TYPE}-{name}")


def _place(one: OneTeacher) -> str:
    return os.path.abspath(cache_folder(one.cfg, one.task))


def _check_caches(teachers: Sequence[OneTeacher]) -> None:
    owners: dict[str, OneTeacher] = {}
    for one in teachers:
        if one.node.TYPE not in NETWORKS:
            continue
        owner = owners.setdefault(_place(one), one)
        if any(one.node[key] != owner.node[key] for key in (*SHAPING, "CLASS_MAP")):
            folder = cache_folder(one.cfg, one.task)
            raise UserError(
                f"{one.key}: {owner.key} has its cache in {folder} too; give it a CACHE of its own"
            )


def merge_stores(cfg: Any, stores: Sequence[TeacherStore]) -> TeacherStore:
    """The detection stores of :func:`each_teacher` as one; a single one that is not to be changed stays itself."""
    node = cfg.TEACHER.DETECTION
    if len(stores) == 1 and node.MERGE == "none" and node.SCORE_FACTOR == 1:
        return stores[0]
    return MergedStore(
        stores,
        [one.node.SCORE_FACTOR for one in each_teacher(cfg, "detection")],
        merge=node.MERGE,
        iou_threshold=node.MERGE_IOU,
        sigma=node.MERGE_SIGMA,
    )


def set_nms(teacher: Any, threshold: float, max_boxes: int) -> None:
    """``TEACHER.DETECTION.NMS_THRESHOLD`` for a teacher that is a network.

    Raises:
        UserError: no threshold, or a teacher whose suppression is not ours to set.
    """
    key = "TEACHER.DETECTION.NMS_THRESHOLD"
    if not 0 < threshold <= 1:
        raise UserError(f"{key}: {threshold} is no overlap in (0, 1]")
    if not hasattr(teacher, "set_nms"):
        raise UserError(f"{key}: {type(teacher).__name__} does not let it be set; set it to 0")
    teacher.set_nms(threshold, max_boxes)
