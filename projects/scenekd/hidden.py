"""One object that is hidden from a picture, as a sample and as a record of an evaluation know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

ALSO = 128  # of the fourth channel: hidden, but not asked for; the hole itself is 255


@dataclass
class HiddenRegion:
    """What was hidden from a sample. H, W: its picture; N: its boxes; C: object classes.

    Attributes:
        hole: (H, W) bool, the pixels that show something else now.
        place: the hidden object among the sample's boxes.
        visible: (N,) bool, the objects that can still be seen: not the hidden one, nor those that are mostly under the
            hole too.
        classes: (C,) float32, 1 for each class under the hole: the hidden object's, and where the rule for other
            objects says so, theirs.
        also: (H, W) bool, other pixels that were hidden with it; None for none.
    """

    hole: np.ndarray
    place: int
    visible: np.ndarray
    classes: np.ndarray
    also: np.ndarray | None = None


@dataclass(frozen=True)
class HiddenObject:
    """One case of an evaluation: a record is repeated for each of its objects, and this says which one is hidden.

    Attributes:
        picture: image id of the picture. place: the object among the record's boxes. label: its class, 0…C−1.
        shape: of the hole. ratio: share of the picture inside the hole's bounds, at the network's input.
        visible: number of other objects that can be seen.
        scene: type of scene, "" where it is not known.
    """

    picture: str
    place: int
    label: int
    shape: str
    ratio: float
    visible: int
    scene: str = ""

    @property
    def name(self) -> str:
        """Of the case, ``<image id>#<place>``."""
        return f"{self.picture}#{self.place}"


@dataclass(frozen=True)
class HiddenScores:
    """A network's word on every object of one picture, each hidden in turn. M: objects; C: classes.

    Attributes:
        cases: M objects; none where nothing in the picture can be hidden.
        scores: (M, C), whose softmax is the probability of each class.
    """

    cases: Sequence[HiddenObject]
    scores: Tensor
