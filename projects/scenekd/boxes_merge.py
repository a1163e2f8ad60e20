"""Making one list of boxes of several that mean the same objects: NMS, soft-NMS, weighted box fusion.

N: boxes given; M: boxes that come out; K = C + 1: classes with background last. Boxes are (·, 4) absolute xyxy
float32, labels integers, scores in 0…1. Classes never meet: each is merged by itself. Of equal scores the box
with the lower index goes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from .boxes import iou_matrix
from .evaluation.matching_voc import paired_iou

_LEAST = 1e-12  # members of a cluster whose scores are all 0 weigh alike


@dataclass(frozen=True, eq=False)
class Merged:
    """Boxes after merging, sorted by falling score.

    Attributes:
        boxes: (M, 4) float32. labels: (M,) int64. scores: (M,) float32.
        shares: (M, N) float64, rows sum to 1: how much each given box is part of each result, so that
            ``boxes = shares @ given`` and any other column of the given boxes is merged alike.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    shares: np.ndarray


def nms(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, iou_threshold: float = 0.5) -> Merged:
    """Greedy suppression: of two boxes of a class with an IoU of at least the threshold the lower score goes."""
    _check(boxes, labels, scores, iou_threshold)
    return _greedy(boxes, labels, scores, partial(_hard, iou_threshold), 0.0)


def soft_nms(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    method: str = "gaussian",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.0,
) -> Merged:
    """Soft-NMS (Bodla et al., ICCV 2017, section 3): neighbours of the best box lose score instead of going.

    The best box is taken, and every box of its class that is left is multiplied by f of its IoU with it; this is
    repeated with what is left. linear: f = 1 − IoU from the threshold on, else 1; gaussian: f = exp(−IoU² / σ).

    Args:
        method: gaussian or linear.
        iou_threshold: of linear, in (0, 1]. sigma: of gaussian, > 0.
        min_score: boxes that end below are dropped, and those that end at 0 (exact duplicates, by linear).

    Raises:
        ValueError: shapes do not fit, or an argument is outside its range.
    """
    _check(boxes, labels, scores, iou_threshold)
    if method not in ("gaussian", "linear"):
        raise ValueError(f"method must be gaussian or linear, got {method!r}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    decay = partial(_gaussian, sigma) if method == "gaussian" else partial(_linear, iou_threshold)
    return _greedy(boxes, labels, scores, decay, min_score)


def weighted_box_fusion(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    iou_threshold: float = 0.55,
    teacher: np.ndarray | None = None,
    num_teachers: int = 1,
) -> Merged:
    """Weighted box fusion (Solovyev, Wang, Gabruseva, Image and Vision Computing 107, 2021, section 3).

    By falling score, each box joins the fused box of its class that it overlaps most if their IoU exceeds the
    threshold, else it founds one. A fused box is the mean of its members by their scores; its score is their mean
    score times the share of the teachers that are among them. For teachers that give an object one box each this
    is the paper's min(T, N) / N, T members, N teachers; a second box of one teacher does not count as agreement.

    Args:
        iou_threshold: in (0, 1].
        teacher: (N,) integer, who gave each box; by default one teacher gave all.
        num_teachers: how many teachers looked at the image, ≥ 1.

    Raises:
        ValueError: shapes do not fit, or an argument is outside its range.
    """
    _check(boxes, labels, scores, iou_threshold)
    teacher = np.zeros(len(boxes), np.int64) if teacher is None else teacher
    if len(teacher) != len(boxes) or num_teachers < 1:
        raise ValueError(f"{len(boxes)} boxes, {len(teacher)} teachers of boxes, {num_teachers} teachers")
    shares, merged_scores = [], []
    for own in _classes(labels, scores):
        for members in _clusters(boxes[own], scores[own].astype(np.float64), iou_threshold):
            part = own[members]
            weight = np.maximum(scores[part].astype(np.float64), _LEAST)
            row = np.zeros(len(boxes))
            row[part] = weight / weight.sum()
            shares.append(row)
            merged_scores.append(scores[part].mean() * len(np.unique(teacher[part])) / num_teachers)
    return _finish(boxes, labels, np.array(shares).reshape(len(shares), len(boxes)), np.array(merged_scores))


def duplicate_quality(
    merged: Merged, boxes: np.ndarray, labels: np.ndarray, *, iou_threshold: float = 0.5
) -> np.ndarray:
    """(M,) float32 in 0…1: how well the given boxes agree where each merged box is (a measure of ours).

    The mean IoU of a merged box with the given boxes of its class that overlap it by the threshold, itself left
    out. Where there is none nothing is known but the score, which takes its place; so a teacher whose duplicates
    were not kept has its scores for quality. (Xu et al., ICCV 2021, section 3.3, jitter each box and run the
    teacher again for such a measure; the duplicates that suppression throws away are at hand for nothing.)
    """
    iou = _ious(merged.boxes, boxes)
    support = (iou >= iou_threshold) & (merged.labels[:, None] == labels) & (merged.shares < 1)
    count = support.sum(1)
    mean = (iou * support).sum(1) / np.maximum(count, 1)
    return np.where(count > 0, mean, merged.scores).astype(np.float32)


def vectors_from_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
) -> np.ndarray:
    """(N, C + 1) float32 class probabilities, background last, for boxes that come without (a rule of ours).

    A box gives its score to its class, and the best score of the boxes of each other class that overlap it by
    the threshold to that class; what is left to 1 is background's. Where the classes exceed 1 they are scaled to
    it and background has none.

    Raises:
        ValueError: shapes do not fit, or a label is not below ``num_classes``.
    """
    _check(boxes, labels, scores, iou_threshold)
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels must lie in 0…{num_classes - 1}")
    near = (_ious(boxes, boxes) >= iou_threshold) * scores.astype(np.float64)  # (N, N)
    vectors = np.zeros((len(boxes), num_classes + 1))
    for label in np.unique(labels):
        vectors[:, label] = near[:, labels == label].max(1)
    vectors[np.arange(len(boxes)), labels] = scores
    total = vectors.sum(1, keepdims=True)
    vectors /= np.maximum(total, 1)
    vectors[:, -1] = np.maximum(1 - total[:, 0], 0)
    return vectors.astype(np.float32)


