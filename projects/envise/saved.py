"""The state of a run in two files: ``last.pth`` holds everything and is written where something was learnt;
``last_step.pth`` holds what changes in between, and says which of the former it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scenekd import checkpoint
from scenekd.errors import UserError

WHOLE, LIGHT = checkpoint.LAST, "last_step.pth"


class StateFiles:
    """The two files; a kill at any moment leaves a state that fits together.

    Args:
        folder: of both. place: of a state, numbers that stay as long as nothing is learnt.
    """

    def __init__(self, folder: str | Path, place: Callable[[Mapping[str, Any]], list[int]]) -> None:
        self._folder, self._place = Path(folder), place
        self._whole: list[int] = []

    @property
    def path(self) -> Path:
        """Of the whole state."""
        return self._folder / WHOLE

    def save(self, light: Mapping[str, Any], heavy: Callable[[], Mapping[str, Any]]) -> None:
        """Write a state.

        Args:
            light: what changes without learning, with ``batches`` so far and ``seed``. heavy: gives the rest.
        """
        place = self._place(light)
        if place == self._whole:
            checkpoint.atomic_save({**light, "follows": place}, self._folder / LIGHT)
            return
        if not self._whole:  # what an earlier run has left there
            (self._folder / LIGHT).unlink(missing_ok=True)
        checkpoint.atomic_save({**light, **heavy()}, self.path)
        self._whole = place

    def read(self) -> dict[str, Any]:
        """The latest state, which the next one follows.

        Raises:
            UserError: no whole state, a file that cannot be read, or the state of something else.
        """
        whole = checkpoint.read(self.path)
        path = self._folder / LIGHT
        light = checkpoint.read(path) if path.is_file() else {}
        try:
            self._whole = self._place(whole)
        except (KeyError, TypeError):
            raise UserError(f"{self.path}: no state of such a stream; give another OUTPUT_DIR") from None
        # A light state may be older than a whole one.
        fits = light.get("follows") == self._whole and light.get("batches", -1) > whole["batches"]
        return whole | light if fits and light.get("seed") == whole["seed"] else whole


def load_student(student: nn.Module, path: str) -> None:
    """Begin with a student of an earlier run: a checkpoint, or the state of a stream.

    Raises:
        UserError: no such file, or weights of another student.
    """
    state = checkpoint.read(path)
    own = state.get("student")
    weights = checkpoint.weights_of(own if isinstance(own, dict) else state)
    checkpoint.load_state(student, weights, path, strict=True)
