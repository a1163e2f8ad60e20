"""The detection teacher's options in BlitzNet's criterion, and all of them together in a run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ENGINES
from test_criterion import ANCHORS, C, outputs, run, target

from kd_mtl.criterion import BlitzCriterion
from scenekd import checkpoint
from scenekd.boxes import encode
from scenekd.config import get_cfg
from scenekd.engines.session import train_once
from scenekd.errors import UserError
from scenekd.losses.multibox import multibox_loss
from scenekd.matching import match_anchors
from scenekd.models import build_model
from scenekd.negatives import negative_weights
from scenekd.recorder import read_metrics
from scenekd.teachers.caching import cache_teacher

TEACHER = {"boxes": False, "teacher_boxes": True}


def detection(out, targets, **options):
    losses = run(out, targets, detection=options)
    return losses["loss_cls"], losses["loss_box"]


def matches_of(t):
    return match_anchors(ANCHORS, t.boxes, t.labels, t.confidences)


def test_without_options_the_loss_is_the_thesiss_to_the_last_bit():
    """Confidence-weighted CE and smooth-L1 of the positives, CE of the hardest negatives, over the positives."""
    out, targets = outputs(), [target(i, **TEACHER, confidence=0.3) for i in range(2)]
    logits, offsets = out["class_logits"].flatten(0, 1), out["offsets"].flatten(0, 1)
    matches = [matches_of(t) for t in targets]
    index = torch.cat([m.anchor + i * len(ANCHORS) for i, m in enumerate(matches)])
    confidence = torch.cat([m.confidence for m in matches]).double()
    wanted = [encode(t.boxes[m.box].double(), ANCHORS[m.anchor].double()) for t, m in zip(targets, matches)]
    hardness = logits.logsumexp(1) - logits[:, -1]
    hardness[index] = -math.inf
    negative = hardness.topk(min(3 * len(index), len(logits) - len(index)), sorted=False).indices
    label = torch.cat([*(m.label for m in matches), torch.full_like(negative, C)])
    cross_entropy = F.cross_entropy(logits[torch.cat([index, negative])], label, reduction="none")
    weight = torch.cat([confidence, torch.ones(len(negative), dtype=torch.float64)])
    smooth_l1 = F.smooth_l1_loss(offsets[index], torch.cat(wanted), reduction="none").sum(1)
    class_loss, box_loss = detection(out, targets)
    assert torch.equal(class_loss, (cross_entropy * weight).sum() / len(index))
    assert torch.equal(box_loss, (smooth_l1 * confidence).sum() / len(index))


def test_a_teachers_boxes_teach_their_distributions():
    out = outputs()
    generator = torch.Generator().manual_seed(5)
    # Rows of the ground truth's boxes are there, too; the ground truth still teaches labels.
    targets = [
        dataclasses.replace(t, class_probabilities=torch.rand(5, C + 1, generator=generator).softmax(1))
        for t in (target(i, boxes=True, teacher_boxes=True) for i in range(2))
    ]
    expected = []
    for teacher in (False, True):
        own = [t.from_teacher == teacher for t in targets]
        matches = [
            match_anchors(ANCHORS, t.boxes[o], t.labels[o], t.confidences[o]) for t, o in zip(targets, own)
        ]
        loss = multibox_loss(
            out["class_logits"],
            out["offsets"],
            ANCHORS,
            matches,
            [t.boxes[o] for t, o in zip(targets, own)],
            class_targets=[t.class_probabilities[o] for t, o in zip(targets, own)] if teacher else None,
        )
        expected.append(torch.stack([loss["loss_cls"], loss["loss_box"]]))
    got = detection(out, targets)
    torch.testing.assert_close(torch.stack(got), sum(expected) / 2)  # a weight of 1 each: half and half
    labels_alone = detection(out, [dataclasses.replace(t, class_probabilities=None) for t in targets])
    assert got[0] != labels_alone[0] and got[1] == labels_alone[1]


def test_box_weights_of_a_teacher():
    out, targets = outputs(), [target(i, **TEACHER, confidence=0.5) for i in range(2)]
    half = detection(out, targets)
    ones = detection(out, [dataclasses.replace(t, box_weights=torch.ones(3)) for t in targets])
    # All confidences are ½, so weights of 1 double the box term and leave the class term.
    torch.testing.assert_close(ones[1], 2 * half[1])
    assert ones[0] == half[0]


def with_doubts(t, boxes, scores):
    return dataclasses.replace(t, doubtful_boxes=torch.tensor(boxes), doubtful_scores=torch.tensor(scores))


def test_negatives_under_a_teachers_doubts_weigh_less():
    out, t = outputs(1), target(0, **TEACHER)
    # A doubtful box on every other anchor, so that many of the hardest negatives are under one.
    doubted = with_doubts(t, ANCHORS[::2].tolist(), [0.3, 0.6] * (len(ANCHORS) // 4))
    expected = multibox_loss(
        out["class_logits"],
        out["offsets"],
        ANCHORS,
        [matches_of(t)],
        [t.boxes],
        negative_weights=negative_weights(
            ANCHORS, [doubted.doubtful_boxes], [doubted.doubtful_scores], iou_threshold=0.2
        ),
    )
    assert detection(out, [doubted], doubt_iou=0.2) == (expected["loss_cls"], expected["loss_box"])
    assert detection(out, [doubted], doubt_iou=0.2)[0] < detection(out, [t])[0]
    # Left out from .5 on: even less is asked for background.
    assert detection(out, [doubted], doubt_iou=0.2, doubt_ignore=0.5) != detection(
        out, [doubted], doubt_iou=0.2
    )


def test_ground_truth_is_doubted_only_where_asked_and_only_where_it_is_silent():
    out, t = outputs(1), target(0)
    far = with_doubts(t, ANCHORS.tolist(), [0.9] * len(ANCHORS))
    assert detection(out, [far], doubt_iou=0.2) == detection(out, [t])
    assert detection(out, [far], doubt_iou=0.2, doubt_ground_truth=True)[0] < detection(out, [t])[0]
    # A box on an annotated object says nothing new.
    known = with_doubts(t, t.boxes.tolist(), [0.9, 0.9])
    assert detection(out, [known], doubt_iou=0.2, doubt_ground_truth=True) == detection(out, [t])


@pytest.mark.parametrize("key", ["NEGATIVES_IOU", "NEGATIVES_IGNORE"])
def test_limits_out_of_range(key):
    cfg = get_cfg()
    cfg.DISTILL.DETECTION[key] = 0.0
    with pytest.raises(UserError, match="NEGATIVES_IOU and NEGATIVES_IGNORE must be in"):
        BlitzCriterion.from_config(cfg)


ALL_ON = {
    "DISTILL.DETECTION.POLICY": "combined",
    "DISTILL.DETECTION.CLASS_TARGET": "vector",
    "DISTILL.DETECTION.BOX_WEIGHT": "quality",
    "DISTILL.DETECTION.NEGATIVES": "teacher_aware",
    "DISTILL.DETECTION.NEGATIVES_GROUND_TRUTH": True,
    "DISTILL.DETECTION.MIN_SCORE": 0.05,
}


def pairs(options):
    return [part for pair in options.items() for part in pair]


@pytest.fixture
def teachers(tiny_config, tmp_path):
    """Overrides: two checkpoints of random weights as teachers, cached with their duplicates by a run each."""
    found = []
    for number in range(2):
        cfg = tiny_config("net", "SEED", number)
        torch.manual_seed(number)
        path = tmp_path / f"teacher{number}.pth"
        checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), path)
        node = {
            "TYPE": "scenekd",
            "WEIGHTS": str(path),
            "CACHE": str(tmp_path / f"cache{number}"),
            "NMS_THRESHOLD": 1.0,
        }
        options = {f"TEACHER.DETECTION.{key}": value for key, value in node.items()}
        cache_teacher(tiny_config("cache", *pairs(options)), "detection")
        found.append(options)
    second = {"CACHE": str(tmp_path / "cache1"), "SCORE_FACTOR": 0.9}
    return found[0] | {"TEACHER.DETECTION.MORE": str((second,))}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_with_every_option(engine, tiny_config, teachers):
    """A few steps on drawn scenes: every loss is finite, and other than without the options."""
    steps = {}
    for name, options in (("on", ALL_ON | {"TEACHER.DETECTION.MERGE": "wbf"}), ("off", {})):
        options = {"DISTILL.DETECTION.POLICY": "combined", "SOLVER.MAX_ITER": 3} | teachers | options
        cfg = tiny_config(name, *pairs(options))
        train_once(0, 0, 1, cfg, engine)
        steps[name] = [s for s in read_metrics(f"{cfg.OUTPUT_DIR}/metrics.json") if "total_loss" in s]
    assert len(steps["on"]) == 3
    for on, off in zip(steps["on"], steps["off"]):
        assert all(math.isfinite(on[loss]) and on[loss] > 0 for loss in ("loss_seg", "loss_cls", "loss_box"))
        assert on["loss_cls"] != off["loss_cls"] and on["loss_box"] != off["loss_box"]
