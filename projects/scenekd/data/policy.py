"""Which source each image learns each task from: ground truth, teacher, or both, as weights.

One mechanism serves all mixing: a task's loss is Σ_s share_s · L_s over the sources, where L_s is taken over
the images with a positive weight for s, and share_s is the source's part of the batch's weights.

Policies of a task (``DISTILL.<TASK>.POLICY``):
    ground_truth, teacher   that source alone.
    fill_missing            ground truth where it exists, the teacher elsewhere.
    fixed_subset            a share of the images, chosen once by id, takes the teacher.
    per_batch               in each step int(batch · FRACTION) random images take the teacher (the thesis's).
    combined                both, by GT_WEIGHT and TEACHER_WEIGHT; an image with one source gives it the sum.
Where the chosen source does not exist for an image, the image is left out of that task.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..sample import TASKS, SourceWeights
from ..sampling import STREAM_POLICY, draw_rng
from .subset import stable_subset

TEACHER_SOURCES = ("cached", "online", "none")
POLICIES = ("ground_truth", "teacher", "fill_missing", "fixed_subset", "per_batch", "combined")


@dataclass(frozen=True)
class TaskPolicy:
    """The choice for one task.

    Attributes:
        kind: one of ``POLICIES``.
        fraction: of ``per_batch``. subset: of ``fixed_subset``, the ids that take the teacher.
        gt_weight, teacher_weight: of ``combined``.
        seed, batch_size: of ``per_batch``; images of one optimizer step over all processes.
    """

    kind: str
    fraction: float = 1.0
    subset: frozenset[str] = field(default_factory=frozenset)
    gt_weight: float = 0.5
    teacher_weight: float = 0.5
    seed: int = 0
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.kind not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.kind!r}")

    @property
    def needs_teacher(self) -> bool:
        return self.kind != "ground_truth" and not (
            self.kind in ("fixed_subset", "per_batch") and self.fraction == 0
        )

    def weights(self, image_id: str, draw_index: int, has_gt: bool, has_teacher: bool) -> tuple[float, float]:
        """(weight of the ground truth, weight of the teacher) for one image at one draw."""
        if self.kind == "combined":
            if has_gt and has_teacher:
                return self.gt_weight, self.teacher_weight
            total = self.gt_weight + self.teacher_weight
            return total * has_gt, total * has_teacher
        if self.kind == "fill_missing":
            return float(has_gt), float(has_teacher and not has_gt)
        teacher = self._takes_teacher(image_id, draw_index)
        return float(has_gt and not teacher), float(has_teacher and teacher)

    def _takes_teacher(self, image_id: str, draw_index: int) -> bool:
        if self.kind == "fixed_subset":
            return image_id in self.subset
        if self.kind == "per_batch":
            iteration, position = divmod(draw_index, self.batch_size)
            return position in _chosen_positions(self.seed, iteration, self.batch_size, self.fraction)
        return self.kind == "teacher"


@functools.lru_cache(maxsize=8)
def _chosen_positions(seed: int, iteration: int, batch_size: int, fraction: float) -> frozenset[int]:
    order = draw_rng(seed, iteration, STREAM_POLICY).permutation(batch_size)
    # 0.29 · 100 is 28.999…: the product's rounding error must not cost an image
    return frozenset(order[: int(batch_size * fraction + 1e-9)].tolist())


class SourcePolicy:
    """The choice for every task. With equal seeds, per_batch and fixed_subset nest the tasks' choices.

    Args:
        detection, segmentation, others: of each task; ground truth alone by default.

    Attributes:
        tasks: task → its choice.
    """

    def __init__(
        self,
        detection: TaskPolicy | None = None,
        segmentation: TaskPolicy | None = None,
        **others: TaskPolicy,
    ) -> None:
        given = {"detection": detection, "segmentation": segmentation, **others}
        self.tasks = {task: policy or TaskPolicy("ground_truth") for task, policy in given.items()}

    def __getitem__(self, task: str) -> TaskPolicy:
        return self.tasks[task]

    @property
    def detection(self) -> TaskPolicy:
        return self.tasks["detection"]

    @property
    def segmentation(self) -> TaskPolicy:
        return self.tasks["segmentation"]

    @property
    def teacher_tasks(self) -> tuple[str, ...]:
        """The tasks that cannot do without a teacher's store."""
        return tuple(task for task, policy in self.tasks.items() if policy.needs_teacher)

    def choose(
        self, image_id: str, draw_index: int, available: Mapping[str, tuple[bool, bool]]
    ) -> SourceWeights:
        """The weights of one image.

        Args:
            draw_index: the global index of the draw; its iteration and place in the batch follow from it.
            available: for each task, whether ground truth and whether a teacher's output exist for the image;
                neither does where it is not named.
        """
        neither = (False, False)
        return SourceWeights.of(
            {
                task: policy.weights(image_id, draw_index, *available.get(task, neither))
                for task, policy in self.tasks.items()
            }
        )

    def weights(
        self,
        image_id: str,
        draw_index: int = 0,
        *,
        has_boxes: bool,
        has_sem_seg: bool,
        has_teacher_boxes: bool = False,
        has_soft: bool = False,
    ) -> SourceWeights:
        """:meth:`choose` for detection and segmentation, by the names of what exists."""
        available = {"detection": (has_boxes, has_teacher_boxes), "segmentation": (has_sem_seg, has_soft)}
        return self.choose(image_id, draw_index, available)


