"""The doctor on teachers, soft labels and targets: every check is triggered by the mistake it is for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from doctor_helpers import logits, only, softmax, told
from torch import nn

from scenekd.doctor_targets import (
    check_soft_labels,
    check_targets,
    check_teacher,
    looks_like_probabilities,
    looks_softmaxed_twice,
)
from scenekd.doctor_teachers import check_filter
from scenekd.sample import SoftSegmentation, SourceWeights, Target
from scenekd.teachers.protocol import Detections


def test_a_teacher_in_training_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    messages = check_teacher(net)
    assert "training mode (3 modules" in told(messages, "error")[0]
    assert "4 parameters, such as 0.weight" in told(messages, "warning")[0]
    net.eval().requires_grad_(False)
    assert check_teacher(net) == []
    net[1].train()  # as a parent's train() does to a teacher it holds
    only(check_teacher(net), "error", "1 modules, such as 1")


def soft(values: np.ndarray, form: str) -> list[SoftSegmentation]:
    return [SoftSegmentation(values, form)]


def test_probabilities_are_told_from_logits() -> None:
    assert looks_like_probabilities(softmax(logits()))
    assert not looks_like_probabilities(logits())
    assert not looks_like_probabilities(np.log(softmax(logits())))
    assert not looks_like_probabilities(softmax(logits()) / 2)


def test_soft_labels_that_are_what_they_say() -> None:
    assert check_soft_labels(soft(logits(), "logits"), 10, "probabilities") == []
    assert check_soft_labels(soft(softmax(logits()), "probabilities"), 10, "probabilities") == []
    assert check_soft_labels(soft(softmax(logits()), "probabilities"), 10, "logits") == []
    assert check_soft_labels([], 10, "probabilities") == []
    sparse = np.zeros((11, 6, 8), np.float32)
    sparse[4, :3] = 0.9
    assert check_soft_labels(soft(sparse, "scores"), 10, "scores", "explicit") == []
    only(check_soft_labels(soft(sparse, "scores"), 10, "scores"), "warning", "1/11")


def test_probabilities_that_would_go_through_a_softmax() -> None:
    wrong = check_soft_labels(soft(softmax(logits()), "logits"), 10, "probabilities")
    only(wrong, "error", "through a softmax once more")
    # declared as scores, they would be divided by T and go through a softmax
    wrong = check_soft_labels(soft(softmax(logits()), "scores"), 10, "scores", "explicit")
    only(wrong, "error", "scores are probabilities")
    wrong = check_soft_labels(soft(softmax(logits()), "probabilities"), 10, "scores")
    only(wrong, "error", "choose probabilities or logits")


def test_other_wrong_soft_labels() -> None:
    only(check_soft_labels(soft(logits(), "probabilities"), 10, "probabilities"), "error", "may be logits")
    only(check_soft_labels(soft(logits(), "scores"), 10, "scores", "explicit"), "error", "outside 0…1")
    only(check_soft_labels(soft(logits(), "logits"), 20, "probabilities"), "error", "11 dense classes", "21")
    nan = logits()
    nan[0, 0, 0] = np.nan
    only(check_soft_labels(soft(nan, "logits"), 10, "probabilities"), "error", "NaN")


def test_double_softmax() -> None:
    once = softmax(logits())
    assert not looks_softmaxed_twice([once])
    twice = softmax(once)
    # of arguments in 0…1 the largest softmax is e / (e + 10) = .2137
    assert twice.max() <= math.e / (math.e + 10)
    only(
        check_soft_labels(soft(twice, "probabilities"), 10, "probabilities"),
        "error",
        "softmax of probabilities",
    )


def target(**changes: Any) -> Target:
    arguments: dict[str, Any] = {
        "image_id": "a",
        "boxes": torch.zeros(1, 4),
        "labels": torch.tensor([3]),
        "confidences": torch.ones(1),
        "from_teacher": torch.zeros(1, dtype=torch.bool),
        "difficult": torch.zeros(1, dtype=torch.bool),
        "soft_seg": torch.from_numpy(softmax(logits())),
        "soft_valid": torch.ones(6, 8, dtype=torch.bool),
    }
    return Target(**(arguments | changes))


def test_targets_of_a_batch() -> None:
    assert check_targets([target()], 10) == []
    only(check_targets([target(soft_valid=None)], 10), "error", "without a valid mask", "would be distilled")
    only(check_targets([target(labels=torch.tensor([10]))], 10), "error", "label 10", "0…9")
    only(check_targets([target(soft_seg=torch.from_numpy(logits()))], 10), "error", "not probabilities")
    assert check_targets([target(soft_seg=torch.from_numpy(logits()))], 10, "logits") == []
    nothing = SourceWeights(segmentation_gt=0.0)
    only(check_targets([target(weights=nothing)], 10), "warning", "teaches segmentation")
    nan, half = softmax(logits()), torch.ones(6, 8, dtype=torch.bool)
    nan[:, 0] = np.nan
    only(check_targets([target(soft_seg=torch.from_numpy(nan))], 10), "error", "NaN")
    half[0] = False
    assert check_targets([target(soft_seg=torch.from_numpy(nan), soft_valid=half)], 10) == [], "not looked at"


def boxes(*scores: float) -> Detections:
    return Detections.build(np.tile([[0, 0, 5, 5]], (len(scores), 1)), np.zeros(len(scores)), scores)


def test_a_filter_that_leaves_no_boxes() -> None:
    assert check_filter([boxes(0.9, 0.1), boxes(0.4)], 0.3) == []
    only(check_filter([boxes(0.2), boxes(0.1)], 0.5), "error", "leaves none of 2", "highest score is 0.2")
    only(check_filter([boxes(), boxes()], 0.0), "error", "no box on 2 images")
    only(check_filter([boxes(0.9), boxes(0.1), boxes(0.1)], 0.5), "warning", "no box on 2 of 3")
    only(check_filter([boxes(0.9, 0.01, 0.02)], 0.001, use_confidence=False), "warning", "USE_CONFIDENCE")
