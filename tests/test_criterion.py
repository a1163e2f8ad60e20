import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from kd_mtl.criterion import BlitzCriterion
from scenekd.config import get_cfg
from scenekd.errors import UserError
from scenekd.losses.multibox import multibox_loss
from scenekd.losses.soft_label import soft_label_cross_entropy
from scenekd.matching import AnchorGrid, match_anchors
from scenekd.sample import SourceWeights, Target

GRID = AnchorGrid((32, 32), ((4, 4), (2, 2)), (((8.0, 8.0), (12.0, 6.0)), ((16.0, 16.0),)))
ANCHORS = GRID.anchors()
C, K, SIZE, MAP = 3, 4, 32, 8


def outputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"class_logits": (len(ANCHORS), C + 1), "offsets": (len(ANCHORS), 4), "sem_seg": (K, MAP, MAP)}
    return {
        name: torch.randn(batch, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def target(
    i=0,
    boxes=True,
    teacher_boxes=False,
    masks=True,
    soft=False,
    weights=None,
    confidence=0.5,
):
    """An image whose labels differ from those of another ``i``; a weight of 1 where a source exists."""
    generator = torch.Generator().manual_seed(100 + i)
    own, theirs = 2 * boxes, 3 * teacher_boxes
    corner = torch.rand(own + theirs, 2, generator=generator) * 20
    from_teacher = torch.arange(own + theirs) >= own
    sem_seg = torch.randint(0, K, (SIZE, SIZE), generator=generator)
    sem_seg[:5] = 255
    soft_seg = torch.rand(K, MAP, MAP, generator=generator).softmax(0)
    soft_valid = torch.rand(MAP, MAP, generator=generator) > 0.3
    return Target(
        image_id=str(i),
        boxes=torch.cat([corner, corner + 4 + torch.rand(own + theirs, 2, generator=generator) * 8], dim=1),
        labels=torch.randint(0, C, (own + theirs,), generator=generator),
        confidences=torch.where(from_teacher, confidence, 1.0),
        from_teacher=from_teacher,
        difficult=torch.zeros(own + theirs, dtype=torch.bool),
        sem_seg=sem_seg if masks else None,
        soft_seg=soft_seg if soft else None,
        soft_valid=soft_valid if soft else None,
        has_boxes=boxes,
        has_sem_seg=masks,
        has_teacher_boxes=teacher_boxes,
        weights=weights or SourceWeights(float(boxes), float(teacher_boxes), float(masks), float(soft)),
    )


def run(out, targets, **options):
    return BlitzCriterion(**options)(out, targets, ANCHORS, GRID)


def boxes_of(targets, from_teacher):
    own = [t.from_teacher == from_teacher for t in targets]
    matches = [
        match_anchors(ANCHORS, t.boxes[o], t.labels[o], t.confidences[o]) for t, o in zip(targets, own)
    ]
    return matches, [t.boxes[o] for t, o in zip(targets, own)]


def test_ground_truth_only():
    out, targets = outputs(), [target(0), target(1)]
    losses = run(out, targets)
    # 32 → 8: the centre of a cell, 4i + 2, lies between the pixels 4i + 1 and 4i + 2; nearest-exact takes
    # floor(4(i + ½)) = 4i + 2.
    labels = torch.stack([t.sem_seg[2::4, 2::4] for t in targets])
    torch.testing.assert_close(losses["loss_seg"], F.cross_entropy(out["sem_seg"], labels, ignore_index=255))
    expected = multibox_loss(out["class_logits"], out["offsets"], ANCHORS, *boxes_of(targets, False))
    torch.testing.assert_close(losses["loss_cls"], expected["loss_cls"])
    torch.testing.assert_close(losses["loss_box"], expected["loss_box"])


def test_uniform_segmentation_logits_cost_ln_k_at_any_size():
    for size in (8, 16, 32):
        out = {"sem_seg": torch.zeros(1, K, size, size)}
        assert run(out, [target(0)])["loss_seg"].item() == pytest.approx(math.log(K), rel=1e-6)


def test_teacher_only():
    options = {"boxes": False, "masks": False, "teacher_boxes": True, "soft": True}
    out, targets = outputs(), [target(0, **options), target(1, **options)]
    losses = run(out, targets, segmentation={"temperature": 2.0})
    soft = soft_label_cross_entropy(
        out["sem_seg"],
        torch.stack([t.soft_seg for t in targets]),
        temperature=2.0,
        valid=torch.stack([t.soft_valid for t in targets]),
    )
    torch.testing.assert_close(losses["loss_seg"], soft)
    expected = multibox_loss(out["class_logits"], out["offsets"], ANCHORS, *boxes_of(targets, True))
    torch.testing.assert_close(losses["loss_cls"], expected["loss_cls"])
    torch.testing.assert_close(losses["loss_box"], expected["loss_box"])


def test_confidence_of_a_teachers_box_weighs_its_loss():
    options = {"boxes": False, "teacher_boxes": True}
    out = outputs()
    unsure = [target(i, **options, confidence=0.2) for i in range(2)]
    sure = [target(i, **options, confidence=1.0) for i in range(2)]
    # All boxes at .2: a fifth of the box loss.
    torch.testing.assert_close(run(out, unsure)["loss_box"], run(out, sure)["loss_box"] / 5)


def test_pixel_confidence_makes_a_weighted_mean():
    # Σ w · CE / Σ w over the pixels that show the image, w the teacher's highest probability.
    out, one = outputs(1), target(0, boxes=False, masks=False, soft=True)
    loss = run({"sem_seg": out["sem_seg"]}, [one], segmentation={"confidence": "max"})["loss_seg"]
    soft, valid = one.soft_seg.double(), one.soft_valid
    pixels = -(soft * F.log_softmax(out["sem_seg"][0], 0)).sum(0)
    weight = soft.amax(0) * valid
    torch.testing.assert_close(loss, (weight * pixels).sum() / weight.sum())


def test_void_of_the_teacher():
    out = outputs(1)
    both = target(0, boxes=False, soft=True, weights=SourceWeights(0, 0, 0, 1))
    pixels = -(both.soft_seg.double() * F.log_softmax(out["sem_seg"][0], 0)).sum(0)
    labelled = both.sem_seg[2::4, 2::4] != 255
    for void, counted in (
        ("none", torch.ones_like(labelled)),
        ("padding", both.soft_valid),
        ("labels", both.soft_valid & labelled),
    ):
        loss = run({"sem_seg": out["sem_seg"]}, [both], segmentation={"void": void})["loss_seg"]
        torch.testing.assert_close(loss, pixels[counted].mean())


@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_split_batch_weighs_the_sources_by_their_share(teachers):
    # r = teachers / 4 of the images take the teacher: (1 − r) · L_gt + r · L_teacher.
    out = outputs(4)
    targets = [target(i) for i in range(4 - teachers)]
    targets += [target(i, False, True, False, True) for i in range(4 - teachers, 4)]
    mixed = run(out, targets)
    part = 4 - teachers
    gt = run({k: v[:part] for k, v in out.items()}, targets[:part])
    teacher = run({k: v[part:] for k, v in out.items()}, targets[part:])
    r = teachers / 4
    for name, loss in mixed.items():
        torch.testing.assert_close(loss, (1 - r) * gt[name] + r * teacher[name])


@pytest.mark.parametrize("w", [0.5, 0.25])
def test_combined_sources_on_every_image(w):
    out = outputs()
    targets = [target(i, True, True, True, True, SourceWeights(1 - w, w, 1 - w, w)) for i in range(2)]
    only_gt = [target(i, True, True, True, True, SourceWeights(1, 0, 1, 0)) for i in range(2)]
    only_teacher = [target(i, True, True, True, True, SourceWeights(0, 1, 0, 1)) for i in range(2)]
    mixed, gt, teacher = (run(out, t) for t in (targets, only_gt, only_teacher))
    for name, loss in mixed.items():
        torch.testing.assert_close(loss, (1 - w) * gt[name] + w * teacher[name])


def test_segmentation_is_weighted_by_image_and_pixel():
    out, first, second = outputs(), target(0), target(1)
    first.weights = SourceWeights(1, 0, 0.25, 0)
    second.weights = SourceWeights(1, 0, 0.75, 0)
    second.sem_seg[16:] = 255
    # 8 × 8 cells; rows 0 and 1 show rows 2 and 6: only row 0 is void in the first image, 56 cells count; the
    # second has rows 1, 2, 3 left, 24 cells.
    labels = torch.stack([t.sem_seg[2::4, 2::4] for t in (first, second)])
    sums = F.cross_entropy(out["sem_seg"], labels, ignore_index=255, reduction="none").sum(dim=(1, 2))
    expected = (0.25 * sums[0] + 0.75 * sums[1]) / (0.25 * 56 + 0.75 * 24)
    torch.testing.assert_close(run(out, [first, second])["loss_seg"], expected)


def test_soft_target_of_another_size_is_resized_by_nearest_centre():
    out, small = outputs(1), target(0, soft=True, masks=False)
    large = target(0, soft=True, masks=False)
    large.soft_seg = small.soft_seg.repeat_interleave(4, 1).repeat_interleave(4, 2)
    large.soft_valid = small.soft_valid.repeat_interleave(4, 0).repeat_interleave(4, 1)
    torch.testing.assert_close(run(out, [large])["loss_seg"], run(out, [small])["loss_seg"])
    small.soft_valid = None
    everywhere = soft_label_cross_entropy(out["sem_seg"], small.soft_seg[None])
    torch.testing.assert_close(run(out, [small])["loss_seg"], everywhere)


def test_loss_weights():
    out, targets = outputs(), [target(0), target(1)]
    plain, weighted = run(out, targets), run(out, targets, loss_weights=(2, 0.5, 3))
    for name, factor in (("loss_seg", 2), ("loss_cls", 0.5), ("loss_box", 3)):
        torch.testing.assert_close(weighted[name], factor * plain[name])


KINDS = list(itertools.product([False, True], repeat=4))


@pytest.mark.parametrize("first", KINDS)
def test_every_mixture_is_finite(first):
    for second in KINDS:
        out = outputs()
        targets = [target(0, *first), target(1, *second)]
        losses = run(out, targets)
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        for name, value in out.items():
            assert value.grad.isfinite().all()
            boxes, teacher_boxes, masks, soft = (a or b for a, b in zip(first, second))
            labelled = (masks or soft) if name == "sem_seg" else (boxes or teacher_boxes)
            assert (value.grad.abs().sum() > 0) == labelled


def test_labels_that_are_missing_count_as_nothing_whatever_the_weights_say():
    weights = SourceWeights(1, 1, 1, 1)
    out = outputs()
    bare = target(1, False, False, False, False, weights)
    losses = run(out, [target(0, True, False, True, False, weights), bare])
    alone = run({k: v[:1] for k, v in out.items()}, [target(0)])
    for name, loss in losses.items():
        torch.testing.assert_close(loss, alone[name])


def test_an_image_known_to_have_no_objects_is_mined():
    out = outputs()
    empty = target(1)
    for name in ("boxes", "labels", "confidences", "from_teacher", "difficult"):
        setattr(empty, name, getattr(empty, name)[:0])
    run(out, [target(0), empty], negative_ratio=100)["loss_cls"].backward()
    assert (out["class_logits"].grad[1].abs().sum(-1) > 0).all()
    unlabelled = outputs()
    empty.has_boxes = False
    run(unlabelled, [target(0), empty], negative_ratio=100)["loss_cls"].backward()
    assert (unlabelled["class_logits"].grad[1] == 0).all()


def test_single_task_outputs():
    out = outputs()
    detection = {k: out[k] for k in ("class_logits", "offsets")}
    assert set(run(detection, [target(0), target(1)])) == {"loss_cls", "loss_box"}
    assert set(run({"sem_seg": out["sem_seg"]}, [target(0), target(1)])) == {"loss_seg"}


def test_gradcheck():
    targets = [target(0, True, True, True, True, SourceWeights(0.3, 0.7, 0.6, 0.4)), target(1)]

    def total(*values):
        # All anchors take part, so that a step does not change which negatives are the hardest.
        return sum(run(dict(zip(out, values)), targets, negative_ratio=100).values())

    out = outputs()
    assert torch.autograd.gradcheck(total, tuple(out.values()), fast_mode=True)


def test_two_processes_equal_one():
    # DDP averages gradients, so the mean of the two processes' losses has to be the loss of the whole batch.
    # Mining is per process: without it, or with all negatives.
    out = outputs(4)
    targets = [
        target(0),
        target(1, True, True, True, True, SourceWeights(0.5, 0.5, 0.5, 0.5)),
        target(2, False, True, False, True),
        target(3, False, False, True, False),
    ]
    halves = [slice(0, 1), slice(1, 4)]
    for ratio in (0, 1000):
        whole = run(out, targets, negative_ratio=ratio)
        counted = [[], []]

        def record(value, calls):
            calls.append(value)
            return value

        for part, calls in zip(halves, counted):
            part_out = {k: v[part] for k, v in out.items()}
            run(part_out, targets[part], negative_ratio=ratio, reduce=lambda v, c=calls: record(v, c))
        assert len(counted[0]) == len(counted[1])  # else a real run would wait for ever
        means = [(a + b) / 2 for a, b in zip(*counted)]
        losses = []
        for part in halves:
            replies = iter(means)
            part_out = {k: v[part] for k, v in out.items()}
            losses.append(
                run(part_out, targets[part], negative_ratio=ratio, reduce=lambda _, r=replies: next(r))
            )
        for name, loss in whole.items():
            torch.testing.assert_close((losses[0][name] + losses[1][name]) / 2, loss)


def test_from_config():
    cfg = get_cfg("kd_mtl")
    cfg.DISTILL.SEGMENTATION.TARGET = "scores"
    cfg.DISTILL.SEGMENTATION.TEMPERATURE = 0.4
    cfg.MODEL.BLITZNET.NEGATIVE_RATIO = 2.0
    criterion = BlitzCriterion.from_config(cfg)
    soft = criterion.segmentation.soft_pixels
    assert (soft.soft_target, soft.temperature) == ("scores", 0.4)
    assert criterion.detection.negative_ratio == 2.0


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("DISTILL.SEGMENTATION.TARGET", "confidences", "TARGET"),
        ("DISTILL.SEGMENTATION.TEMPERATURE", 0.0, "TEMPERATURE"),
        ("DISTILL.SEGMENTATION.CONFIDENCE", "score", "CONFIDENCE"),
        ("DISTILL.SEGMENTATION.TOP_K", -1, "TOP_K"),
        ("DISTILL.SEGMENTATION.TOP_K", 22, "TOP_K"),
        ("DISTILL.SEGMENTATION.TAIL", "cut", "TAIL"),
        ("DISTILL.SEGMENTATION.VOID", "mask", "VOID"),
        ("MODEL.BLITZNET.IOU_THRESHOLD", 0.0, "IOU_THRESHOLD"),
        ("MODEL.BLITZNET.NEGATIVE_RATIO", -1.0, "NEGATIVE_RATIO"),
        ("MODEL.BLITZNET.LOSS_WEIGHTS", (1.0, 1.0), "LOSS_WEIGHTS"),
    ],
)
def test_config_out_of_range_is_one_line(key, value, names):
    cfg = get_cfg("kd_mtl")
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=names) as error:
        BlitzCriterion.from_config(cfg)
    assert "\n" not in str(error.value)