GROUND_TRUTH = SourcePolicy(**{task: TaskPolicy("ground_truth") for task in TASKS})


def from_cache(cfg: Any) -> bool:
    """Whether teachers speak through saved outputs, which the policies choose from.

    Raises:
        UserError: ``DISTILL.TEACHER`` is none of :data:`TEACHER_SOURCES`.
    """
    if cfg.DISTILL.TEACHER not in TEACHER_SOURCES:
        raise UserError(f"DISTILL.TEACHER: {cfg.DISTILL.TEACHER!r} is none of {', '.join(TEACHER_SOURCES)}")
    return bool(cfg.DISTILL.TEACHER == "cached")


def build_policy(
    cfg: Any, image_ids: Iterable[str] = (), teachers: Iterable[str] | None = None
) -> SourcePolicy:
    """From ``cfg.DISTILL``.

    Args:
        image_ids: of the training set; ``fixed_subset`` chooses exactly round(n · FRACTION) of them.
        teachers: tasks for which a teacher is at hand; by default those with a TEACHER.<TASK>.TYPE or CACHE.

    Raises:
        UserError: an unknown policy, a value out of range, or no teacher for a policy that needs one.
    """
    ids = list(image_ids)
    if not from_cache(cfg):
        return GROUND_TRUTH
    policy = SourcePolicy(**{task: _task_policy(cfg, task.upper(), ids) for task in TASKS})
    if teachers is None:
        nodes = {task: cfg.TEACHER[task.upper()] for task in policy.teacher_tasks}
        teachers = [task for task, node in nodes.items() if node.TYPE or node.CACHE]
    for task in set(policy.teacher_tasks) - set(teachers):
        raise UserError(
            f"DISTILL.{task.upper()}.POLICY: {policy[task].kind} needs a teacher; "
            f"set TEACHER.{task.upper()}.TYPE, or choose ground_truth"
        )
    return policy


def _task_policy(cfg: Any, task: str, image_ids: list[str]) -> TaskPolicy:
    node, key = cfg.DISTILL[task], f"DISTILL.{task}"
    if node.POLICY not in POLICIES:
        raise UserError(f"{key}.POLICY: {node.POLICY!r} is none of {', '.join(POLICIES)}")
    if not 0.0 <= node.FRACTION <= 1.0:
        raise UserError(f"{key}.FRACTION: {node.FRACTION} is no share between 0 and 1")
    if min(node.GT_WEIGHT, node.TEACHER_WEIGHT) < 0 or node.GT_WEIGHT + node.TEACHER_WEIGHT <= 0:
        raise UserError(f"{key}: GT_WEIGHT and TEACHER_WEIGHT must not be negative, nor both 0")
    subset: set[str] = set()
    if node.POLICY == "fixed_subset":
        if not image_ids:
            raise ValueError("fixed_subset needs the ids of the training images")
        subset = stable_subset(image_ids, node.FRACTION, node.SUBSET_SEED, salt="teacher")
    return TaskPolicy(
        node.POLICY,
        fraction=node.FRACTION,
        subset=frozenset(subset),
        gt_weight=node.GT_WEIGHT,
        teacher_weight=node.TEACHER_WEIGHT,
        seed=cfg.SEED,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
    )
