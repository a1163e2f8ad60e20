"""Class distributions, box weights and weighted negatives in the detection loss, in closed form."""

import math

import pytest
import torch
from test_multibox import ANCHORS, NUM_CLASSES, case, cross_entropies, outputs

from scenekd.losses.multibox import multibox_loss

P = torch.tensor([[0.1, 0.5, 0.0, 0.4]])


def test_a_positive_learns_the_distribution_whatever_its_confidence():
    logits, offsets = outputs(1)
    losses = multibox_loss(
        logits, offsets, ANCHORS, *case([(2, 1, 0.25)]), negative_ratio=1, class_targets=[P]
    )
    # −.1 log q0 − .5 log q1 − .4 log q3 with weight 1, and one negative; the box term keeps the confidence.
    positive = sum(p * cross_entropies(logits[0, 2], k) for k, p in enumerate(P[0].double()))
    negative = cross_entropies(logits[0, [0, 1, 3, 4, 5, 6, 7]]).max()
    torch.testing.assert_close(losses["loss_cls"], positive + negative)
    plain = multibox_loss(logits, offsets, ANCHORS, *case([(2, 1, 0.25)]))
    assert losses["loss_box"] == plain["loss_box"]


def test_no_gradient_where_the_student_says_what_the_teacher_says():
    p = torch.tensor([[0.2, 0.3, 0.1, 0.4]], dtype=torch.float64)
    logits = torch.zeros(1, 8, NUM_CLASSES + 1, dtype=torch.float64)
    logits[0, 2] = p[0].log() + 3
    logits.requires_grad_()
    matches = case([(2, 1, 0.5)])
    loss = multibox_loss(
        logits,
        torch.zeros(1, 8, 4, dtype=torch.float64),
        ANCHORS,
        *matches,
        negative_ratio=0,
        class_targets=[p],
    )
    loss["loss_cls"].backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-8, rtol=0)
    # What is left is the teacher's entropy.
    torch.testing.assert_close(loss["loss_cls"], -(p * p.log()).sum().to(loss["loss_cls"]))


def test_one_hot_distributions_of_sure_boxes_are_labels():
    logits, offsets = outputs(2)
    content = case([(0, 1, 1.0), (4, 2, 1.0)], [(3, 0, 1.0)])
    one_hot = [torch.eye(4)[[1, 2]], torch.eye(4)[[0]]]
    soft = multibox_loss(logits, offsets, ANCHORS, *content, class_targets=one_hot)
    torch.testing.assert_close(
        soft["loss_cls"], multibox_loss(logits, offsets, ANCHORS, *content)["loss_cls"]
    )


def test_an_image_without_distributions_keeps_labels_and_confidences():
    logits, offsets = outputs(2)
    content = case([(2, 1, 0.25)], [(5, 0, 0.5)])
    loss = multibox_loss(logits, offsets, ANCHORS, *content, negative_ratio=0, class_targets=[P, None])
    first = sum(p * cross_entropies(logits[0, 2], k) for k, p in enumerate(P[0].double()))
    torch.testing.assert_close(loss["loss_cls"], (first + 0.5 * cross_entropies(logits[1, 5], 0)) / 2)


def test_box_weights_stand_in_for_confidences_in_the_box_term_alone():
    logits, offsets = outputs(2)
    content = case([(0, 1, 0.25), (3, 2, 1.0)], [(5, 0, 0.5)])
    plain = multibox_loss(logits, offsets, ANCHORS, *content)
    weighed = multibox_loss(logits, offsets, ANCHORS, *content, box_weights=[torch.tensor([0.75, 0.5]), None])
    assert weighed["loss_cls"] == plain["loss_cls"]

    def smooth_l1(image, anchor):  # the boxes are the anchors, wanted offsets 0
        x = offsets[image, anchor].abs()
        return torch.where(x < 1, x**2 / 2, x - 0.5).sum()

    expected = (0.75 * smooth_l1(0, 0) + 0.5 * smooth_l1(0, 3) + 0.5 * smooth_l1(1, 5)) / 3
    torch.testing.assert_close(weighed["loss_box"], expected)


