"""Gradients that wait for enough labelled images: closed forms, and equality with ordinary training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scenekd import optim
from scenekd.async_updates import SHARED, AsyncUpdates
from scenekd.config import get_cfg
from scenekd.errors import UserError
from scenekd.losses.balance import GradNormBalance
from scenekd.sample import SourceWeights, Target


class TwoTasks(nn.Module):
    """One shared number and one of each task; every gradient is what the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.detection, self.segmentation = (nn.Linear(1, 1, bias=False) for _ in range(3))

    def task_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"detection": [self.detection.weight], "segmentation": [self.segmentation.weight]}


def _target(boxes=True, mask=True):
    none = torch.zeros(0)
    return Target(
        image_id="a",
        boxes=torch.zeros(0, 4),
        labels=none,
        confidences=none,
        from_teacher=none,
        difficult=none,
        sem_seg=torch.zeros(2, 2) if mask else None,
        has_boxes=boxes,
        has_sem_seg=mask,
    )


def _weights(net):
    return [getattr(net, name).weight.item() for name in ("trunk", "detection", "segmentation")]


def _run(net, updates, optimizer, steps):
    """Steps of (gradient, targets); returns the three weights after each."""
    seen = []
    for gradient, targets in steps:
        optimizer.zero_grad()
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        if updates is not None:
            updates.observe(targets)
        optimizer.step()
        seen.append(_weights(net))
    return seen


def test_labelled_tasks_follow_weights_and_flags():
    assert _target().labelled_tasks() == {"detection", "segmentation"}
    assert _target(mask=False).labelled_tasks() == {"detection"}
    off = _target()
    off.weights = SourceWeights(detection_gt=0.0, segmentation_gt=0.0)
    assert off.labelled_tasks() == set()
    taught = _target(boxes=False, mask=False)
    taught.weights = SourceWeights(detection_teacher=0.5, segmentation_teacher=0.5)
    assert taught.labelled_tasks() == set(), "no teacher has looked at it"
    taught.has_teacher_boxes, taught.soft_seg = True, torch.zeros(2, 2, 2)
    assert taught.labelled_tasks() == {"detection", "segmentation"}


def test_a_part_steps_when_its_images_are_there_with_the_mean_over_them():
    """SGD, rate 1, from 0. Batches of 4; masks on 2, 1, 0, 1 images, a step of segmentation needs 4.

    Gradients 1, 4, 9, 2: detection and the trunk go −1, −5, −14, −16. Segmentation waits through 2 + 1 + 0 images
    and steps with the fourth: −(2·1 + 1·4 + 1·2) / 4 = −2; the 9 had none of its images behind it."""
    net = TwoTasks()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    updates = AsyncUpdates(net, {"detection": 4, "segmentation": 4, SHARED: 4})
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    optimizer.register_step_pre_hook(updates.before_step)
    steps = [
        (g, [_target(mask=i < masks) for i in range(4)])
        for g, masks in ((1.0, 2), (4.0, 1), (9.0, 0), (2.0, 1))
    ]
    seen = _run(net, updates, optimizer, steps)
    assert [row[0] for row in seen] == [row[1] for row in seen] == [-1.0, -5.0, -14.0, -16.0]
    assert [row[2] for row in seen] == [0.0, 0.0, 0.0, pytest.approx(-2.0)]
    assert updates.state_dict() == {"waiting": {"detection": 0, "segmentation": 0, SHARED: 0}, "kept": {}}


def test_momentum_and_decay_wait_too():
    """A part that is not due is as it was, to the bit, whatever momentum and decay would do."""
    net = TwoTasks()
    updates = AsyncUpdates(net, {"detection": 1, "segmentation": 4, SHARED: 1})
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    optimizer.register_step_pre_hook(updates.before_step)
    steps = [(1.0, [_target()] * 4), (1.0, [_target(mask=False)] * 4), (1.0, [_target()])]
    first, second, third = _run(net, updates, optimizer, steps)
    assert first[2] == second[2] == third[2]
    assert len({first[0], second[0], third[0]}) == len({first[1], second[1], third[1]}) == 3


@pytest.mark.parametrize("name", ["ADAM", "SGD"])
def test_all_labels_and_full_batches_are_ordinary_training_to_the_bit(name):
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH = name, 0.1, 2
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    plain, held = TwoTasks(), TwoTasks()
    held.load_state_dict(copy.deepcopy(plain.state_dict()))
    updates = AsyncUpdates.from_config(held, cfg)
    assert updates.images == {"detection": 2, "segmentation": 2, SHARED: 2}
    steps = [(0.1 + t / 3, [_target()] * 2) for t in range(6)]
    expected = _run(plain, None, optim.build_optimizer(plain, cfg), steps)
    assert _run(held, updates, optim.build_optimizer(held, cfg, [updates.before_step]), steps) == expected


def test_a_saved_state_goes_on_to_the_bit():
    """Cut after a step in which everything waits."""
    steps = [(1 / 3, [_target()]), (0.7, [_target(mask=False)]), (0.9, [_target()])]
    images = {"detection": 2, "segmentation": 2, SHARED: 3}
    whole, cut = TwoTasks(), TwoTasks()
    cut.load_state_dict(copy.deepcopy(whole.state_dict()))
    runs = {}
    for net, parts in ((whole, [steps]), (cut, [steps[:1], steps[1:]])):
        state = None
        for part in parts:
            updates = AsyncUpdates(net, images)
            if state is not None:
                updates.load_state_dict(state)
            optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
            optimizer.register_step_pre_hook(updates.before_step)
            runs[net] = _run(net, updates, optimizer, part)[-1]
            state = copy.deepcopy(updates.state_dict())
    assert runs[whole] == runs[cut]
    with pytest.raises(UserError, match="other tasks"):
        AsyncUpdates(cut, images).load_state_dict({"waiting": {"x": 1}, "kept": {}})


def test_from_config_reads_the_numbers():
    cfg = get_cfg()
    node = cfg.SOLVER.ASYNC_UPDATES
    node.IMAGES, node.SHARED_IMAGES, node.TASK_IMAGES = 8, 16, (("segmentation", 3),)
    images = AsyncUpdates.from_config(TwoTasks(), cfg).images
    assert images == {"detection": 8, "segmentation": 3, SHARED: 16}


@pytest.mark.parametrize("pair", [("pose", 3), ("segmentation", 0), ("segmentation", 1.5), ("segmentation",)])
def test_bad_pairs_are_refused(pair):
    cfg = get_cfg()
    cfg.SOLVER.ASYNC_UPDATES.TASK_IMAGES = (pair,)
    with pytest.raises(UserError, match="TASK_IMAGES: .* tasks: detection, segmentation"):
        AsyncUpdates.from_config(TwoTasks(), cfg)


def test_what_does_not_go_together_is_refused():
    cfg = get_cfg()
    with pytest.raises(UserError, match="Linear does not tell its tasks' parameters"):
        AsyncUpdates.from_config(nn.Linear(1, 1), cfg)
    net = TwoTasks()
    net.balance = GradNormBalance(("loss_a",))
    with pytest.raises(UserError, match="GradNorm"):
        AsyncUpdates.from_config(net, cfg)
    cfg.SOLVER.ACCUMULATE_STEPS = 2
    with pytest.raises(UserError, match="ACCUMULATE_STEPS 1"):
        AsyncUpdates.from_config(TwoTasks(), cfg)
    with pytest.raises(ValueError, match="every part"):
        AsyncUpdates(TwoTasks(), {"detection": 1})
