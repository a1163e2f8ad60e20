"""Further detection teachers of a configuration, ``TEACHER.DETECTION.MORE``, and the merging of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config_defaults import own_defaults
from ..errors import UserError
from .merged import MergedStore
from .protocol import TeacherStore

_KEY = "TEACHER.DETECTION.MORE"
# Of the whole, not of one teacher.
_SHARED = ("MORE", "MERGE", "MERGE_IOU", "MERGE_SIGMA")


def each_teacher(cfg: Any, task: str) -> list[Any]:
    """The configuration of each teacher of a task: the given one, and one for every entry of ``MORE``.

    An entry is a mapping of keys of ``TEACHER.DETECTION``; what it does not state is at its default, not as in
    the first teacher. ``{CACHE: folder}`` is enough for a cache that was made with a configuration of its own.

    Raises:
        UserError: an entry is no mapping, states no source, or a key or value that does not exist there.
    """
    more = cfg.TEACHER.DETECTION.MORE if task == "detection" else ()
    return [cfg, *(_with(cfg, entry, f"{_KEY}[{i}]") for i, entry in enumerate(more))]


def _with(cfg: Any, entry: Any, key: str) -> Any:
    if not isinstance(entry, Mapping):
        raise UserError(f"{key}: {entry!r} is no mapping of keys, such as {{CACHE: folder}}")
    node = own_defaults().TEACHER.DETECTION
    for name, value in entry.items():
        if name not in node or name in _SHARED:
            known = ", ".join(own for own in node if own not in _SHARED)
            raise UserError(f"{key}: {name!r} is no key of a further teacher; choose among {known}")
        if type(value) is int and isinstance(node[name], float):
            value = float(value)
        try:
            node.merge_from_list([name, value])
        except ValueError:
            raise UserError(f"{key}.{name}: {value!r} is not of type {type(node[name]).__name__}") from None
    if not (node.CACHE or node.WEIGHTS):
        raise UserError(f"{key}: set its CACHE, or TYPE and WEIGHTS of a folder of saved outputs")
    own = cfg.clone()
    own.defrost()
    own.TEACHER.DETECTION = node
    return own


def merge_stores(cfg: Any, stores: Sequence[TeacherStore]) -> TeacherStore:
    """The detection stores of :func:`each_teacher` as one; a single one that is not to be changed stays itself."""
    node = cfg.TEACHER.DETECTION
    if len(stores) == 1 and node.MERGE == "none" and node.SCORE_FACTOR == 1:
        return stores[0]
    return MergedStore(
        stores,
        [one.TEACHER.DETECTION.SCORE_FACTOR for one in each_teacher(cfg, "detection")],
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
