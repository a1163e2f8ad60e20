import math

import pytest
import torch

from scenekd.boxes import encode
from scenekd.losses.multibox import multibox_loss
from scenekd.matching import match_anchors

# Eight anchors of 10 px in a row, apart from each other.
ANCHORS = torch.tensor([[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(8)])
NUM_CLASSES = 3


def case(*images):
    """Matches and boxes; an image is a list of (anchor index, label, confidence), or None for no labels."""
    matches, boxes = [], []
    for image in images:
        content = image or []
        own = ANCHORS[[i for i, _, _ in content]].reshape(-1, 4)
        labels = torch.tensor([label for _, label, _ in content], dtype=torch.int64)
        confidences = torch.tensor([confidence for _, _, confidence in content])
        matches.append(None if image is None else match_anchors(ANCHORS, own, labels, confidences))
        boxes.append(own)
    return matches, boxes


def outputs(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 8, NUM_CLASSES + 1, generator=generator, dtype=torch.float64)
    offsets = torch.randn(batch, 8, 4, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), offsets.requires_grad_()


def cross_entropies(logits, label=NUM_CLASSES):
    return -logits.log_softmax(-1)[..., label]


def test_closed_form_of_one_image():
    logits, offsets = outputs(1)
    losses = multibox_loss(logits, offsets, ANCHORS, *case([(2, 1, 1.0), (5, 0, 1.0)]))
    # Two positives, so six negatives: all that are left. Divided by 2.
    positive = cross_entropies(logits[0, 2], 1) + cross_entropies(logits[0, 5], 0)
    negative = cross_entropies(logits[0, [0, 1, 3, 4, 6, 7]]).sum()
    torch.testing.assert_close(losses["loss_cls"], (positive + negative) / 2)
    # The boxes are the anchors themselves, wanted offsets 0: smooth-L1 is x²/2 below 1, |x| − ½ above.
    chosen = offsets[0, [2, 5]].abs()
    torch.testing.assert_close(
        losses["loss_box"], torch.where(chosen < 1, chosen**2 / 2, chosen - 0.5).sum() / 2
    )
    assert losses["num_pos"] == 2


def test_perfect_boxes_have_no_loss_and_no_gradient():
    boxes = [ANCHORS[:2] + torch.tensor([1.0, -1, 2, 1])]
    match = match_anchors(ANCHORS, boxes[0], torch.tensor([0, 1]), torch.ones(2))
    offsets = torch.zeros(1, 8, 4)
    offsets[0, :2] = encode(boxes[0], ANCHORS[:2])
    offsets.requires_grad_()
    loss = multibox_loss(torch.zeros(1, 8, 4), offsets, ANCHORS, [match], boxes)["loss_box"]
    loss.backward()
    assert loss.item() == 0
    assert (offsets.grad == 0).all()


def test_negatives_are_the_hardest_of_the_whole_batch():
    logits = torch.zeros(2, 8, 4, dtype=torch.float64)
    logits[..., 3] = 9.0  # all sure of background
    # Three confident mistakes: anchors 1, 4 of image 1 and anchor 6 of image 0.
    for image, anchor in ((1, 1), (1, 4), (0, 6)):
        logits[image, anchor, 0] = 20.0
    logits.requires_grad_()
    offsets = torch.zeros(2, 8, 4, dtype=torch.float64)
    # One positive in image 0 and none in image 1: three negatives, two of them from image 1.
    multibox_loss(logits, offsets, ANCHORS, *case([(0, 2, 1.0)], []))["loss_cls"].backward()
    used = logits.grad.abs().sum(-1).nonzero().tolist()
    assert used == [[0, 0], [0, 6], [1, 1], [1, 4]]


@pytest.mark.parametrize(("ratio", "expected"), [(0, 0), (1, 2), (1.5, 3), (3, 6), (100, 14)])
def test_number_of_negatives(ratio, expected):
    logits, offsets = outputs(2)
    matches, boxes = case([(0, 0, 1.0), (1, 1, 1.0)], [])
    multibox_loss(logits, offsets, ANCHORS, matches, boxes, negative_ratio=ratio)["loss_cls"].backward()
    # min(ratio · 2, 16 − 2) negatives beside two positives.
    assert (logits.grad.abs().sum(-1) > 0).sum() == 2 + expected


def test_confidence_weighs_the_positive_and_nothing_else():
    logits, offsets = outputs(1)
    sure = multibox_loss(logits, offsets, ANCHORS, *case([(0, 1, 1.0), (3, 2, 1.0)]), negative_ratio=1)
    unsure = multibox_loss(logits, offsets, ANCHORS, *case([(0, 1, 0.25), (3, 2, 1.0)]), negative_ratio=1)
    # ¾ of the first positive's loss is gone, and the divisor is still the two positives.
    torch.testing.assert_close(
        sure["loss_cls"] - unsure["loss_cls"], 0.75 * cross_entropies(logits[0, 0], 1) / 2
    )
    first = offsets[0, 0].abs()
    torch.testing.assert_close(
        sure["loss_box"] - unsure["loss_box"],
        0.75 * torch.where(first < 1, first**2 / 2, first - 0.5).sum() / 2,
    )


def test_confidence_comes_before_mining_and_does_not_touch_it():
    # Positives of almost no confidence do not let further negatives in, nor do negatives weigh less.
    logits, offsets = outputs(1)
    losses = multibox_loss(logits, offsets, ANCHORS, *case([(0, 1, 0.0), (3, 2, 0.0)]), negative_ratio=1)
    hardest = cross_entropies(logits[0, [1, 2, 4, 5, 6, 7]]).topk(2).values
    torch.testing.assert_close(losses["loss_cls"], hardest.sum() / 2)
    assert losses["loss_box"] == 0


@pytest.mark.parametrize("leave_out", ["none", "weight"])
def test_an_image_without_labels_is_outside_everything(leave_out):
    logits, offsets = outputs(3)
    content = [(2, 1, 0.5)]
    alone = multibox_loss(logits[:1], offsets[:1], ANCHORS, *case(content))
    if leave_out == "none":
        losses = multibox_loss(logits, offsets, ANCHORS, *case(content, None, None))
    else:
        matches, boxes = case(content, [(1, 1, 1.0), (4, 0, 1.0)], [])
        weights = torch.tensor([1.0, 0, 0])
        losses = multibox_loss(logits, offsets, ANCHORS, matches, boxes, image_weights=weights)
    for name in ("loss_cls", "loss_box", "num_pos"):
        torch.testing.assert_close(losses[name], alone[name])


def test_image_weights():
    logits, offsets = outputs(2)
    matches, boxes = case([(2, 1, 1.0)], [(0, 0, 1.0), (7, 2, 0.5)])
    weights = torch.tensor([0.25, 0.5])
    losses = multibox_loss(
        logits, offsets, ANCHORS, matches, boxes, image_weights=weights, negative_ratio=100
    )
    # All 13 others are negatives. N = ¼ · 1 + ½ · 2.
    first = cross_entropies(logits[0, 2], 1) + cross_entropies(logits[0, [0, 1, 3, 4, 5, 6, 7]]).sum()
    second = cross_entropies(logits[1, 0], 0) + 0.5 * cross_entropies(logits[1, 7], 2)
    second = second + cross_entropies(logits[1, 1:7]).sum()
    torch.testing.assert_close(losses["loss_cls"], (first / 4 + second / 2) / 1.25)
    # Only ratios matter.
    twice = multibox_loss(
        logits, offsets, ANCHORS, matches, boxes, image_weights=weights * 7, negative_ratio=100
    )
    torch.testing.assert_close(twice["loss_cls"], losses["loss_cls"])
    torch.testing.assert_close(twice["loss_box"], losses["loss_box"])


@pytest.mark.parametrize("images", [([], []), ([], None), (None, None)])
def test_without_positives_zero_and_finite(images):
    logits, offsets = outputs(2)
    losses = multibox_loss(logits, offsets, ANCHORS, *case(*images))
    (losses["loss_cls"] + losses["loss_box"]).backward()
    assert losses["loss_cls"] == losses["loss_box"] == losses["num_pos"] == 0
    assert (logits.grad == 0).all()
    assert (offsets.grad == 0).all()


def test_reduce_sees_the_positives_once_and_its_answer_divides():
    logits, offsets = outputs(1)
    seen = []

    def two_processes(count):  # the other process has three positives: the mean is 2
        seen.append(count.item())
        return (count + 3) / 2

    shared = multibox_loss(logits, offsets, ANCHORS, *case([(2, 1, 1.0)]), reduce=two_processes)
    alone = multibox_loss(logits, offsets, ANCHORS, *case([(2, 1, 1.0)]))
    assert seen == [1]
    torch.testing.assert_close(shared["loss_cls"] * 2, alone["loss_cls"])
    torch.testing.assert_close(shared["loss_box"] * 2, alone["loss_box"])
    multibox_loss(logits, offsets, ANCHORS, *case(None), reduce=two_processes)
    assert seen == [1, 0]  # also with nothing to count: every process calls it equally often


def test_gradcheck():
    logits, offsets = outputs(2, seed=3)
    matches, boxes = case([(2, 1, 0.7)], [(0, 0, 1.0), (7, 2, 0.5)])
    weights = torch.tensor([0.25, 0.5])

    def losses(logits, offsets):
        # All anchors are used, so that a step does not change which negatives are the hardest.
        result = multibox_loss(
            logits, offsets, ANCHORS, matches, boxes, image_weights=weights, negative_ratio=100
        )
        return result["loss_cls"], result["loss_box"]

    assert torch.autograd.gradcheck(losses, (logits, offsets))


def test_half_precision():
    logits, offsets = outputs(1)
    losses = multibox_loss(logits.half(), offsets.half(), ANCHORS, *case([(2, 1, 1.0)]))
    expected = multibox_loss(logits.half().double(), offsets.half().double(), ANCHORS, *case([(2, 1, 1.0)]))
    assert losses["loss_cls"].dtype == losses["loss_box"].dtype == torch.float32
    assert losses["loss_cls"].item() == pytest.approx(expected["loss_cls"].item(), rel=1e-5)
    assert losses["loss_box"].item() == pytest.approx(expected["loss_box"].item(), rel=1e-5)


def test_uniform_logits_value():
    # Every CE is ln 4; one positive and three negatives over one: 4 ln 4.
    losses = multibox_loss(torch.zeros(1, 8, 4), torch.zeros(1, 8, 4), ANCHORS, *case([(2, 1, 1.0)]))
    assert losses["loss_cls"].item() == pytest.approx(4 * math.log(4), rel=1e-6)


def test_misuse():
    logits, offsets = outputs(2)
    matches, boxes = case([(2, 1, 1.0)], [])
    bad = [
        ((logits, offsets[:, :7], ANCHORS, matches, boxes), {}),
        ((logits, offsets, ANCHORS[:7], matches, boxes), {}),
        ((logits, offsets, ANCHORS, matches[:1], boxes), {}),
        ((logits, offsets, ANCHORS, matches, boxes[:1]), {}),
        ((logits[:, :7], offsets[:, :7], ANCHORS[:7], matches, boxes), {}),
        ((logits, offsets, ANCHORS, matches, boxes), {"negative_ratio": -1}),
        ((logits, offsets, ANCHORS, matches, boxes), {"image_weights": torch.tensor([1.0, -1.0])}),
        ((logits, offsets, ANCHORS, matches, boxes), {"image_weights": torch.ones(3)}),
    ]
    for arguments, options in bad:
        with pytest.raises(ValueError):
            multibox_loss(*arguments, **options)
