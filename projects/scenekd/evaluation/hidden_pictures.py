"""Hidden objects by the picture: scores of networks that hide every object of a picture themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from ..hidden import HiddenScores
from .hidden_objects import HiddenObjectRecords

State = dict[str, Any]


class HiddenPictures:
    """The numbers of :class:`.hidden_objects.HiddenObjectRecords`, of pictures with all their cases at once.

    Args:
        classes: C names. bootstrap: resamples of the pictures for 95 % intervals; 0: none. seed: of them.
    """

    def __init__(self, classes: Sequence[str], *, bootstrap: int = 0, seed: int = 0) -> None:
        self.classes, self.bootstrap, self.seed = tuple(classes), bootstrap, seed
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._records = HiddenObjectRecords(self.classes)
        self._left_out: set[str] = set()

    def add(self, image_id: str, hidden: HiddenScores | None) -> None:
        """Record one picture; one that is there already is left as it is.

        Raises:
            UserError: the network hides no objects, or knows another number of classes.
        """
        if hidden is None:
            raise UserError(
                f"image {image_id}: the model hides no objects; hidden objects are scored of SceneKDMaskedContext"
            )
        if not len(hidden.cases):
            self._left_out.add(image_id)
        for case, scores in zip(hidden.cases, hidden.scores):
            try:
                self._records.add(case.name, scores, case)
            except ValueError as error:
                raise UserError(f"hidden object {case.name}: {error}") from None

    def state(self) -> State:
        """The pictures of this process, for :meth:`merge` in another."""
        return {"records": self._records.state(), "left_out": self._left_out}

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take in the states of other processes (this one's may be among them)."""
        for state in states:
            self._records.merge(state["records"])
            self._left_out = self._left_out | state["left_out"]

    def summarize(self) -> dict[str, dict[str, Any]]:
        """``{"hidden_object": …}``: the records' summary, and ``pictures_left_out``, in which nothing can be hidden.

        Raises:
            UserError: nothing was hidden in any picture.
        """
        if not len(self._records):
            raise UserError(
                f"hidden_object: none of {len(self._left_out)} pictures has an object that can be hidden; the test "
                "loader must give boxes and classes, and MAX_AREA allow them"
            )
        summary = self._records.summary(bootstrap=self.bootstrap, seed=self.seed)
        return {"hidden_object": {**summary, "pictures_left_out": len(self._left_out)}}
