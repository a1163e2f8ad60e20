"""The NMS chain against a plain loop over classes and boxes, and its edges by hand."""

import math

import pytest
import torch

from kd_mtl.postprocess import PostProcess
from scenekd.boxes import encode

SIZE = (100, 120)  # height, width


def logits_of(probabilities: torch.Tensor) -> torch.Tensor:
    """(A, C) class probabilities → logits (A, C + 1) whose softmax they are."""
    background = 1 - probabilities.sum(dim=1, keepdim=True)
    return torch.cat((probabilities, background), dim=1).log()


def run(boxes, probabilities, **options):
    """The chain on boxes that the offsets encode exactly."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    anchors = torch.tensor([20.0, 20.0, 60.0, 70.0]).repeat(len(boxes), 1)
    logits = logits_of(torch.tensor(probabilities, dtype=torch.float32))
    return PostProcess(**options)(logits, encode(boxes, anchors), anchors, SIZE)


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def reference(boxes, probabilities, *, threshold, pre, nms, per_class, topk):
    """(score, class, box index) of every survivor, best first; one loop over classes, one over boxes."""
    found = []
    for c in range(len(probabilities[0])):
        order = sorted(
            (i for i in range(len(boxes)) if probabilities[i][c] > threshold),
            key=lambda i: -probabilities[i][c],
        )[:pre]
        kept: list[int] = []
        for i in order:
            if len(kept) < per_class and all(iou(boxes[i], boxes[j]) <= nms for j in kept):
                kept.append(i)
        found += [(probabilities[i][c], c, i) for i in kept]
    return sorted(found, reverse=True)[:topk]


@pytest.mark.parametrize("seed", range(4))
def test_against_a_plain_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(150, 2, generator=generator) * torch.tensor([80.0, 60.0]) + 20
    half = torch.rand(150, 2, generator=generator) * 12 + 6
    boxes = torch.cat((centres - half, centres + half), dim=1)  # inside the image
    raw = torch.randn(150, 5, generator=generator) * 2
    probabilities = raw.softmax(dim=1)[:, :4]
    limits = {"threshold": 0.05, "pre": 60, "nms": 0.45, "per_class": 20, "topk": 50}
    expected = reference(boxes.tolist(), probabilities.tolist(), **limits)
    assert 40 <= len(expected) <= 50  # the limits bite

    found, labels, scores = run(
        boxes.tolist(),
        probabilities.tolist(),
        score_threshold=0.05,
        topk_pre_nms=60,
        nms_threshold=0.45,
        topk_per_class=20,
        topk=50,
    )
    assert labels.tolist() == [c for _, c, _ in expected]
    torch.testing.assert_close(scores, torch.tensor([s for s, _, _ in expected]))
    torch.testing.assert_close(found, boxes[[i for _, _, i in expected]], rtol=0, atol=1e-3)


def test_nothing_found():
    boxes, labels, scores = run([[10, 10, 30, 30]] * 3, [[0.005, 0.008]] * 3)
    assert boxes.shape == (0, 4)
    assert labels.shape == scores.shape == (0,)
    assert (boxes.dtype, labels.dtype, scores.dtype) == (torch.float32, torch.int64, torch.float32)


def test_threshold_is_strict():
    # softmax of (0, 0) is exactly .5
    anchors = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    logits, offsets = torch.zeros(1, 2), torch.zeros(1, 4)
    assert len(PostProcess(score_threshold=0.5)(logits, offsets, anchors, SIZE)[2]) == 0
    assert len(PostProcess(score_threshold=0.499)(logits, offsets, anchors, SIZE)[2]) == 1


def test_classes_do_not_suppress_each_other():
    _, labels, scores = run([[10, 10, 30, 30]] * 2, [[0.6, 0.3], [0.5, 0.4]])
    # one box of each class survives, the better scored one
    assert labels.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([0.6, 0.4])


def test_nms_threshold():
    # 20 × 20 boxes shifted by d along x: IoU = (20 − d) / (20 + d); d = 7: .481, d = 8: .429
    assert len(run([[10, 10, 30, 30], [17, 10, 37, 30]], [[0.9], [0.8]])[0]) == 1
    assert len(run([[10, 10, 30, 30], [18, 10, 38, 30]], [[0.9], [0.8]])[0]) == 2


def test_box_over_the_edge_keeps_its_other_side():
    boxes, _, _ = run([[-15, 10, 25, 40], [100, 80, 140, 130]], [[0.9], [0.8]])
    torch.testing.assert_close(
        boxes, torch.tensor([[0.0, 10, 25, 40], [100, 80, 120, 100]]), rtol=0, atol=1e-3
    )


def test_box_outside_the_image_is_dropped():
    boxes, _, scores = run([[-30, 10, -5, 40], [10, 10, 30, 30]], [[0.9], [0.8]])
    assert scores.tolist() == pytest.approx([0.8])
    torch.testing.assert_close(boxes, torch.tensor([[10.0, 10, 30, 30]]), rtol=0, atol=1e-3)


def test_limits():
    # ten boxes that do not touch, two classes; scores fall with the index
    boxes = [[10 * i, 10, 10 * i + 8, 30] for i in range(10)]
    probabilities = [[0.5 - 0.02 * i, 0.3 - 0.02 * i] for i in range(10)]
    _, labels, scores = run(boxes, probabilities, topk_per_class=3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert scores.tolist() == pytest.approx([0.5, 0.48, 0.46, 0.3, 0.28, 0.26])
    assert len(run(boxes, probabilities, topk=4)[0]) == 4
    assert run(boxes, probabilities, topk_pre_nms=2)[1].tolist() == [0, 0, 1, 1]


def test_half_precision_and_wild_offsets_stay_finite():
    anchors = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    offsets = torch.tensor([[0.0, 0.0, 6e4, 6e4]], dtype=torch.float16)
    logits = torch.tensor([[5.0, 0.0]], dtype=torch.float16)
    boxes, _, scores = PostProcess()(logits, offsets, anchors, SIZE)
    assert boxes.tolist() == [[0, 0, SIZE[1], SIZE[0]]]
    assert scores.item() == pytest.approx(1 / (1 + math.exp(-5)), abs=1e-5)
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)
