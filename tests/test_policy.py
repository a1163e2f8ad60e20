"""Which source an image learns from, for every policy and every lack of labels."""

from __future__ import annotations

import itertools

import pytest
from voc_folder import bare_config

from scenekd.data.policy import POLICIES, SourcePolicy, TaskPolicy, build_policy
from scenekd.errors import UserError
from scenekd.sample import SourceWeights

IDS = [f"image{i}" for i in range(50)]


def _config(**detection: object) -> object:
    cfg = bare_config()
    cfg.TEACHER.DETECTION.TYPE = cfg.TEACHER.SEGMENTATION.TYPE = "torchvision"
    for key, value in detection.items():
        cfg.DISTILL.DETECTION[key] = value
    return cfg


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # weights (ground truth, teacher) where there are: both, ground truth, teacher, none
        ("ground_truth", [(1, 0), (1, 0), (0, 0), (0, 0)]),
        ("teacher", [(0, 1), (0, 0), (0, 1), (0, 0)]),
        ("fill_missing", [(1, 0), (1, 0), (0, 1), (0, 0)]),
        ("combined", [(0.3, 0.7), (1, 0), (0, 1), (0, 0)]),
    ],
)
def test_weights_by_what_exists(kind: str, expected: list[tuple[float, float]]) -> None:
    policy = build_policy(_config(POLICY=kind, GT_WEIGHT=0.3, TEACHER_WEIGHT=0.7), IDS)
    for (gt, teacher), weights in zip([(True, True), (True, False), (False, True), (False, False)], expected):
        got = policy.detection.weights("image0", 0, gt, teacher)
        assert got == pytest.approx(weights)


def test_both_tasks_are_told_apart() -> None:
    policy = SourcePolicy(TaskPolicy("combined"), TaskPolicy("fill_missing"))
    weights = policy.weights("x", has_boxes=True, has_teacher_boxes=True, has_sem_seg=False, has_soft=True)
    assert weights == SourceWeights(0.5, 0.5, 0.0, 1.0)
    assert policy.teacher_tasks == ("detection", "segmentation")


def test_a_fixed_subset_is_exact_and_the_same_for_every_draw() -> None:
    policy = build_policy(_config(POLICY="fixed_subset", FRACTION=0.3), IDS)
    chosen = {i for i in IDS if policy.detection.weights(i, 0, True, True) == (0, 1)}
    assert len(chosen) == 15
    for draw in (7, 1000):
        assert {i for i in IDS if policy.detection.weights(i, draw, True, True) == (0, 1)} == chosen
    again = build_policy(_config(POLICY="fixed_subset", FRACTION=0.3), reversed(IDS))
    assert again.detection.subset == chosen
    other = build_policy(_config(POLICY="fixed_subset", FRACTION=0.3, SUBSET_SEED=1), IDS)
    assert other.detection.subset != chosen


@pytest.mark.parametrize(("fraction", "count"), [(0.2, 6), (0.5, 16), (0.8, 25), (0.0, 0), (1.0, 32)])
def test_per_batch_takes_the_thesis_s_number_of_images(fraction: float, count: int) -> None:
    cfg = _config(POLICY="per_batch", FRACTION=fraction)
    cfg.SOLVER.IMS_PER_BATCH = 32
    policy = build_policy(cfg, IDS).detection

    def members(iteration: int) -> set[int]:
        draws = range(iteration * 32, (iteration + 1) * 32)
        return {d % 32 for d in draws if policy.weights("any", d, True, True) == (0, 1)}

    batches = [members(iteration) for iteration in range(20)]
    assert {len(batch) for batch in batches} == {count}
    if 0 < count < 32:
        assert len({frozenset(batch) for batch in batches}) > 10  # drawn anew in each step
        assert set.union(*batches) == set(range(32))
    # a draw knows its place alone, in any order
    assert members(7) == batches[7]


def test_rounding_of_the_fraction_costs_no_image() -> None:
    # 0.29 · 100 = 28.999999999999996 in floating point
    policy = TaskPolicy("per_batch", fraction=0.29, batch_size=100)
    assert sum(policy.weights("x", d, True, True)[1] for d in range(100)) == 29


def test_an_image_without_its_chosen_source_is_left_out() -> None:
    policy = TaskPolicy("fixed_subset", fraction=0.5, subset=frozenset({"a"}))
    assert policy.weights("a", 0, True, False) == (0, 0)
    assert policy.weights("b", 0, False, True) == (0, 0)


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("task", ["DETECTION", "SEGMENTATION"])
def test_a_policy_that_needs_a_teacher_says_so(kind: str, task: str) -> None:
    cfg = bare_config()
    cfg.DISTILL[task].POLICY = kind
    if kind == "ground_truth":
        assert build_policy(cfg, IDS).teacher_tasks == ()
        return
    with pytest.raises(
        UserError, match=rf"DISTILL\.{task}\.POLICY: {kind} needs a teacher; set TEACHER\.{task}\.TYPE"
    ):
        build_policy(cfg, IDS)
    assert build_policy(cfg, IDS, teachers=[task.lower()]).teacher_tasks == (task.lower(),)


@pytest.mark.parametrize("kind", ["fixed_subset", "per_batch"])
def test_a_share_of_nothing_needs_no_teacher(kind: str) -> None:
    cfg = bare_config()
    cfg.DISTILL.DETECTION.POLICY, cfg.DISTILL.DETECTION.FRACTION = kind, 0.0
    assert build_policy(cfg, IDS).teacher_tasks == ()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("POLICY", "often", "DISTILL.DETECTION.POLICY: 'often'"),
        ("FRACTION", 1.5, "DISTILL.DETECTION.FRACTION"),
        ("GT_WEIGHT", -1.0, "GT_WEIGHT"),
    ],
)
def test_settings_out_of_range_name_their_key(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_policy(_config(**{key: value}), IDS)


def test_weights_never_come_from_a_source_that_is_not_there() -> None:
    for kind, gt, teacher, draw in itertools.product(POLICIES, (True, False), (True, False), range(16)):
        policy = TaskPolicy(kind, fraction=0.5, subset=frozenset({"a"}), batch_size=8)
        weight_gt, weight_teacher = policy.weights("a", draw, gt, teacher)
        assert weight_gt == 0 or gt
        assert weight_teacher == 0 or teacher
