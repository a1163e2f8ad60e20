"""The account of images that ``DATASETS.ON_ERROR: skip`` left out, over data workers and processes."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import torch.distributed as dist

from .data.mapper import Mapper
from .data.records import Dataset

logger = logging.getLogger(__name__)

_NAMED = 8  # images named in the one line at the end


class SkippedImages:
    """What the mappers of a run, each kept by the name of its split, have found unusable.

    In training, that is: an evaluation without one of its images is refused.
    """

    def __init__(self) -> None:
        self._mappers: dict[str, Mapper] = {}

    def watch(self, split: str, mapper: Mapper, known: Collection[str] = ()) -> None:
        """Count for ``mapper`` from now on; ``known``: ids that the run before a resume had found."""
        mapper.mark_skipped(known)
        self._mappers[split] = mapper

    def ids(self, split: str) -> list[str]:
        """The images that could not be read or mapped, as far as this process knows."""
        return sorted(self._mappers[split].skipped) if split in self._mappers else []

    def share(self) -> None:
        """Let every process know what all have found; where there are several, all of them call it."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        for mapper in self._mappers.values():
            if mapper.skip_bad:
                found: list[Any] = [None] * dist.get_world_size()
                dist.all_gather_object(found, mapper.skipped)
                mapper.mark_skipped(set().union(*found))

    def describe(self, split: str, data: Dataset, names: Collection[str]) -> dict[str, Any]:
        """What ``results.json`` says of a split: names, images, and those left out, each told once in the log."""
        images = self.ids(split)
        if data.skipped or images:
            logger.warning(
                "%s: %d of %d images were left out (DATASETS.ON_ERROR skip)%s; log.txt says why",
                "+".join(names),
                len(data.skipped) + len(images),
                len(data) + len(data.skipped),
                f", such as {', '.join(images[:_NAMED])}" if images else "",
            )
        left_out = {"annotations": len(data.skipped), "images": images}
        return {"names": list(names), "images": len(data), "skipped": left_out}
