"""Is an exported graph the network? Its arrays against PyTorch's, on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Arrays = Mapping[str, np.ndarray]

# A decision that rounding may turn (two boxes at the NMS threshold, a tie for the last place) does not make another
# network; more than one box in a hundred does.
SAME_BOXES = 0.99
EQUAL_SCORES = float(np.finfo(np.float32).eps)
# Another order of the same float32 sums may move a value as far as float32 itself does, a few times.
ROUNDING = 4.0


@dataclass
class Comparison:
    """The largest differences so far.

    Attributes:
        tolerance: allowed relative difference.
        absolute: by output, the largest difference from PyTorch's value.
        relative: the same over the largest of PyTorch's values, where that is above 1.
        inputs: compared so far. boxes, same: boxes that either side kept, and those that both did. tied: kept by
            one side alone and left out of ``boxes``, since other anchors have just that score, so that which of them
            comes first, and stays, is nobody's decision.
        rounding: the same comparison between PyTorch in float32 and in float64, where it was made: it excuses
            differences up to four times its own, and as many other boxes.
    """

    tolerance: float
    absolute: dict[str, float] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    inputs: int = 0
    boxes: int = 0
    same: int = 0
    tied: int = 0
    rounding: Comparison | None = None

    def add(self, ours: Arrays, exported: Arrays) -> None:
        """Compare one input's arrays, name by name, position by position."""
        self.inputs += 1
        for name, value in ours.items():
            self._add(name, value, exported[name])

    def add_detections(self, ours: Arrays, exported: Arrays, size: int, probabilities: np.ndarray) -> None:
        """The same where boxes were chosen: each box is compared with its partner, see :func:`partners`.

        Args:
            size: side of the image, the scale of a box's differences.
            probabilities: (A, C + 1), of all anchors.
        """
        self.inputs += 1
        first, second = partners(ours, exported, size, self.tolerance)
        alone = []
        for side, paired in ((ours, first), (exported, second)):
            labels, scores = (np.delete(side[name], paired) for name in ("labels", "scores"))
            equal = np.abs(probabilities[:, labels] - scores) <= EQUAL_SCORES
            tied = equal.sum(axis=0) > 1
            self.tied += int(tied.sum())
            alone.append(int((~tied).sum()))
        self.boxes += len(first) + max(alone)
        self.same += len(first)
        for name, value in ours.items():
            if name == "sem_seg":
                self._add(name, value, exported[name])
            else:
                self._add(name, value[first], exported[name][second])

    def _add(self, name: str, ours: np.ndarray, exported: np.ndarray) -> None:
        absolute = relative = 0.0
        if ours.shape != exported.shape:
            absolute = relative = float("inf")
        elif ours.size:
            reference = ours.astype(np.float64)
            absolute = float(np.abs(reference - exported).max())
            relative = absolute / max(1.0, float(np.abs(reference).max()))
        # nan stays: np.maximum hands it on, max() may not
        self.absolute[name] = float(np.maximum(self.absolute.get(name, 0.0), absolute))
        self.relative[name] = float(np.maximum(self.relative.get(name, 0.0), relative))

    def limit(self, name: str) -> float:
        """The largest relative difference allowed for an output."""
        own = self.rounding.relative[name] if self.rounding else 0.0
        return max(self.tolerance, ROUNDING * own)

    @property
    def share(self) -> float:
        """The share of boxes that both sides kept, 1 where there is none."""
        return self.same / self.boxes if self.boxes else 1.0

    @property
    def problem(self) -> str:
        """What is wrong with the export; "" where nothing is."""
        for name, relative in self.relative.items():
            if not relative <= self.limit(name):
                return (
                    f"{name} differs from PyTorch by {self.absolute[name]:.3g} ({relative:.3g} of its "
                    f"largest value), more than {self.limit(name):.3g}"
                )
        turned = ROUNDING * (1 - self.rounding.share) if self.rounding else 0.0
        if self.share < min(SAME_BOXES, 1 - turned):
            return f"only {self.same} of {self.boxes} boxes are PyTorch's within {self.tolerance:g}"
        return ""


def partners(ours: Arrays, exported: Arrays, size: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ``ours`` and in ``exported`` of the boxes that both kept, in any order.

    Partners have the same label; their scores, and their boxes as fractions of the image's side, differ by at most
    ``tolerance``. Each box has one partner at most, the nearest that is free.
    """
    first: list[int] = []
    second: list[int] = []
    free = np.ones(len(exported["boxes"]), bool)
    for i in range(len(ours["boxes"])):
        distance = np.maximum(
            np.abs(exported["boxes"] - ours["boxes"][i]).max(axis=1, initial=0.0) / size,
            np.abs(exported["scores"] - ours["scores"][i]),
        )
        distance[~free | (exported["labels"] != ours["labels"][i])] = np.inf
        if not len(distance) or not distance.min() <= tolerance:
            continue
        j = int(distance.argmin())
        free[j] = False
        first.append(i)
        second.append(j)
    return np.array(first, np.int64), np.array(second, np.int64)
