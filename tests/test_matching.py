import math
import random

import pytest
import torch
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from scenekd.boxes import iou_matrix
from scenekd.matching import AnchorGrid, match_anchors


def blitz_like_grid(size, maps, scales):
    """Six shapes per cell as in the paper: five aspect ratios and a square between two scales."""
    shapes = []
    for s, following in zip(scales, scales[1:]):
        cell = [(s * size * math.sqrt(r), s * size / math.sqrt(r)) for r in (1, 2, 1 / 2, 3, 1 / 3)]
        shapes.append((*cell, (math.sqrt(s * following) * size,) * 2))
    return AnchorGrid((size, size), tuple((m, m) for m in maps), tuple(shapes))


SMALL = blitz_like_grid(128, (16, 8, 4, 2, 1), (0.1, 0.25, 0.45, 0.65, 0.9, 1.1))
FULL = blitz_like_grid(512, (64, 32, 16, 8, 4, 2, 1), (0.04, 0.10, 0.27, 0.44, 0.61, 0.78, 0.95, 1.12))
OBLONG = AnchorGrid((90, 160), ((9, 16), (3, 5)), (((12.0, 12.0), (30.0, 8.0)), ((50.0, 40.0),)))


def reference(anchors, boxes, threshold):
    """Box of each anchor, −1 for none, written out as the rules read."""
    iou = iou_matrix(boxes, anchors).tolist()
    matched = []
    for a in range(len(anchors)):
        best, best_iou = -1, 0.0
        for b in range(len(boxes)):
            if iou[b][a] > best_iou:  # strictly: the first of equals stays
                best, best_iou = b, iou[b][a]
        # The threshold is compared in float32, like the overlap.
        matched.append(best if best_iou >= torch.tensor(threshold).item() else -1)
    for b in reversed(range(len(boxes))):  # backwards, so that the lowest box has the last word
        top = max(iou[b])
        if top > 0:
            matched[iou[b].index(top)] = b  # index() gives the first of equals
    return matched


def difficult_boxes(size, n, seed):
    """Ordinary boxes among tiny, huge, thin, outside, duplicated, empty and cell-aligned (tied) ones."""
    rng = random.Random(seed)
    boxes = []
    for _ in range(n):
        kind = rng.choice(
            ["usual"] * 4 + ["tiny", "huge", "thin", "outside", "copy", "empty", "aligned", "edge"]
        )
        w, h = (math.exp(rng.uniform(1, math.log(size))) for _ in "wh")
        x, y = rng.uniform(0, size), rng.uniform(0, size)
        if kind == "tiny":
            w, h = rng.choice([1e-3, 0.1, 1, 2]), rng.choice([1e-3, 0.1, 1, 2])
        elif kind == "huge":
            w, h = size * rng.uniform(0.8, 50), size * rng.uniform(0.8, 50)
        elif kind == "thin":
            w, h = rng.choice([(size, 1.0), (1.0, size), (size * 2, 0.01)])
        elif kind == "outside":
            x, y = x + rng.choice([-1, 1]) * size * rng.uniform(0.5, 3), rng.choice([y, -size, 1e6])
        elif kind == "empty":
            w, h = rng.choice([(0, 0), (w, 0), (0, h)])
        elif kind == "aligned":  # as far from several anchors: exact ties
            x, y, w, h = (rng.randrange(1, 16) * size / 16 for _ in "xywh")
        elif kind == "edge":
            x, y = rng.choice([0, size]), rng.choice([0, size])
        boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        if kind == "copy":
            boxes[-1] = list(rng.choice(boxes))
    return torch.tensor(boxes)


def match(anchors, boxes, **options):
    labels = torch.arange(len(boxes)) % 20
    confidences = torch.linspace(0.1, 0.9, max(len(boxes), 1))[: len(boxes)]
    return match_anchors(anchors, boxes, labels, confidences, **options)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("threshold", [0.5, 0.05, 0.7, 1.0])
def test_both_ways_equal_the_reference(seed, threshold):
    grid = (SMALL, OBLONG)[seed % 2]
    anchors = grid.anchors()
    boxes = difficult_boxes(128, 1 + 3 * seed, seed)
    expected = reference(anchors, boxes, threshold)
    assert match(anchors, boxes, iou_threshold=threshold).matched_box.tolist() == expected
    assert match(anchors, boxes, iou_threshold=threshold, grid=grid).matched_box.tolist() == expected


@pytest.mark.parametrize("seed", range(6))
def test_both_ways_agree_on_full_size_layout(seed):
    anchors = FULL.anchors()
    boxes = difficult_boxes(512, 100, 100 + seed)
    boxes = torch.cat([boxes, anchors[torch.randperm(len(anchors), generator=torch.manual_seed(seed))[:20]]])
    dense, fast = match(anchors, boxes), match(anchors, boxes, grid=FULL)
    assert torch.equal(dense.matched_box, fast.matched_box)
    assert torch.equal(dense.labels, fast.labels)
    assert torch.equal(dense.confidences, fast.confidences)


