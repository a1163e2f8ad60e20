"""What every metric keeps: exactly one record per image, keyed by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

Record = TypeVar("Record")


class ImageRecords(Generic[Record]):
    """Records of images by id. The first record of an image stays, so repeated images count once.

    Args:
        classes: names that the summary reports by.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._records: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._records

    def state(self) -> dict[str, Record]:
        """What another process's :meth:`merge` takes."""
        return dict(self._records)

    def merge(self, state: Mapping[str, Record]) -> None:
        """Take in the records of another process; images that are here already are dropped."""
        for image_id, record in state.items():
            self._records.setdefault(image_id, record)

    def summary(self, *, bootstrap: int = 0, seed: int = 0) -> dict[str, Any]:
        """The metric's numbers in percent; ``bootstrap`` resamples of the images give 95 % intervals."""
        raise NotImplementedError

    def _sorted(self) -> list[Record]:
        """The records in order of image id, so that numbers do not depend on who saw which image."""
        if not self._records:
            raise ValueError("no image was recorded")
        return [self._records[image_id] for image_id in sorted(self._records)]
