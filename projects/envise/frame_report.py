"""What a segmented video came to: counts, agreement, time, and scores where masks are known.

H, W: size of a frame; K: dense classes, background first.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scenekd.evaluation.semantic import confusion_matrix, segmentation_scores

from .frame_learner import FrameAnswer


class FrameReport:
    """Sums over the frames so far.

    Args:
        classes: K names.

    Attributes:
        frames, asked, updates: how many.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self.frames = self.asked = self.updates = 0
        self._before, self._after, self._seconds = 0.0, 0.0, 0.0
        self._teacher_seconds: list[float] = []
        size = len(self._classes)
        self._matrices = {who: np.zeros((size, size), np.int64) for who in ("system", "teacher")}
        self._judged = {"system": 0, "teacher": 0}

    def add(self, answer: FrameAnswer) -> None:
        """Count a frame."""
        self.frames += 1
        self.updates += answer.updates
        self._seconds += answer.seconds
        if answer.before is not None and answer.after is not None:
            self.asked += 1
            self._before += answer.before
            self._after += answer.after
            self._teacher_seconds.append(answer.teacher_seconds)

    def judge(self, system: np.ndarray, teacher: np.ndarray | None, label: np.ndarray) -> None:
        """Hold the answers to a frame, (H, W) class numbers, against its mask; None: not known."""
        for who, mask in (("system", system), ("teacher", teacher)):
            if mask is not None:
                self._matrices[who] += confusion_matrix(mask, label, len(self._classes))
                self._judged[who] += 1

    @property
    def time_ratio(self) -> float | None:
        """Time of everything over that of the teacher on every frame, by its median over the frames it was asked."""
        if not self._teacher_seconds:
            return None
        return self._seconds / (self.frames * statistics.median(self._teacher_seconds))

    def summary(self) -> dict[str, dict[str, Any]]:
        """``stream``: frames, updates, share_asked, agreement before and after updates (mean IoU over key frames, in
        percent); ``time``: milliseconds a frame of the system and of the teacher alone, their ratio, frames a second;
        ``labels``: mIoU in percent of system and teacher, where masks are known."""
        if not self.frames:
            return {}
        ratio, asked = self.time_ratio, self.asked or None
        found: dict[str, dict[str, Any]] = {
            "stream": {
                "frames": self.frames,
                "asked": self.asked,
                "share_asked": 100 * self.asked / self.frames,
                "updates": self.updates,
                "agreement": asked and 100 * self._before / asked,
                "agreement_after": asked and 100 * self._after / asked,
            },
            "time": {
                "milliseconds": 1000 * self._seconds / self.frames,
                "teacher_milliseconds": asked and 1000 * statistics.median(self._teacher_seconds),
                "ratio": ratio,
                "speedup": ratio and 1 / ratio,
                "frames_per_second": self.frames / self._seconds,
            },
        }
        for who, count in self._judged.items():
            if count:
                matrix = self._matrices[who]
                counts = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
                labels = found.setdefault("labels", {})
                labels[f"{who}_frames"] = count
                labels[f"{who}_mIoU"] = 100 * float(segmentation_scores(*counts)["mIoU"])
        return found

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors and plain values."""
        return {
            "classes": list(self._classes),
            "counts": [self.frames, self.asked, self.updates],
            "sums": [self._before, self._after, self._seconds],
            "teacher_seconds": list(self._teacher_seconds),
            "matrices": {who: torch.from_numpy(matrix.copy()) for who, matrix in self._matrices.items()},
            "judged": dict(self._judged),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is of other classes.
        """
        if list(self._classes) != state["classes"]:
            raise ValueError("other classes")
        self.frames, self.asked, self.updates = (int(value) for value in state["counts"])
        self._before, self._after, self._seconds = (float(value) for value in state["sums"])
        self._teacher_seconds = [float(value) for value in state["teacher_seconds"]]
        self._matrices = {who: matrix.numpy().copy() for who, matrix in state["matrices"].items()}
        self._judged = {who: int(count) for who, count in state["judged"].items()}
