"""The comparison of an exported graph with PyTorch, by hand; and the NMS that exporters can follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.ops

from scenekd.export_check import Comparison, partners
from scenekd.nms import _shifted_nms, batched_nms, nms_by_class


def detections(boxes: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.array(labels, np.int64),
        "scores": np.array(scores, np.float32),
    }


THREE = detections([[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 10, 10]], [0, 1, 2], [0.9, 0.8, 0.8])
# Anchors 0 … 3, classes 0 … 2 and background: no two anchors share a score of a class but the last two, class 2.
ANCHORS = np.array([[0.9, 0, 0, 0.1], [0, 0.8, 0, 0.2], [0, 0, 0.8, 0.2], [0, 0.1, 0.8, 0.1]], np.float32)


def turned(order: list[int]) -> dict[str, Any]:
    return {name: value[order] for name, value in THREE.items()}


def test_partners_are_found_in_any_order():
    first, second = partners(THREE, turned([0, 2, 1]), 100, 1e-4)
    assert first.tolist() == [0, 1, 2] and second.tolist() == [0, 2, 1]
    moved = {**THREE, "boxes": THREE["boxes"] + 0.5}
    # half a pixel of 100 is 5e-3 of the side
    assert len(partners(THREE, moved, 100, 4e-3)[0]) == 0 and len(partners(THREE, moved, 100, 6e-3)[0]) == 3
    other = {**THREE, "labels": np.array([1, 1, 2])}
    assert partners(THREE, other, 100, 1e-4)[0].tolist() == [1, 2]


def test_a_partner_serves_once():
    twice = detections([[0, 0, 10, 10]] * 2, [0, 0], [0.9, 0.9])
    once = detections([[0, 0, 10, 10]], [0], [0.9])
    assert [len(side) for side in partners(twice, once, 100, 1e-4)] == [1, 1]
    assert [len(side) for side in partners(once, detections([], [], []), 100, 1e-4)] == [0, 0]


@pytest.mark.parametrize(
    ("kept", "same", "boxes", "tied"),
    [
        ([0, 1, 2], 3, 3, 0),
        ([0, 2], 2, 3, 0),  # box 1 is missing, and its score is its anchor's alone
        ([0, 1], 2, 2, 1),  # box 2 is missing, but two anchors have its score
    ],
)
def test_boxes_are_counted(kept, same, boxes, tied):
    comparison = Comparison(1e-4)
    comparison.add_detections(THREE, turned(kept), 100, ANCHORS)
    assert (comparison.same, comparison.boxes, comparison.tied) == (same, boxes, tied)
    assert comparison.absolute == {"boxes": 0, "labels": 0, "scores": 0}
    assert (comparison.problem == "") == (same == boxes)
    if comparison.problem:
        assert comparison.problem == "only 2 of 3 boxes are PyTorch's within 0.0001"


def test_differences_are_relative_to_values_above_one():
    comparison = Comparison(1e-3)
    # .01 of a largest value of 20: 5e-4. Of one of .5: .01, since 1 counts there.
    comparison.add({"sem_seg": np.array([0.0, 20.0])}, {"sem_seg": np.array([0.01, 20.0])})
    assert comparison.relative["sem_seg"] == pytest.approx(5e-4) and comparison.problem == ""
    comparison.add({"sem_seg": np.array([0.0, 0.5])}, {"sem_seg": np.array([0.01, 0.5])})
    assert comparison.relative["sem_seg"] == pytest.approx(0.01)
    assert "sem_seg differs from PyTorch by 0.01 (0.01 of its largest value)" in comparison.problem


@pytest.mark.parametrize("wrong", [np.array([np.nan]), np.array([0.0, 0.0])], ids=["nan", "shape"])
def test_nan_and_other_shapes_are_refused(wrong):
    comparison = Comparison(1e9)
    comparison.add({"x": np.array([0.0])}, {"x": wrong})
    comparison.add({"x": np.array([0.0])}, {"x": np.array([0.0])})
    assert "x differs" in comparison.problem


def test_own_rounding_excuses_four_times_as_much():
    def compared(difference: float, same: int) -> Comparison:
        return Comparison(1e-4, {"x": difference}, {"x": difference}, boxes=100, same=same)

    comparison = compared(3e-3, 95)
    assert "x differs" in comparison.problem
    comparison.rounding = compared(1e-3, 98)
    assert comparison.problem == ""  # 3e-3 ≤ 4 · 1e-3, and 5 ≤ 4 · 2 other boxes
    comparison.rounding = compared(1e-3, 99)
    assert "only 95 of 100 boxes" in comparison.problem  # 5 > 4 · 1


@pytest.mark.parametrize("seed", range(3))
def test_every_form_of_nms_chooses_the_same(seed):
    """80 classes on large images, the case where a shift in float32 would lose digits."""
    generator = torch.Generator().manual_seed(seed)
    corner = 1200 * torch.rand(3000, 2, generator=generator)
    boxes = torch.cat([corner, corner + 30 + 100 * torch.rand(3000, 2, generator=generator)], dim=1)
    scores = torch.rand(3000, generator=generator)
    labels = torch.randint(80, (3000,), generator=generator)
    expected = []
    for c in range(80):
        own = (labels == c).nonzero()[:, 0]
        expected += own[torchvision.ops.nms(boxes[own], scores[own], 0.3)].tolist()
    expected.sort(key=lambda i: -float(scores[i]))
    assert 1500 < len(expected) < 3000
    assert batched_nms(boxes, scores, labels, 0.3, 80).tolist() == expected
    assert _shifted_nms(boxes, scores, labels, 0.3).tolist() == expected
    assert nms_by_class(boxes, scores, labels, 0.3, 80).tolist() == expected


def test_nms_of_nothing():
    none = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert _shifted_nms(*none, 0.5).tolist() == batched_nms(*none, 0.5, 3).tolist() == []