def _hard(threshold: float, iou: np.ndarray) -> np.ndarray:
    return (iou < threshold).astype(np.float64)


def _linear(threshold: float, iou: np.ndarray) -> np.ndarray:
    return np.where(iou >= threshold, 1 - iou, 1.0)


def _gaussian(sigma: float, iou: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-(iou**2) / sigma))


def _greedy(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    decay: Callable[[np.ndarray], np.ndarray],
    min_score: float,
) -> Merged:
    """Take the best box, decay the rest of its class, and so on."""
    index, final = [], []
    for own in _classes(labels, scores):
        factors = decay(_ious(boxes[own], boxes[own]))
        left = scores[own].astype(np.float64)
        alive = np.ones(len(own), bool)
        while alive.any():
            best = int(np.where(alive, left, -1).argmax())
            alive[best] = False
            if left[best] >= min_score:
                index.append(own[best])
                final.append(left[best])
            left *= factors[best]
            alive &= factors[best] > 0
    shares = np.zeros((len(index), len(boxes)))
    shares[np.arange(len(index)), index] = 1
    return _finish(boxes, labels, shares, np.array(final))


def _clusters(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> list[list[int]]:
    """Members of each fused box of one class, whose boxes are sorted by falling score."""
    clusters: list[list[int]] = []
    weights = np.maximum(scores, _LEAST)[:, None]
    rows = np.concatenate([weights * boxes, weights], axis=1)
    fused, sums = np.empty((len(boxes), 4)), np.empty((len(boxes), 5))  # of weighted boxes, and of weights
    for i, box in enumerate(boxes):
        iou = paired_iou(fused[: len(clusters)], box[None])
        best = int(iou.argmax()) if len(iou) else -1
        if best >= 0 and iou[best] > iou_threshold:
            clusters[best].append(i)
            sums[best] += rows[i]
            fused[best] = sums[best, :4] / sums[best, 4]
        else:
            fused[len(clusters)], sums[len(clusters)] = box, rows[i]
            clusters.append([i])
    return clusters


def _classes(labels: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    """Indices of the boxes of each class, by falling score."""
    order = np.argsort(-scores, kind="stable")
    return [order[labels[order] == label] for label in np.unique(labels)]


def _finish(boxes: np.ndarray, labels: np.ndarray, shares: np.ndarray, scores: np.ndarray) -> Merged:
    first = shares.argmax(1) if shares.size else np.zeros(0, np.int64)
    # equal scores: the result of the box that was given first
    order = np.lexsort((first, -scores))
    shares = shares[order]
    merged = (shares @ boxes.astype(np.float64)).astype(np.float32)
    return Merged(merged, labels[first[order]], scores[order].astype(np.float32), shares)


def _ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    tensors = (torch.from_numpy(np.ascontiguousarray(boxes, np.float32)) for boxes in (a, b))
    return iou_matrix(*tensors).numpy().astype(np.float64)


def _check(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, iou_threshold: float) -> None:
    if boxes.shape != (len(labels), 4) or scores.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"boxes {boxes.shape}, labels {labels.shape}, scores {scores.shape} do not fit")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], got {iou_threshold}")
