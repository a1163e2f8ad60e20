"""NMS, soft-NMS and weighted box fusion against cases worked by hand; quality and class vectors from boxes."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from scenekd.boxes_merge import duplicate_quality, nms, soft_nms, vectors_from_boxes, weighted_box_fusion

# A is 10 × 10. B, 10 × 6, and E, 10 × 5, lie inside it: IoU(A, B) = .6, IoU(A, E) = .5, IoU(B, E) = 5/6.
A, B, E, FAR = [0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 5], [20, 20, 30, 30]
MERGES = (nms, soft_nms, lambda *a: soft_nms(*a, method="linear"), weighted_box_fusion)


def given(*rows):
    """Boxes, labels, scores of (box, label, score) rows."""
    boxes, labels, scores = zip(*rows)
    return np.array(boxes, np.float32), np.array(labels), np.array(scores, np.float32)


def test_nms_drops_what_overlaps_by_the_threshold():
    boxes = given((E, 0, 0.7), (A, 0, 0.9), (FAR, 0, 0.5), (B, 1, 0.8))
    merged = nms(*boxes, iou_threshold=0.5)
    # E overlaps A by exactly .5 and goes; B is of another class and stays.
    np.testing.assert_array_equal(merged.boxes, np.float32([A, B, FAR]))
    assert merged.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(merged.shares, np.eye(4)[[1, 3, 2]])
    assert len(nms(*boxes, iou_threshold=0.51).boxes) == 4


def test_nms_is_torchvision_s():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (60, 2))], axis=1).astype(np.float32)
    labels, scores = rng.integers(0, 3, 60), rng.uniform(0, 1, 60).astype(np.float32)
    kept = batched_nms(*(torch.from_numpy(a) for a in (boxes, scores, labels)), 0.4).numpy()
    np.testing.assert_array_equal(nms(boxes, labels, scores, iou_threshold=0.4).boxes, boxes[kept])


def test_soft_nms_decays_again_and_again():
    boxes = given((A, 0, 0.9), (B, 0, 0.8), (E, 0, 0.7), (FAR, 0, 0.1), (A, 1, 0.6))
    # Linear from .5 on. A leaves B .8 · (1 − .6) = .32 and E .7 · (1 − .5) = .35, so E comes next and leaves
    # B .32 · (1 − 5/6) = .0533. FAR and the other class are untouched.
    merged = soft_nms(*boxes, method="linear", iou_threshold=0.5)
    np.testing.assert_array_equal(merged.boxes, np.float32([A, A, E, FAR, B]))
    np.testing.assert_allclose(merged.scores, [0.9, 0.6, 0.35, 0.1, 0.32 / 6], rtol=1e-6)
    # From .55 on E stays as it is after A and comes next; B is decayed by both as before.
    merged = soft_nms(*boxes, method="linear", iou_threshold=0.55)
    np.testing.assert_allclose(merged.scores, [0.9, 0.7, 0.6, 0.1, 0.32 / 6], rtol=1e-6)
    # Gaussian, σ = ½: A leaves B .8 · exp(−.72) = .3894 and E .7 · exp(−.5) = .4246; E comes first.
    merged = soft_nms(*boxes, sigma=0.5)
    b, e = 0.8 * math.exp(-0.72) * math.exp(-2 * 25 / 36), 0.7 * math.exp(-0.5)
    np.testing.assert_allclose(merged.scores, [0.9, 0.6, e, 0.1, b], rtol=1e-6)
    assert len(soft_nms(*boxes, sigma=0.5, min_score=0.1).boxes) == 4


def test_an_exact_duplicate_is_worth_nothing_linearly():
    merged = soft_nms(*given((A, 0, 0.9), (A, 0, 0.8)), method="linear")
    assert merged.scores.tolist() == pytest.approx([0.9])


def test_fusion_is_the_mean_by_scores():
    boxes = given((A, 0, 0.8), (B, 0, 0.4), (FAR, 0, 0.5), (B, 1, 0.3))
    merged = weighted_box_fusion(*boxes, iou_threshold=0.55)
    # y2 = (.8 · 10 + .4 · 6) / 1.2 = 26/3; the score is the mean of .8 and .4.
    np.testing.assert_allclose(merged.boxes, [[0, 0, 10, 26 / 3], FAR, B], rtol=1e-6)
    np.testing.assert_allclose(merged.scores, [0.6, 0.5, 0.3], rtol=1e-6)
    np.testing.assert_allclose(merged.shares[0], [2 / 3, 1 / 3, 0, 0])


def test_later_boxes_meet_the_fused_box():
    # E overlaps A by .5, under the threshold, but the fusion of A and B, y2 = (.5 · 10 + .5 · 6) = 8, by 5/8.
    merged = weighted_box_fusion(*given((A, 0, 0.5), (B, 0, 0.5), (E, 0, 0.2)), iou_threshold=0.55)
    np.testing.assert_allclose(merged.boxes, [[0, 0, 10, (0.5 * 16 + 0.2 * 5) / 1.2]], rtol=1e-6)
    assert merged.scores.tolist() == pytest.approx([0.4])


def test_what_few_teachers_say_scores_less():
    boxes = given((A, 0, 0.8), (B, 0, 0.4), (FAR, 0, 0.5))
    both = weighted_box_fusion(*boxes, teacher=np.array([0, 1, 0]), num_teachers=2)
    assert both.scores.tolist() == pytest.approx([0.6, 0.25])  # both teachers; one of two
    one = weighted_box_fusion(*boxes, teacher=np.array([0, 0, 1]), num_teachers=2)
    assert one.scores.tolist() == pytest.approx([0.3, 0.25])  # two boxes of one teacher are no agreement


@pytest.mark.parametrize("merge", MERGES)
def test_results_are_shares_of_what_was_given(merge):
    """Also with no box at all, with scores of 0, and with ties, where the first given stays first."""
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 40, (50, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (50, 2))], axis=1).astype(np.float32)
    labels, scores = rng.integers(0, 3, 50), rng.uniform(0, 1, 50).astype(np.float32)
    merged = merge(boxes, labels, scores)
    np.testing.assert_allclose(merged.shares.sum(1), 1)
    np.testing.assert_allclose(merged.shares @ boxes, merged.boxes, rtol=1e-5)
    assert (np.diff(merged.scores) <= 0).all() and merged.scores.dtype == np.float32
    assert (merged.shares[:, :, None] * (labels[None, :, None] != merged.labels[:, None, None])).sum() == 0
    nothing = merge(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert (
        nothing.boxes.shape == (0, 4) and nothing.shares.shape == (0, 0) and nothing.labels.dtype == np.int64
    )
    tied = merge(*given((A, 0, 0.0), (FAR, 0, 0.0)))
    np.testing.assert_array_equal(tied.boxes, np.float32([A, FAR]))


def test_quality_is_the_agreement_of_duplicates():
    boxes = given((A, 0, 0.9), (B, 0, 0.8), (E, 0, 0.7), (FAR, 0, 0.3), (A, 1, 0.2))
    # Duplicates of A in its class: B by .6 and E by .5. FAR and the box of the other class have none.
    quality = duplicate_quality(nms(*boxes), *boxes[:2])
    np.testing.assert_allclose(quality, [0.55, 0.3, 0.2], rtol=1e-6)
    # Of the fusion, y2 = (9 + 4.8) / 1.7 of A and B: its members are its duplicates, E below the threshold .7.
    pair = given((A, 0, 0.9), (B, 0, 0.8))
    fused = weighted_box_fusion(*pair)
    y2 = (9 + 4.8) / 1.7
    quality = duplicate_quality(fused, *pair[:2], iou_threshold=0.7)
    np.testing.assert_allclose(quality, [(y2 / 10 + 6 / y2) / 2], rtol=1e-6)


def test_class_vectors_from_boxes():
    # B is of another class and overlaps A by .6: each gets the other's score for the other's class. Of the two
    # boxes of class 1 at A the better counts. FAR stands alone.
    boxes = given((A, 0, 0.6), (B, 1, 0.3), (A, 1, 0.1), (FAR, 2, 0.25))
    vectors = vectors_from_boxes(*boxes, num_classes=3)
    expected = [[0.6, 0.3, 0, 0.1], [0.6, 0.3, 0, 0.1], [0.6, 0.1, 0, 0.3], [0, 0, 0.25, 0.75]]
    np.testing.assert_allclose(vectors, expected, atol=1e-7)
    # IoU .5 counts, less does not; .9 and .6 are scaled to the sum 1 and leave nothing for background.
    vectors = vectors_from_boxes(*given((A, 0, 0.9), (E, 1, 0.6)), num_classes=2)
    np.testing.assert_allclose(vectors, [[0.6, 0.4, 0]] * 2, atol=1e-7)
    vectors = vectors_from_boxes(*given((A, 0, 0.9), (E, 1, 0.6)), num_classes=2, iou_threshold=0.51)
    np.testing.assert_allclose(vectors, [[0.9, 0, 0.1], [0, 0.6, 0.4]], atol=1e-7)


def test_arguments_out_of_range():
    boxes = given((A, 0, 0.9))
    for call in (
        lambda: nms(*boxes, iou_threshold=0),
        lambda: soft_nms(*boxes, method="cubic"),
        lambda: soft_nms(*boxes, sigma=0),
        lambda: weighted_box_fusion(*boxes, iou_threshold=1.1),
        lambda: weighted_box_fusion(*boxes, num_teachers=0),
        lambda: vectors_from_boxes(*boxes, num_classes=0),
        lambda: nms(boxes[0], boxes[1], np.ones(2, np.float32)),
    ):
        with pytest.raises(ValueError):
            call()
