"""Attention triplet loss of ENVISE: a student looks for a class where its teacher does, and elsewhere for another.

N: images; C: classes; H, W: common size of the maps.

For every image, max(0, d(A_B⁺, A_T⁺) − d(A_B⁺, A_B⁻) + m): anchor A_B⁺ and positive A_T⁺ are the maps of student and
teacher for the teacher's pseudo-label, the negative A_B⁻ is the student's map for its likeliest other class. The
paper's formula is not at hand; distance, margin and weight are options, and what they are by default is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .attention_maps import KINDS, Look, class_attention, top_wrong_class
from .positions import half_squared_distance, mean_over, resized
from .reduce import at_least_float32

DISTANCES = ("l2", "l2_squared", "cosine")
_EPS = 1e-8  # length below which a map counts as zero


@dataclass(frozen=True)
class Triplet:
    """Per image; ``loss`` has a gradient.

    Attributes:
        loss: scalar, the mean over the images that count, times the weight.
        positive, negative: (N,) d(A_B⁺, A_T⁺) and d(A_B⁺, A_B⁻).
        counted: (N,) bool: anchor and positive are no zero maps. A map of zeros says nothing of where to look, and has
            no direction to turn to.
        agrees: (N,) bool: the student's own likeliest class is the pseudo-label.
    """

    loss: Tensor
    positive: Tensor
    negative: Tensor
    counted: Tensor
    agrees: Tensor

    def report(self) -> dict[str, float]:
        """Numbers for a log: share of images that count, and the mean distances of these apart for those where the
        student agrees with the pseudo-label and those where it does not (left out where there are none)."""
        found = {"counted": float(self.counted.double().mean())}
        for name, group in (("agree", self.agrees), ("differ", ~self.agrees)):
            chosen = group & self.counted
            if bool(chosen.any()):
                found[f"positive_{name}"] = float(self.positive[chosen].mean())
                found[f"negative_{name}"] = float(self.negative[chosen].mean())
        return found


class AttentionTripletLoss:
    """The loss with its settings.

    Args:
        kind: of the maps, see :func:`scenekd.losses.attention_maps.class_attention`.
        distance: between maps of length 1: ``l2`` (0…√2 for maps, which are not negative), ``l2_squared`` (0…2), or
            ``cosine``, 1 − cos, half of that.
        margin: m ≥ 0. weight: ≥ 0.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        *,
        kind: str = "grad_cam",
        distance: str = "l2_squared",
        margin: float = 0.5,
        weight: float = 1.0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
        if not (margin >= 0 and weight >= 0):
            raise ValueError(f"margin and weight must not be negative, got {margin} and {weight}")
        self.kind, self.distance, self.margin, self.weight = kind, distance, margin, weight

    def __call__(self, student: Look, teacher: Look, labels: Tensor) -> Triplet:
        """The loss of a batch.

        Args:
            student, teacher: what both made of the same images; classes in the same order, at least two of them. No
                gradient flows into the teacher. The student may have seen more: the first N of its images are those
                of the teacher, and only these count.
            labels: int64, the teacher's pseudo-label of each image that the student saw.

        Raises:
            ValueError: shapes do not fit.
        """
        if student.logits.shape[1:] != teacher.logits.shape[1:] or student.logits.shape[-1] < 2:
            raise ValueError(
                "student and teacher must tell the same two or more classes, got logits "
                f"{tuple(student.logits.shape)} and {tuple(teacher.logits.shape)}"
            )
        count = len(teacher.logits)
        if not len(student.logits) == len(labels) >= count:
            raise ValueError(
                f"there are {len(labels)} labels and {count} images of the teacher for {len(student.logits)} images"
            )
        if student.head is not None:  # else the logits hang on all features together
            student = Look(student.features[:count], student.logits[:count], student.head)
            labels = labels[:count]
        wrong = top_wrong_class(student.logits, labels)
        anchor, negative = (
            class_attention(student, classes, kind=self.kind, create_graph=True)[:count]
            for classes in (labels, wrong)
        )
        positive = class_attention(teacher, labels[:count], kind=self.kind).detach()
        near, far, counted = triplet_distances(anchor, positive, negative, distance=self.distance)
        each = (near - far + self.margin).relu()
        agrees = (student.logits.detach().argmax(dim=1) == labels)[:count]
        loss = self.weight * mean_over(each, counted)
        return Triplet(loss, near.detach(), far.detach(), counted, agrees)


def triplet_distances(
    anchor: Tensor, positive: Tensor, negative: Tensor, *, distance: str = "l2_squared"
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) d(anchor, positive), (N,) d(anchor, negative), and (N,) bool, where anchor and positive are no zero maps.

    The maps are brought to the larger of the two sizes, bilinear, and each to length 1. A map of zeros stays one: its
    distance to any other is 1 (``cosine``: ½), without gradient.

    Args:
        anchor, positive, negative: (N, H, W) ≥ 0; the student's two of one size.
    """
    size = max(anchor.shape[1:], positive.shape[1:], key=lambda sides: sides[0] * sides[1])
    a, p, n = (unit_maps(maps, size) for maps in (anchor, positive, negative))
    counted = (a.detach() != 0).any(dim=1) & (p.detach() != 0).any(dim=1)
    return map_distance(a, p.to(a.dtype), distance), map_distance(a, n, distance), counted


def unit_maps(maps: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
    """(N, H · W) of maps (N, h, w), brought to ``size`` (H, W; None: as they are), each of length 1; one shorter than
    1e-8 becomes 0, for its direction is rounding."""
    rows = resized(at_least_float32(maps)[:, None], size or tuple(maps.shape[1:])).flatten(1)
    short = rows.detach().norm(dim=1, keepdim=True) < _EPS
    return F.normalize(rows.masked_fill(short, 0), dim=1, eps=_EPS)


def map_distance(a: Tensor, b: Tensor, kind: str = "l2_squared") -> Tensor:
    """(N,) distances between rows (N, P) of length 1 or 0.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {kind!r}")
    if kind == "l2":
        return (a - b).norm(dim=1)
    half = half_squared_distance(a, b)
    return half if kind == "cosine" else 2 * half
