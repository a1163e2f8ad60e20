import math

import pytest
import torch
from torchvision.ops import box_iou

from scenekd.boxes import MAX_SIDE_RATIO, clip, decode, encode, iou_matrix


def random_boxes(n, seed, size=300.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator) * size / 2], dim=1)


def test_iou_closed_form():
    a = torch.tensor([[0.0, 0, 4, 2]])
    # The same: 1. Right half, 4 of 8: 1/2. Shifted by (2, 1): 2 shared, 8 + 8 − 2 = 14 in all: 1/7.
    # Touching along an edge: 0. Far away: 0. A point inside: no area, 0.
    b = torch.tensor([[0.0, 0, 4, 2], [2, 0, 4, 2], [2, 1, 6, 3], [4, 0, 8, 2], [9, 9, 10, 10], [1, 1, 1, 1]])
    torch.testing.assert_close(iou_matrix(a, b), torch.tensor([[1, 1 / 2, 1 / 7, 0, 0, 0]]))


def test_iou_of_two_boxes_without_area_is_zero():
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert iou_matrix(point, point).item() == 0  # 0/0 by the formula


def test_iou_equals_torchvision_to_the_last_bit():
    a, b = random_boxes(50, 0), random_boxes(70, 1)
    assert torch.equal(iou_matrix(a, b), box_iou(a, b))
    assert iou_matrix(a[:0], b).shape == (0, 70)


def test_encode_closed_form():
    anchor = torch.tensor([[10.0, 20, 30, 60]])  # centre (20, 40), sides 20 × 40
    box = torch.tensor([[20.0, 30, 60, 50]])  # centre (40, 40), sides 40 × 20
    # dx = (40 − 20)/20/.1 = 10, dy = 0, dw = ln(40/20)/.2 = 5 ln 2, dh = ln(20/40)/.2 = −5 ln 2.
    expected = torch.tensor([[10, 0, 5 * math.log(2), -5 * math.log(2)]])
    torch.testing.assert_close(encode(box, anchor), expected)
    torch.testing.assert_close(
        encode(box, anchor, (1, 1, 1, 1)), expected * torch.tensor([0.1, 0.1, 0.2, 0.2])
    )
    torch.testing.assert_close(encode(anchor, anchor), torch.zeros(1, 4))


def test_decode_inverts_encode_and_takes_a_batch():
    boxes, anchors = random_boxes(100, 2), random_boxes(100, 3)
    offsets = encode(boxes, anchors)
    torch.testing.assert_close(decode(offsets, anchors), boxes, rtol=1e-4, atol=1e-3)
    batch = decode(torch.stack([offsets, torch.zeros_like(offsets)]), anchors)
    assert torch.equal(batch[0], decode(offsets, anchors))
    torch.testing.assert_close(batch[1], anchors)  # zero offsets are the anchors themselves


def test_decode_is_not_clipped_and_stays_finite():
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    # Shift by −1 anchor width (−10 · variance .1): x from −10 to 0, the width kept.
    torch.testing.assert_close(
        decode(torch.tensor([[-10.0, 0, 0, 0]]), anchor), torch.tensor([[-10.0, 0, 0, 10]])
    )
    huge = decode(torch.tensor([[0.0, 0, 1e6, 1e6]]), anchor)
    torch.testing.assert_close(huge[0, 2] - huge[0, 0], torch.tensor(10 * MAX_SIDE_RATIO))


def test_coding_gradients():
    anchors = random_boxes(4, 4).double()
    offsets = torch.randn(
        4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda o: decode(o, anchors), offsets)


def test_encode_of_a_degenerate_box_is_finite():
    assert encode(torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([[0.0, 0, 10, 10]])).isfinite().all()


def test_clip_cuts_each_corner_on_its_own():
    boxes = torch.tensor([[-5.0, -1, 50, 20], [10, 10, 20, 20]])
    assert clip(boxes, height=15, width=40).tolist() == [[0, 0, 40, 15], [10, 10, 20, 15]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: iou_matrix(torch.zeros(3, 5), torch.zeros(1, 4)),
        lambda: iou_matrix(torch.zeros(4), torch.zeros(1, 4)),
        lambda: iou_matrix(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)),
        lambda: encode(torch.zeros(3, 4), torch.zeros(2, 4)),
        lambda: encode(torch.zeros(2, 4), torch.zeros(2, 4), (0.1, 0.1, 0.2, 0)),
        lambda: decode(torch.zeros(2, 3, 4), torch.zeros(2, 4)),
    ],
)
def test_misuse(call):
    with pytest.raises(ValueError):
        call()
