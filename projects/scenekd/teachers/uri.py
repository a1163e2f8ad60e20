"""A teacher by one URI: what ``TEACHER.<TASK> "SCHEME://NAME"`` says in the keys of the node.

    detectron2://COCO-Detection/faster_rcnn_R_101_FPN_3x    a config of detectron2's model zoo, or a .yaml file
    mmseg://fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512        a config of MMSegmentation's, or a .py file
    torchvision://fcn_resnet101/COCO_WITH_VOC_LABELS_V1     a model, and (if one likes) one of its weights
    timm://resnet50.a1_in1k                                 a model of timm, a classifier
    scenekd://runs/teacher/model_final.pth                  a checkpoint of ours
    folder://DIR, thesis://DIR                              saved outputs

``?weights=FILE`` may follow any of the first four. A URI names the whole teacher: weights that it does not
mention are the zoo's own, whatever stood in the node before.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import UserError

ZOOS = ("detectron2", "mmseg", "torchvision", "timm")
PATHS = ("scenekd", "folder", "thesis")  # what follows the scheme is a path: the node's WEIGHTS
SCHEMES = (*ZOOS, *PATHS)
_WEIGHTS = "?weights="


def is_uri(value: object) -> bool:
    """Whether a value has the form SCHEME://NAME."""
    return isinstance(value, str) and "://" in value


def node_from_uri(uri: str, key: str) -> dict[str, str]:
    """``TYPE``, ``NAME`` and ``WEIGHTS`` of a teacher node; all empty for an empty string, which is no teacher.

    Args:
        key: of the node, for the error messages.

    Raises:
        UserError: no scheme, an unknown one, or nothing behind it.
    """
    if not uri.strip():
        return {"TYPE": "", "NAME": "", "WEIGHTS": ""}
    scheme, found, rest = uri.strip().partition("://")
    if not found:
        raise UserError(f"{key}: {uri!r} has no scheme; write one of {_schemes(scheme)}, then the name")
    if scheme not in SCHEMES:
        raise UserError(f"{key}: unknown scheme in {uri!r}; choose one of {_schemes(scheme)}")
    name, _, weights = rest.partition(_WEIGHTS)
    if not name:
        raise UserError(f"{key}: {uri!r} names nothing; write {scheme}://NAME")
    if scheme in PATHS:
        return {"TYPE": scheme, "NAME": "", "WEIGHTS": name}
    if scheme == "torchvision" and "/" in name and not weights:
        name, _, weights = name.partition("/")
    return {"TYPE": scheme, "NAME": name, "WEIGHTS": weights}


def nearest(name: str, known: Iterable[str], count: int | None = None) -> list[str]:
    """``known`` by falling likeness to ``name`` (case aside), at most ``count``."""
    wanted = name.lower()

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, wanted, other.lower()).ratio()

    return sorted(known, key=likeness, reverse=True)[:count]


def _schemes(scheme: str) -> str:
    return ", ".join(f"{known}://" for known in nearest(scheme, SCHEMES))
