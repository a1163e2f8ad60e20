"""Scene context beside a detection teacher: what an object could be, told with its box hidden.

A network of hidden objects (``TEACHER.CONTEXT``) is asked about the boxes of which the teacher is not sure, each hidden
in turn; what it says is mixed into their class probabilities when the teacher is cached, so that training costs nothing
more. No ground truth is looked at: the boxes are the teacher's.

Of a box, o = 1 − its share of background, q its classes' shares of o, c the context's distribution, w ``WEIGHT``:

    product   q' ∝ q · c^w        one is as good as nothing where c is uniform; what either rules out is ruled out
    mixture   q' = (1 − w) q + w c

The box then teaches o · q'. Background keeps its share, as do box, label and score: that something is there, and where,
only the teacher has seen. Logarithmic and linear pooling of opinions: Genest and Zidek, Statistical Science 1986.

Shape shorthand: H, W: image; N: boxes; C: object classes; S: side of the context network's input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checkpoint
from ..boxes_merge import vectors_from_boxes
from ..errors import UserError
from ..hooks import hooks_of
from ..models import choose_device
from .frozen import asking, freeze, to_array
from .images import file_sha256
from .label_map import build_class_map, join_classes
from .manifest import REBUILD
from .options import FOLDERS, our_classes
from .protocol import Detections
from .scenekd_teacher import load_network

KEY = "TEACHER.CONTEXT"
RULES = ("product", "mixture")
TASK = "hidden_object"
_AT_ONCE = 32  # boxes hidden at a time


def mix_context(vectors: np.ndarray, context: np.ndarray, weight: float, rule: str) -> np.ndarray:
    """(N, C + 1) float32: class probabilities of boxes with what the context says of them, see the module.

    A box that is background alone stays as it is, and by ``product`` one that shares no class with its context.

    Args:
        vectors: (N, C + 1) probabilities, background last. context: (N, C), each row a distribution; a row of NaN is a
            box of which the context says nothing.
        weight: ≥ 0 of ``product``, in 0…1 of ``mixture``; 0 changes nothing.
        rule: one of :data:`RULES`.

    Raises:
        ValueError: shapes that do not fit, no such rule, or a weight outside its range.
    """
    if vectors.ndim != 2 or context.shape != (len(vectors), vectors.shape[1] - 1):
        raise ValueError(f"class probabilities {vectors.shape} and context {context.shape} do not fit")
    if rule not in RULES:
        raise ValueError(f"RULE must be one of {', '.join(RULES)}, got {rule!r}")
    if not 0 <= weight < np.inf or (rule == "mixture" and weight > 1):
        raise ValueError(f"WEIGHT must be at least 0, and of mixture at most 1, got {weight}")
    objects = vectors[:, :-1].astype(np.float64)
    total = objects.sum(axis=1, keepdims=True)
    told = np.nan_to_num(context.astype(np.float64))
    if rule == "product":
        mixed = objects * told**weight
        share = mixed.sum(axis=1, keepdims=True)
        mixed *= total / np.where(share > 0, share, 1)
    else:
        share = total
        mixed = (1 - weight) * objects + weight * total * told
    changed = (share > 0) & ~np.isnan(context).any(axis=1, keepdims=True)
    result = vectors.copy()
    result[:, :-1] = np.where(changed, mixed, objects)
    return result


@dataclasses.dataclass(frozen=True)
class ContextRule:
    """How ``TEACHER.CONTEXT`` is mixed in: the keys of these names."""

    rule: str
    weight: float
    max_score: float

    @classmethod
    def from_config(cls, cfg: Any) -> ContextRule | None:
        """None where ``TEACHER.CONTEXT`` names no network.

        Raises:
            UserError: a value out of its range, or a student that learns no distributions.
        """
        node = cfg.TEACHER.CONTEXT
        if not node.WEIGHTS:
            return None
        if node.RULE not in RULES:
            raise UserError(f"{KEY}.RULE: {node.RULE!r} is none of {', '.join(RULES)}")
        if not 0 < node.WEIGHT < np.inf or (node.RULE == "mixture" and node.WEIGHT > 1):
            raise UserError(f"{KEY}.WEIGHT: {node.WEIGHT}; it must be above 0, and for mixture at most 1")
        if not 0 < node.MAX_SCORE <= 1:
            raise UserError(f"{KEY}.MAX_SCORE: {node.MAX_SCORE} is no score above 0, up to 1")
        if cfg.DISTILL.DETECTION.CLASS_TARGET != "vector":
            raise UserError(
                f"{KEY}: only class probabilities hold it; set DISTILL.DETECTION.CLASS_TARGET vector"
            )
        return cls(node.RULE, float(node.WEIGHT), float(node.MAX_SCORE))


def context_note(cfg: Any) -> dict[str, Any]:
    """What a cache's manifest says of the context in it, as a part of its identity; empty where there is none.

    Raises:
        UserError: see :meth:`ContextRule.from_config`; no such file.
    """
    rule = ContextRule.from_config(cfg)
    if rule is None:
        return {}
    weights = cfg.TEACHER.CONTEXT.WEIGHTS
    if not Path(weights).is_file():
        raise UserError(f"{KEY}.WEIGHTS: {weights}: no such checkpoint")
    return {"context": dataclasses.asdict(rule) | {"file_sha256": file_sha256(weights)}}


def check_cached(cfg: Any, kinds: Iterable[str]) -> None:
    """Refuse ``TEACHER.CONTEXT`` where every detection teacher's outputs (its ``TYPE`` is in ``kinds``) are saved
    already.

    Raises:
        UserError: as said.
    """
    if cfg.TEACHER.CONTEXT.WEIGHTS and FOLDERS.keys() >= set(kinds):
        raise UserError(
            f"{KEY}: is mixed in while a network is cached, and {' and '.join(sorted(set(kinds)))} holds saved "
            f'outputs; set {KEY}.WEIGHTS ""'
        )


def check_context(folder: Path, info: dict[str, Any], cfg: Any) -> None:
    """Refuse a cache with another context in it than ``cfg`` asks for; ``info`` is its teacher's.

    Raises:
        UserError: it holds another, or the configuration's is out of range.
    """
    rule, made = ContextRule.from_config(cfg), info.get("context")
    wanted = None if rule is None else dataclasses.asdict(rule)
    if wanted is not None:
        weights = cfg.TEACHER.CONTEXT.WEIGHTS  # which may have gone since
        known = file_sha256(weights) if Path(weights).is_file() else (made or {}).get("file_sha256")
        wanted["file_sha256"] = known
    if made != wanted:
        what = "without" if made is None else "with" if wanted is None else "with another"
        raise UserError(f"{folder}: made {what} {KEY}; {REBUILD}, with --rebuild")


class ContextModel:
    """A network of hidden objects, asked about a teacher's unsure boxes.

    Args:
        weights: its checkpoint. classes: ours, each of which it must know, by equal names or synonyms; what else it
            knows is left out, and the rest is made 1 again.
        rule: how its word is mixed in.

    Raises:
        UserError: no such checkpoint, one without a configuration or of another task, one that wants to be told the
            other objects, or a class that it does not know.
    """

    def __init__(
        self, weights: str, classes: Sequence[str], rule: ContextRule, device: torch.device | str = "cpu"
    ) -> None:
        if checkpoint.config_of(weights) is None:
            raise UserError(
                f"{KEY}.WEIGHTS: {weights} holds no configuration; give a checkpoint of a run of ours"
            )
        net, cfg = load_network(weights)
        tasks = tuple(getattr(net, "tasks", ()))
        if TASK not in tasks:
            raise UserError(f"{KEY}.WEIGHTS: {weights} does {' and '.join(tasks) or 'no task'}, not {TASK}")
        if getattr(net, "wants_targets", False):
            raise UserError(
                f"{KEY}.WEIGHTS: {weights} wants to be told the other objects, which nobody knows here; take a network "
                "that sees the picture"
            )
        self.rule, self.device, self.cfg, self.hooks = rule, device, cfg, hooks_of(cfg)
        self.net = freeze(net, device)
        found = build_class_map(our_classes(cfg), classes, allow_unmapped=True, key=KEY)
        if lacking := [name for i, name in enumerate(classes) if i not in found.index]:
            raise UserError(
                f"{KEY}.WEIGHTS: {weights} does not know {', '.join(lacking[:5])}; train it on them"
            )
        self._places, self._count = np.asarray(found.index), len(classes)

    def probabilities(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(N, C) float32: what each of ``boxes`` (N, 4) xyxy pixels of an (H, W, 3) uint8 RGB image could be, with it
        hidden; NaN for a box that cannot be hidden, as one that covers too much of the image."""
        told = np.full((len(boxes), self._count), np.nan, np.float32)
        for start in range(0, len(boxes), _AT_ONCE):
            pixels, hidden = self.hooks.hide_boxes(image, boxes[start : start + _AT_ONCE], self.cfg)
            if not len(pixels):
                continue
            with asking(self.net):
                said = self.net(torch.from_numpy(pixels).to(self.device).float(), None)
            rows = torch.stack([one.class_scores.float().softmax(0) for one in said])
            ours = join_classes(to_array(rows), self._places, self._count)[:, :-1]
            ours /= np.maximum(ours.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
            told[start + np.flatnonzero(hidden)] = ours
        return told

    def mix(self, image: np.ndarray, found: Detections) -> Detections:
        """The boxes with the context in the class probabilities of those that score below ``MAX_SCORE``; where a
        teacher tells none they are built first, as a student would build them."""
        vectors = found.class_probabilities
        if vectors is None:
            vectors = vectors_from_boxes(*found, num_classes=self._count)
        unsure = np.flatnonzero(found.scores < self.rule.max_score)
        told = self.probabilities(image, found.boxes[unsure])
        vectors = vectors.copy()
        vectors[unsure] = mix_context(vectors[unsure], told, self.rule.weight, self.rule.rule)
        return dataclasses.replace(found, class_probabilities=vectors)


def build_context(cfg: Any) -> ContextModel | None:
    """The network of ``cfg.TEACHER.CONTEXT`` on ``MODEL.DEVICE``; None where none is named."""
    rule = ContextRule.from_config(cfg)
    if rule is None:
        return None
    return ContextModel(cfg.TEACHER.CONTEXT.WEIGHTS, our_classes(cfg), rule, choose_device(cfg))