def test_equals_torchvision_without_ties_and_zero_overlaps():
    anchors = FULL.anchors()
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        centre = torch.rand(100, 2, generator=generator) * 512
        half = torch.rand(100, 2, generator=generator) * 120 + 5
        boxes = torch.cat([centre - half, centre + half], dim=1)
        # torchvision keeps the last of tied boxes and anchors, we the first: leave the ties out.
        best, anchor = box_iou(boxes, anchors).topk(2, dim=1)
        once = anchor[:, 0].bincount(minlength=len(anchors))[anchor[:, 0]] == 1
        boxes = boxes[(best[:, 0] > best[:, 1]) & (best[:, 1] > 0) & once]
        assert len(boxes) > 20
        iou = box_iou(boxes, anchors)
        highest = iou.topk(2, dim=0).values
        assert not ((highest[0] == highest[1]) & (highest[0] >= 0.5)).any()
        assert torch.equal(match(anchors, boxes, grid=FULL).matched_box, SSDMatcher(0.5)(iou))


def test_label_and_confidence_travel_together():
    # Four anchors of 10 px side by side. Box 0 equals anchor 1. Box 1 covers half of anchor 3:
    # IoU .5, which reaches the threshold. Anchors 0 and 2 overlap nothing.
    anchors = torch.tensor([[10.0 * i, 0, 10.0 * i + 10, 10] for i in range(4)])
    boxes = torch.tensor([[10.0, 0, 20, 10], [30, 0, 35, 10]])
    found = match_anchors(anchors, boxes, torch.tensor([7, 3]), torch.tensor([0.25, 0.001]))
    assert found.labels.tolist() == [-1, 7, -1, 3]
    assert found.matched_box.tolist() == [-1, 0, -1, 1]
    torch.testing.assert_close(found.confidences, torch.tensor([1, 0.25, 1, 0.001]))
    assert found.labels.dtype == found.matched_box.dtype == torch.int64
    assert found.confidences.dtype == torch.float32


def test_confidence_has_no_say_and_ties_go_to_the_lowest_index():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    # The two boxes are one: every overlap is tied. Both boxes' best is anchor 0, box 0 gets it;
    # anchor 1's best box is box 0 too. The sure box 1 comes to nothing.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    found = match_anchors(anchors, boxes, torch.tensor([4, 5]), torch.tensor([0.1, 1.0]))
    assert found.matched_box.tolist() == [0, 0]


def test_forced_positive_overrides_a_better_box():
    # Box 0 equals the anchor. Box 1, far smaller (IoU .01), has no other anchor. Both boxes' best anchor is
    # anchor 0, so the lower box wins; in the other order the small box takes it from the perfect one.
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    large, small = [0.0, 0, 10, 10], [0.0, 0, 1, 1]
    assert match(anchors, torch.tensor([large, small])).matched_box.tolist() == [0]
    assert match(anchors, torch.tensor([small, large])).matched_box.tolist() == [0]
    # With a second anchor, on which the large box is better still (IoU 1 against 10/11), the first is forced
    # to the small box although the large one overlaps it above the threshold.
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11]])
    large = [0.0, 0, 10, 11]
    assert match(anchors, torch.tensor([large, small])).matched_box.tolist() == [1, 0]


def test_a_box_that_overlaps_nothing_forces_nothing():
    for grid in (None, SMALL):
        outside = torch.tensor([[500.0, 500, 600, 600], [40, 40, 40, 60]])  # outside; without area
        found = match(SMALL.anchors(), outside, grid=grid)
        assert (found.matched_box == -1).all()
        assert (found.confidences == 1).all()


def test_no_boxes_makes_every_anchor_a_negative_of_weight_one():
    for grid in (None, SMALL):
        found = match(SMALL.anchors(), torch.zeros(0, 4), grid=grid)
        assert (found.labels == -1).all()
        assert (found.confidences == 1).all()


def test_grid_order_and_centres():
    anchors = OBLONG.anchors()
    assert len(anchors) == OBLONG.num_anchors == 9 * 16 * 2 + 3 * 5
    # Second row, third column of the first map: centre (2.5 · 160/16, 1.5 · 90/9) = (25, 15), shape 30 × 8.
    assert anchors[(1 * 16 + 2) * 2 + 1].tolist() == [10, 11, 40, 19]
    # First cell of the second map: centre (160/5/2, 90/3/2) = (16, 15), shape 50 × 40, not clipped.
    assert anchors[9 * 16 * 2].tolist() == [-9, -5, 41, 35]


def test_misuse():
    anchors, boxes = SMALL.anchors(), torch.tensor([[0.0, 0, 9, 9]])
    labels, confidences = torch.tensor([0]), torch.tensor([1.0])
    bad = [
        (anchors[:, :3], boxes, labels, confidences),
        (anchors, torch.tensor([[5.0, 0, 1, 9]]), labels, confidences),
        (anchors, boxes * math.nan, labels, confidences),
        (anchors, boxes, labels - 1, confidences),
        (anchors, boxes, labels.float(), confidences),
        (anchors, boxes, labels, confidences * 1.5),
        (anchors, boxes, labels, -confidences),
        (anchors, boxes, torch.tensor([0, 1]), confidences),
    ]
    for arguments in bad:
        with pytest.raises(ValueError):
            match_anchors(*arguments)
    for threshold in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(ValueError):
            match_anchors(anchors, boxes, labels, confidences, iou_threshold=threshold)
    for wrong in (anchors[1:], anchors.clamp(0, 128), anchors.flip(0)):
        with pytest.raises(ValueError, match="grid"):
            match_anchors(wrong, boxes, labels, confidences, grid=SMALL)
    with pytest.raises(ValueError):
        AnchorGrid((128, 128), ((4, 4),), ())
    with pytest.raises(ValueError):
        AnchorGrid((128, 128), ((4, 4),), (((8.0, 0.0),),))
