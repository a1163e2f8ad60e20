"""The mask loss: closed forms, sources, and what has no mask."""

import math

import pytest
import torch
from test_criterion import ANCHORS, GRID, target

from kd_mtl.criterion import BlitzCriterion
from kd_mtl.instance_term import InstanceTerm, touched_cells
from scenekd.matching import match_anchors
from scenekd.sample import SourceWeights

P, MAP, SIZE = 3, 8, 32
BOTH = {"instance_segmentation": (1.0, 1.0)}


def outputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = {"prototypes": (P, MAP, MAP), "mask_coefficients": (len(ANCHORS), P)}
    return {
        name: torch.randn(batch, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in made.items()
    }


def masked(i=0, gt=True, teacher=False, weights=None):
    """The image ``i`` of the criterion's tests with random masks."""
    made = target(i, boxes=gt, teacher_boxes=teacher)
    generator = torch.Generator().manual_seed(i)
    made.masks = torch.randint(0, 2, (len(made.boxes), MAP, MAP), generator=generator, dtype=torch.uint8)
    made.has_instance_masks, made.has_teacher_masks = gt, teacher
    made.weights = SourceWeights(instance_segmentation=weights or (float(gt), float(teacher)))
    return made


def run(out, targets, **options):
    return InstanceTerm(**options)(out, targets, ANCHORS, GRID)["loss_mask"]


def test_zero_logits_cost_ln_2_whatever_the_boxes():
    # σ(0) = ½: every cell costs ln 2, and so does the mean over a box and the mean over positives.
    out = outputs()
    zero = {**out, "prototypes": torch.zeros_like(out["prototypes"])}
    assert run(zero, [masked(0), masked(1)]).item() == pytest.approx(math.log(2), rel=1e-6)


def test_one_box_by_hand():
    one = masked(0)
    one.boxes, one.labels, one.from_teacher = one.boxes[:1].clone(), one.labels[:1], one.from_teacher[:1]
    one.confidences, one.masks = one.confidences[:1], torch.zeros(1, MAP, MAP, dtype=torch.uint8)
    one.boxes[0] = torch.tensor([8.0, 8.0, 16.0, 16.0])  # exactly the anchor of cell (1, 1) of the first map
    one.masks[0, 2, 2] = 1
    one.masks[0, 3, 3] = 255
    match = match_anchors(ANCHORS, one.boxes, one.labels, one.confidences)
    out = outputs(1)
    # The box covers cells 2 and 3 of 8 each way: four, of which (3, 3) is void. Softplus(x) − x·y, mean over three.
    expected = 0.0
    for anchor in match.anchor:
        logits = torch.einsum("p,phw->hw", out["mask_coefficients"][0, anchor], out["prototypes"][0])
        x = torch.stack([logits[2, 2], logits[2, 3], logits[3, 2]])
        expected = expected + (torch.log1p(x.exp()).sum() - x[0]) / 3 / len(match.anchor)
    torch.testing.assert_close(run(out, [one]), expected)
    grad = torch.autograd.grad(run(out, [one]), out["prototypes"])[0][0].abs().sum(0)
    assert grad.nonzero().tolist() == [[2, 2], [2, 3], [3, 2]]


def test_cells_that_a_box_touches():
    boxes = torch.tensor([[4.0, 4.0, 8.0, 8.0], [3.9, 7.9, 4.1, 8.1], [0.0, 0.0, 32.0, 32.0]])
    cells = touched_cells(boxes, (32, 32), (8, 8))
    assert cells[0].nonzero().tolist() == [[1, 1]]
    assert cells[1].nonzero().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert cells[2].all()


def test_confidence_weighs_the_mask():
    sure, unsure = masked(0, gt=False, teacher=True), masked(0, gt=False, teacher=True)
    sure.confidences, unsure.confidences = torch.ones(3), torch.full((3,), 0.2)
    out = outputs(1)
    torch.testing.assert_close(run(out, [unsure]), run(out, [sure]) / 5)


@pytest.mark.parametrize("w", [0.5, 0.25])
def test_sources_share_the_loss(w):
    out = outputs()
    mixed, gt, teacher = (
        run(out, [masked(i, True, True, pair) for i in range(2)]) for pair in ((1 - w, w), (1, 0), (0, 1))
    )
    torch.testing.assert_close(mixed, (1 - w) * gt + w * teacher)


def test_images_and_boxes_without_masks_count_as_nothing():
    out = outputs()
    alone = run({name: value[:1] for name, value in out.items()}, [masked(0)])
    without = masked(1, weights=(1.0, 1.0))
    without.masks = None
    torch.testing.assert_close(run(out, [masked(0), without]), alone)
    unknown = masked(1)
    unknown.masks[:] = 255
    # Its weight is in the share of the source; it has no positive, so the mean over positives does not change.
    torch.testing.assert_close(run(out, [masked(0), unknown]), alone)
    flagged = masked(1)
    flagged.has_instance_masks = False
    torch.testing.assert_close(run(out, [masked(0), flagged]), alone)


@pytest.mark.parametrize("kinds", [(a, b) for a in range(4) for b in range(4)])
def test_every_mixture_is_finite(kinds):
    out = outputs()
    targets = [masked(i, bool(kind & 1), bool(kind & 2)) for i, kind in enumerate(kinds)]
    loss = run(out, targets)
    loss.backward()
    for value in out.values():
        assert value.grad.isfinite().all()
        assert (value.grad.abs().sum() > 0) == any(kinds)
    assert loss.isfinite()


def test_many_positives_are_thinned_evenly():
    out, one = outputs(1), masked(0)
    match = match_anchors(ANCHORS, one.boxes, one.labels, one.confidences, iou_threshold=0.2)
    assert len(match.anchor) > 2
    run(out, [one], max_positives=2, iou_threshold=0.2).backward()
    learning = out["mask_coefficients"].grad[0].abs().sum(1).nonzero()[:, 0]
    assert learning.tolist() == match.anchor[[0, -1]].tolist()
    with pytest.raises(ValueError, match="MAX_POSITIVES"):
        InstanceTerm(max_positives=0)


def test_gradcheck():
    targets = [masked(0, True, True, (0.3, 0.7)), masked(1)]
    out = outputs()
    assert torch.autograd.gradcheck(
        lambda *values: run(dict(zip(out, values)), targets), tuple(out.values()), fast_mode=True
    )


def test_two_processes_equal_one():
    # DDP averages gradients, so the mean of the two processes' losses has to be the loss of the whole batch.
    out = outputs(4)
    targets = [masked(0), masked(1, True, True, (0.5, 0.5)), masked(2, False, True), masked(3, False, False)]
    whole, counted = run(out, targets), [[], []]
    halves = [slice(0, 1), slice(1, 4)]

    def record(value, calls):
        calls.append(value.detach())
        return value.detach()

    for part, calls in zip(halves, counted):
        run({k: v[part] for k, v in out.items()}, targets[part], reduce=lambda v, c=calls: record(v, c))
    assert len(counted[0]) == len(counted[1])
    means = [(a + b) / 2 for a, b in zip(*counted)]
    losses = []
    for part in halves:
        replies = iter(means)
        part_out = {k: v[part] for k, v in out.items()}
        losses.append(run(part_out, targets[part], reduce=lambda _, r=replies: next(r)))
    torch.testing.assert_close((losses[0] + losses[1]) / 2, whole)


def test_the_criterion_weighs_it():
    out, targets = outputs(), [masked(0), masked(1)]
    losses = BlitzCriterion(mask_weight=2.5)(out, targets, ANCHORS, GRID)
    assert set(losses) == {"loss_mask"}
    torch.testing.assert_close(losses["loss_mask"], 2.5 * run(out, targets))
    with pytest.raises(ValueError, match="LOSS_WEIGHT"):
        BlitzCriterion(mask_weight=-1.0)
