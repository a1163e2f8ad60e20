"""What was read of the training images, kept in memory: of a small set every epoch after the first reads no file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from ..errors import UserError

T = TypeVar("T")


class Memory:
    """What came first, up to a number of bytes. Nothing is driven out: each epoch takes the images in another order,
    and of a set that does not fit, the last ones read would be gone before they come again.

    Args:
        megabytes: MiB of arrays, ``DATASETS.CACHE_MB``; 0 keeps nothing.

    Raises:
        UserError: below 0.
    """

    def __init__(self, megabytes: float) -> None:
        if megabytes < 0:
            raise UserError(f"DATASETS.CACHE_MB: {megabytes} must be at least 0; 0 keeps nothing in memory")
        self._left = int(megabytes * 2**20)
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, read: Callable[[], T], nbytes: Callable[[T], int]) -> T:
        """A copy of what was kept under ``key``, the caller's own; else what ``read`` gives.

        Args:
            nbytes: of what was read. Of an error nothing is kept.
        """
        if key in self._kept:
            found: T = copy.deepcopy(self._kept[key])
            return found
        value = read()
        size = nbytes(value)
        if size <= self._left:
            self._left -= size
            self._kept[key] = copy.deepcopy(value)
        return value
