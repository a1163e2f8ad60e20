"""Weights of negatives under doubtful boxes, by hand and against all pairs."""

import pytest
import torch

from scenekd.anchor_grid import AnchorGrid
from scenekd.boxes import iou_matrix
from scenekd.negatives import negative_weights

# Four anchors of 10 px in a row, apart from each other.
ANCHORS = torch.tensor([[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(4)])


def test_closed_form():
    # Over anchor 0 two boxes: IoU 1 with score .3 and IoU .6 with .8. Over anchor 1 one of IoU .4 with .5. Over
    # anchor 2 one of IoU .3, too little, though no anchor is nearer. The surest counts: 1 − .8 and 1 − .5.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 0, 30, 4], [40, 0, 50, 3]])
    scores = torch.tensor([0.3, 0.8, 0.5, 0.9])
    both = [boxes, boxes[:0]], [scores, scores[:0]]
    weights = negative_weights(ANCHORS, *both, iou_threshold=0.4)
    torch.testing.assert_close(weights, torch.tensor([[0.2, 0.5, 1, 1], [1, 1, 1, 1]]))
    # From .8 on an anchor is left out.
    weights = negative_weights(ANCHORS, *both, iou_threshold=0.4, ignore_score=0.8)
    torch.testing.assert_close(weights[0], torch.tensor([0, 0.5, 1, 1]))


@pytest.mark.parametrize("with_grid", [True, False])
def test_equals_all_pairs(with_grid):
    grid = AnchorGrid((32, 32), ((4, 4), (2, 2)), (((8.0, 8.0), (12.0, 6.0)), ((16.0, 16.0),)))
    generator = torch.Generator().manual_seed(0)
    boxes, scores = [], []
    for count in (5, 0, 12):
        corner = torch.rand(count, 2, generator=generator) * 25
        boxes.append(torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 16], dim=1))
        scores.append(torch.rand(count, generator=generator))
    boxes[2][0, 2:] = boxes[2][0, :2]  # clipped to nothing
    got = negative_weights(
        grid.anchors(), boxes, scores, iou_threshold=0.3, ignore_score=0.9, grid=grid if with_grid else None
    )
    for own, own_scores, row in zip(boxes, scores, got):
        under = (iou_matrix(own, grid.anchors()) >= 0.3) * own_scores[:, None]
        surest = under.amax(dim=0) if len(own) else torch.zeros(len(grid.anchors()))
        torch.testing.assert_close(row, torch.where(surest >= 0.9, 0, 1 - surest))
    assert (got < 1).any() and (got == 0).any()


@pytest.mark.parametrize("options", [{"iou_threshold": 0}, {"ignore_score": 0}, {"ignore_score": 1.5}])
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match="must be in"):
        negative_weights(ANCHORS, [ANCHORS], [torch.ones(4)], **options)
    with pytest.raises(ValueError, match="3 scores do not fit"):
        negative_weights(ANCHORS, [ANCHORS], [torch.ones(3)])
