"""The samples that are learnt again: a reservoir of all that were learnt, with what the teacher said of them.

N: samples; S: side of an image; C: classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scenekd.sampling import STREAM_KEEP, STREAM_REPLAY, draw_rng


class ReplayBuffer:
    """A uniform sample of ``capacity`` from all that was added (Vitter, Random sampling with a reservoir, 1985,
    algorithm R). Its draws follow from the seed and from how much was added or drawn, never from other state.

    Args:
        capacity: images kept; 0: none.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity, self._seed = capacity, seed
        self._images: Tensor | None = None
        self._logits: Tensor | None = None
        self._size = self._seen = self._added = 0

    def __len__(self) -> int:
        return self._size

    def add(self, images: Tensor, logits: Tensor) -> None:
        """Offer (N, 3, S, S) uint8 images with the teacher's (N, C) float logits; on the CPU."""
        if not self.capacity:
            return
        if self._images is None or self._logits is None:
            self._images = images.new_zeros((self.capacity, *images.shape[1:]))
            self._logits = logits.new_zeros((self.capacity, *logits.shape[1:]))
        for image, row in zip(images, logits):
            place = self._size
            if place == self.capacity:
                place = int(draw_rng(self._seed, self._added, STREAM_KEEP).integers(self._seen + 1))
            if place < self.capacity:
                self._images[place], self._logits[place] = image, row
                self._size = max(self._size, place + 1)
            self._seen += 1
            self._added += 1

    def draw(self, count: int, step: int) -> tuple[Tensor, Tensor] | None:
        """Images and logits of ``count`` different samples, of all where there are fewer; None of an empty buffer.

        Args:
            step: of the optimizer; equal steps draw equally.
        """
        count = min(count, self._size)
        if not count or self._images is None or self._logits is None:
            return None
        chosen = draw_rng(self._seed, step, STREAM_REPLAY).permutation(self._size)[:count]
        index = torch.from_numpy(chosen)
        return self._images[index], self._logits[index]

    def renew(self) -> None:
        """The stream has changed: what comes from now on has the chance of a reservoir that has just been filled,
        instead of one that falls with all that was ever seen."""
        self._seen = self._size

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, copied."""
        images, logits = (
            None if kept is None else kept[: self._size].clone() for kept in (self._images, self._logits)
        )
        return {"images": images, "logits": logits, "seen": self._seen, "added": self._added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` gave.

        Raises:
            ValueError: it holds more than ``capacity``.
        """
        self._seen, self._added = int(state["seen"]), int(state["added"])
        self._images = self._logits = None
        self._size = 0
        if state["images"] is None:
            return
        self._size = len(state["images"])
        if self._size > self.capacity:
            raise ValueError(f"a buffer of {self._size} for a capacity of {self.capacity}")
        self._images = state["images"].new_zeros((self.capacity, *state["images"].shape[1:]))
        self._logits = state["logits"].new_zeros((self.capacity, *state["logits"].shape[1:]))
        self._images[: self._size], self._logits[: self._size] = state["images"], state["logits"]