def test_weighted_negatives():
    logits = torch.zeros(1, 8, NUM_CLASSES + 1, dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(1, 8, 4, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.5, 0.25, 0, 0, 0, 0, 0.75]])
    losses = multibox_loss(
        logits, offsets, ANCHORS, *case([(0, 1, 1.0)]), negative_ratio=2, negative_weights=weights
    )
    # Every CE is ln 4: one positive, and the two negatives of largest weight, .75 and .5.
    torch.testing.assert_close(losses["loss_cls"], torch.tensor(math.log(4) * 2.25, dtype=torch.float64))
    losses["loss_cls"].backward()
    assert logits.grad[0].abs().sum(-1).nonzero().flatten().tolist() == [0, 1, 7]
    losses = multibox_loss(
        logits, offsets, ANCHORS, *case([(0, 1, 1.0)]), negative_ratio=100, negative_weights=weights
    )
    # Anchors of weight 0 are no negatives, however many are wanted: 1 + .75 + .5 + .25.
    torch.testing.assert_close(losses["loss_cls"], torch.tensor(math.log(4) * 2.5, dtype=torch.float64))


def test_weights_of_one_change_nothing():
    logits, offsets = outputs(2)
    content = case([(0, 1, 0.25), (3, 2, 1.0)], [(5, 0, 0.5)])
    plain = multibox_loss(logits, offsets, ANCHORS, *content, negative_ratio=1)
    ones = multibox_loss(
        logits, offsets, ANCHORS, *content, negative_ratio=1, negative_weights=torch.ones(2, 8)
    )
    assert all(torch.equal(plain[name], ones[name]) for name in plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_targets": [torch.ones(2, 4)]}, "class_targets must be"),
        ({"class_targets": [torch.ones(1, 3)]}, "class_targets must be"),
        ({"box_weights": [torch.tensor([-1.0])]}, "box_weights must be"),
        ({"negative_weights": torch.ones(1, 7)}, "negative_weights must be"),
        ({"class_targets": []}, "zip"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    logits, offsets = outputs(1)
    with pytest.raises(ValueError, match=message):
        multibox_loss(logits, offsets, ANCHORS, *case([(0, 1, 1.0)]), **options)


def test_unsure_boxes_count_by_their_confidence():
    """Positives of confidence 1, ¼ and ¼: N = 1.5 instead of 3, and ⌊2 · 1.5⌋ = 3 negatives instead of 5 (all that
    are left)."""
    logits, offsets = outputs(1)
    content = case([(2, 1, 1.0), (4, 0, 0.25), (6, 2, 0.25)])
    by_anchors = multibox_loss(logits, offsets, ANCHORS, *content, negative_ratio=2)
    losses = multibox_loss(logits, offsets, ANCHORS, *content, negative_ratio=2, normalise_by="confidence")
    positive = [(2, 1, 1.0), (4, 0, 0.25), (6, 2, 0.25)]
    class_term = sum(c * cross_entropies(logits[0, a], k) for a, k, c in positive)
    negatives = cross_entropies(logits[0, [0, 1, 3, 5, 7]]).sort(descending=True).values
    torch.testing.assert_close(losses["loss_cls"], (class_term + negatives[:3].sum()) / 1.5)
    torch.testing.assert_close(by_anchors["loss_cls"], (class_term + negatives.sum()) / 3)
    torch.testing.assert_close(losses["loss_box"], 2 * by_anchors["loss_box"])


def test_sure_boxes_count_one_each_either_way():
    logits, offsets = outputs(2)
    content = case([(0, 1, 1.0), (4, 2, 1.0)], [(3, 0, 1.0)])
    losses = multibox_loss(logits, offsets, ANCHORS, *content, normalise_by="confidence")
    for name, value in multibox_loss(logits, offsets, ANCHORS, *content).items():
        assert losses[name] == value


def test_unknown_normaliser():
    logits, offsets = outputs(1)
    with pytest.raises(ValueError, match="normalise_by must be one of"):
        multibox_loss(logits, offsets, ANCHORS, *case([]), normalise_by="images")
