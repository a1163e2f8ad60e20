"""Matching detections to ground truth by VOC's rules, for all images and classes at once.

Shape shorthand: D: detections and G: ground-truth boxes of all images together; I: images; C: classes.

VOC's rules: a detection looks only at the box of its class and image that it overlaps most (the first of tied
ones), "difficult" boxes included. That choice depends on no threshold, so it is made once; what a threshold
changes is which detection claims the box first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Detection × box pairs compared at once: bounds the memory to some hundred MB.
_PAIRS_AT_ONCE = 2_000_000


@dataclass
class Boxes:
    """Boxes of many images, flat: image (N,) int64, labels (N,) int64, boxes (N, 4) float64 xyxy."""

    image: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


@dataclass
class Matches:
    """What VOC AP needs to know of the detections; it needs no box any more.

    Attributes:
        image: (D,) int64, 0…I−1.
        labels: (D,) int64.
        scores: (D,) float64.
        overlap: (D,) float64, the largest IoU with a box of the same class and image; 0 where there is none.
        truth: (D,) int64, that box among the G; −1 where there is none.
        truth_image, truth_labels: (G,) int64.
        truth_difficult: (G,) bool.
    """

    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    overlap: np.ndarray
    truth: np.ndarray
    truth_image: np.ndarray
    truth_labels: np.ndarray
    truth_difficult: np.ndarray


def concatenate(parts: list[Matches]) -> Matches:
    """Join matches of single images; the i-th part becomes image i."""
    offsets = np.cumsum([0, *(len(part.truth_labels) for part in parts)])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return Matches(
        image=np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts]),
        labels=joined("labels"),
        scores=joined("scores"),
        overlap=joined("overlap"),
        truth=np.concatenate(
            [np.where(part.truth < 0, -1, part.truth + offset) for part, offset in zip(parts, offsets)]
        ),
        truth_image=np.repeat(np.arange(len(parts)), np.diff(offsets)),
        truth_labels=joined("truth_labels"),
        truth_difficult=joined("truth_difficult"),
    )


def match(
    detections: Boxes,
    scores: np.ndarray,
    truth: Boxes,
    difficult: np.ndarray,
    *,
    num_classes: int,
    inclusive: bool = False,
) -> Matches:
    """Find for every detection the box of its class and image that it overlaps most.

    Args:
        scores: (D,).
        difficult: (G,) bool.
        inclusive: a box that ends at pixel x2 contains it: widths are x2 − x1 + 1.
    """
    overlap = np.zeros(len(scores))
    best = np.full(len(scores), -1, np.int64)
    groups = int(max(detections.image.max(initial=-1), truth.image.max(initial=-1)) + 1) * num_classes
    truth_group = truth.image * num_classes + truth.labels
    by_group = np.argsort(truth_group, kind="stable")
    sizes = np.bincount(truth_group, minlength=groups)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    group = detections.image * num_classes + detections.labels
    candidates = np.flatnonzero(sizes[group]) if len(group) else np.zeros(0, np.int64)
    counts = sizes[group[candidates]]
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(candidates):
        # As many detections as fit, but at least one.
        used = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, used + _PAIRS_AT_ONCE, side="right")))
        part, repeats = candidates[begin:end], counts[begin:end]
        first = np.cumsum(repeats) - repeats
        within = np.arange(int(repeats.sum())) - np.repeat(first, repeats)
        pair_truth = by_group[np.repeat(starts[group[part]], repeats) + within]
        iou = paired_iou(
            np.repeat(detections.boxes[part], repeats, axis=0), truth.boxes[pair_truth], inclusive
        )
        largest = np.maximum.reduceat(iou, first)
        hits = np.flatnonzero(iou == np.repeat(largest, repeats))
        owner = np.repeat(np.arange(len(part)), repeats)[hits]
        # Written back to front, so that the first of tied boxes is what stays.
        best[part[owner[::-1]]] = pair_truth[hits[::-1]]
        overlap[part] = largest
        begin = end
    return Matches(
        detections.image, detections.labels, scores, overlap, best, truth.image, truth.labels, difficult
    )


def paired_iou(a: np.ndarray, b: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """(N,) IoU of the boxes a[i] and b[i], (N, 4) xyxy; 0 where both are empty."""
    extra = float(inclusive)
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    sides = np.maximum(high - low + extra, 0)
    intersection = sides[:, 0] * sides[:, 1]
    sides_a, sides_b = a[:, 2:] - a[:, :2] + extra, b[:, 2:] - b[:, :2] + extra
    union = sides_a[:, 0] * sides_a[:, 1] + sides_b[:, 0] * sides_b[:, 1] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
