"""The tasks, and how much each source weighs in each of them for one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# Tasks whose teachers' outputs are saved; what a teacher says of a whole image can only be had live.
SAVED_TASKS = ("detection", "segmentation", "instance_segmentation")
TASKS = (*SAVED_TASKS, "classification")


class SourceWeights(Mapping[str, tuple[float, float]]):
    """Task → how much (ground truth, teacher) weigh in its loss for one image; 0 leaves the source out.

    A task that was not named weighs nothing; detection and segmentation learn from ground truth by default.

    Args:
        detection_gt, detection_teacher, segmentation_gt, segmentation_teacher: of the tasks that have names here.
        others: (ground truth, teacher) of any other task.
    """

    def __init__(
        self,
        detection_gt: float = 1.0,
        detection_teacher: float = 0.0,
        segmentation_gt: float = 1.0,
        segmentation_teacher: float = 0.0,
        **others: tuple[float, float],
    ) -> None:
        self._by_task = {
            "detection": (detection_gt, detection_teacher),
            "segmentation": (segmentation_gt, segmentation_teacher),
            **others,
        }

    @classmethod
    def of(cls, by_task: Mapping[str, tuple[float, float]]) -> SourceWeights:
        """From task → (ground truth, teacher); what is not named weighs nothing."""
        weights = cls(0.0, 0.0, 0.0, 0.0)
        weights._by_task.update(by_task)
        return weights

    def __getitem__(self, task: str) -> tuple[float, float]:
        return self._by_task.get(task, (0.0, 0.0))

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_task)

    def __len__(self) -> int:
        return len(self._by_task)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SourceWeights):
            return NotImplemented
        return all(self[task] == other[task] for task in {*self, *other})

    def __repr__(self) -> str:
        return f"SourceWeights({self._by_task})"

    @property
    def detection_gt(self) -> float:
        return self["detection"][0]

    @property
    def detection_teacher(self) -> float:
        return self["detection"][1]

    @property
    def segmentation_gt(self) -> float:
        return self["segmentation"][0]

    @property
    def segmentation_teacher(self) -> float:
        return self["segmentation"][1]
