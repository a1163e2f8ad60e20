"""From a teacher's classes to ours, by name.

C: object classes; K = C + 1: dense classes, background first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..sample import SoftSegmentation
from .protocol import Detections, InstanceDetections

BACKGROUND = "background"

# Names of one class in different data sets (COCO's, PASCAL VOC's and common spellings), written without
# spaces.
_SYNONYMS = (
    ("aeroplane", "airplane", "plane"),
    ("bicycle", "bike"),
    ("motorbike", "motorcycle"),
    ("diningtable", "table"),
    ("pottedplant", "houseplant"),
    ("sofa", "couch"),
    ("tvmonitor", "tv", "television"),
    ("person", "people", "human"),
    ("car", "automobile"),
)
_CANONICAL = {name: group[0] for group in _SYNONYMS for name in group}

# A class that no class of the teacher stands for gets this log-probability (p = 1e-13) in a dense output.
UNREACHED = -30.0


def canonical(name: str) -> str:
    """One spelling for all synonyms: lower case, without spaces, hyphens and underscores."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    return _CANONICAL.get(plain, plain)


@dataclass(frozen=True)
class ClassMap:
    """Each class of the teacher stands for one of ours, or for background.

    Attributes:
        source, target: class names of the teacher and ours, without background.
        index: for each class of the teacher the index of ours, −1 for background.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    index: tuple[int, ...]

    @property
    def is_identity(self) -> bool:
        return self.index == tuple(range(len(self.target)))

    def as_dict(self) -> dict[str, str]:
        """Teacher's name → our name, for the manifest."""
        return {s: self.target[i] if i >= 0 else BACKGROUND for s, i in zip(self.source, self.index)}

    def _labels(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) labels in our classes, and (N,) bool, which do not stand for background."""
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.source):
            raise ValueError(f"a label lies outside the teacher's {len(self.source)} classes")
        ours = np.asarray(self.index, np.int64)[labels]
        return ours, ours >= 0

    def instances(self, instances: InstanceDetections) -> InstanceDetections:
        """The boxes and masks in our classes; those that stand for background are dropped."""
        labels, keep = self._labels(instances.labels)
        return instances._replace(labels=labels).select(np.flatnonzero(keep))

    def detections(self, detections: Detections) -> Detections:
        """The boxes in our classes; those that stand for background are dropped.

        In a box's class probabilities, those of several classes that stand for one are summed, and those of
        classes that stand for background go to it.
        """
        labels, keep = self._labels(detections.labels)
        vectors = detections.class_probabilities
        if vectors is not None and not self.is_identity:
            if vectors.shape[1] != len(self.source) + 1:
                raise ValueError(
                    f"{vectors.shape[1]} class probabilities do not fit {len(self.source)} classes"
                )
            vectors = join_classes(vectors, np.asarray([*self.index, -1]), len(self.target))
        return dataclasses.replace(detections, labels=labels, class_probabilities=vectors).take(keep)

    def segmentation(self, soft: SoftSegmentation) -> SoftSegmentation:
        """The dense output in our classes.

        Several classes that stand for one are joined: logits by their log-sum-exp (so that the probability is
        the sum), probabilities by their sum, scores by their maximum. Scores of classes that stand for
        background are dropped: a sparse score says where an object is, not where none is.
        """
        if len(soft.values) != len(self.source) + 1:
            raise ValueError(
                f"{len(soft.values)} planes do not fit {len(self.source)} classes and background"
            )
        if self.is_identity:
            return soft
        plane = np.array([0, *(i + 1 for i in self.index)])
        if soft.form == "scores":
            plane[1:][np.asarray(self.index) < 0] = -1
        out = np.empty((len(self.target) + 1, *soft.values.shape[1:]), np.float32)
        level = log_sum_exp(soft.values) if soft.form == "logits" else 0.0
        for k in range(len(out)):
            members = soft.values[plane == k]
            if soft.form == "logits":
                out[k] = log_sum_exp(members) if len(members) else level + UNREACHED
            else:
                out[k] = members.sum(0) if soft.form == "probabilities" else members.max(0, initial=0)
        return SoftSegmentation(out, soft.form)


def join_classes(vectors: np.ndarray, place: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, num_classes + 1) float32, background last: column k of ``vectors`` is added to column ``place[k]``, that
    of a negative place to background's."""
    joined = np.zeros((len(vectors), num_classes + 1), np.float32)
    np.add.at(joined.T, np.where(place < 0, num_classes, place), vectors.T)
    return joined


def build_class_map(
    source: Sequence[str],
    target: Sequence[str],
    pairs: Iterable[Sequence[str]] = (),
    *,
    allow_unmapped: bool = False,
    key: str = "TEACHER",
) -> ClassMap:
    """Match classes by name, equal names before synonyms; ``pairs`` of (teacher's name, our name or "background") go
    first.

    Args:
        allow_unmapped: a teacher's class without a counterpart becomes background, and a class of ours that
            the teacher does not know is accepted. Without it both are refused.
        key: config node, for the error messages; in small letters where its keys are, too.

    Raises:
        UserError: the map is incomplete, or a pair names an unknown class.
    """
    # Two names of one data set may be synonyms, as COCO-Stuff's table and dining table are.
    exact = {name: i for i, name in enumerate(target)}
    own = {canonical(name): i for i, name in enumerate(target)}
    stated = _stated(source, own, pairs, key_name(key, "CLASS_MAP"))
    index, unmapped = [], []
    for name in source:
        place = stated.get(canonical(name), exact.get(name, own.get(canonical(name))))
        if place is None:
            unmapped.append(name)
        index.append(-1 if place is None else place)
    unreached = [name for i, name in enumerate(target) if i not in index]
    if len(unreached) == len(target):
        raise UserError(
            f"{key_name(key, 'CLASSES')}: none of the teacher's classes ({_some(source)}) is one of the student's "
            f"({_some(target)}); set it to the names of what the teacher puts out"
        )
    if (unmapped or unreached) and not allow_unmapped:
        lacking = [
            f"{len(names)} classes {what} ({_some(names)})"
            for names, what in (
                (unmapped, "of the teacher have no counterpart"),
                (unreached, "of the student have no teacher class"),
            )
            if names
        ]
        raise UserError(
            f"{key_name(key, 'CLASS_MAP')}: {' and '.join(lacking)}; add pairs to {key_name(key, 'CLASS_MAP')} "
            f"or set {key_name(key, 'ALLOW_UNMAPPED')} True"
        )
    return ClassMap(tuple(source), tuple(target), tuple(index))


def key_name(node: str, name: str) -> str:
    """A key of a node, as errors write it: in small letters where the node's own name is."""
    return f"{node}.{name if node.isupper() else name.lower()}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _stated(
    source: Sequence[str], own: dict[str, int], pairs: Iterable[Sequence[str]], where: str
) -> dict[str, int]:
    known = {canonical(name) for name in source}
    stated: dict[str, int] = {}
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise UserError(f"{where}: {pair!r} is no pair (teacher's name, our name)")
        theirs, ours = (canonical(str(name)) for name in pair)
        if theirs not in known:
            raise UserError(f"{where}: the teacher has no class {pair[0]!r}; it has {_some(source)}")
        if ours not in own and ours != BACKGROUND:
            raise UserError(f"{where}: {pair[1]!r} is neither a class of the student nor background")
        stated[theirs] = own.get(ours, -1)
    return stated


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    """(K, …) → (…): log Σ_k exp(values), without overflow."""
    top = values.max(0)
    return top + np.log(np.exp(values - top).sum(0))
