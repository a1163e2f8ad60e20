"""Reading a teacher cache: a folder with a manifest and shards, made by
:mod:`~scenekd.teachers.cache_builder`.

What is read is checked against its checksum each time; :func:`verify` does so for every record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..data.records import Record
from ..errors import UserError
from ..sample import SoftSegmentation
from .codec import decode_detections, decode_instances, decode_segmentation
from .images import same_image
from .manifest import REBUILD, Entry, read_manifest
from .protocol import Detections, InstanceDetections
from .shards import DamagedRecord, unpack_record

_DECODERS: dict[str, Callable[..., Any]] = {
    "detection": decode_detections,
    "segmentation": decode_segmentation,
    "instance_segmentation": decode_instances,
}


class CacheStore:
    """A finished cache, by image id. Safe in forked and spawned workers.

    Args:
        folder: of the cache.
        task, classes: what the cache must be for, where given.

    Raises:
        UserError: no cache here, not finished, damaged, or made for something else.
    """

    def __init__(self, folder: str | Path, *, task: str | None = None, classes: Iterable[str] | None = None):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if not self.manifest.complete:
            raise UserError(f"{self.folder}: not finished; run tools/cache_teacher.py --resume to go on")
        if task is not None and task != self.manifest.task:
            raise UserError(
                f"{self.folder}: is for {self.manifest.task}, not {task}; set TEACHER.{task.upper()}.CACHE"
            )
        if classes is not None and tuple(classes) != self.manifest.classes:
            wrong = sorted(set(classes) ^ set(self.manifest.classes)) or ["their order"]
            raise UserError(
                f"{self.folder}: made for other classes (differing: {', '.join(wrong[:5])}); "
                f"{REBUILD}, with --rebuild"
            )
        self.classes = self.manifest.classes
        self._files: dict[str, int] = {}

    @property
    def info(self) -> dict[str, Any]:
        """Fields of the teacher that made the cache."""
        return self.manifest.teacher

    @property
    def image_ids(self) -> list[str]:
        """Of all records, sorted."""
        return sorted(self.manifest.records)

    def __len__(self) -> int:
        return len(self.manifest.records)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.manifest.records

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def get_detections(self, image_id: str) -> Detections:
        """The boxes of an image, in our classes."""
        return self._decode(image_id, "detection")

    def get_segmentation(self, image_id: str) -> SoftSegmentation:
        """The dense output of an image, in our classes, background first."""
        return self._decode(image_id, "segmentation")

    def get_instances(self, image_id: str) -> InstanceDetections:
        """The boxes of an image with their masks, in our classes."""
        return self._decode(image_id, "instance_segmentation")

    def get(self, image_id: str) -> Detections | SoftSegmentation | InstanceDetections:
        """What the cache's task calls for."""
        return self._decode(image_id, self.manifest.task)

    def read(self, image_id: str) -> tuple[dict[str, Any], bytes]:
        """Header and payload of a record; a UserError that names the image where it is missing or damaged."""
        entry = self.manifest.records.get(image_id)
        if entry is None:
            raise UserError(
                f"{self.folder}: holds nothing for image {image_id}; run tools/cache_teacher.py --resume"
            )
        try:
            header, payload = unpack_record(self._bytes(entry))
            if header["image_id"] != image_id or header["identity"] != self.manifest.identity:
                raise DamagedRecord("it belongs to another image or cache")
        except (ValueError, KeyError, OSError) as error:
            raise self._damaged(image_id, error) from None
        return header, payload

    def check_images(self, records: Iterable[Record]) -> None:
        """Refuse the cache where an image of ``records`` is no longer the one that the teacher saw."""
        changed = [r.image_id for r in records if r.image_id in self and not self.same_image(r)]
        if changed:
            raise UserError(
                f"{self.folder}: {len(changed)} images have changed since (first: {changed[0]}); "
                "run tools/cache_teacher.py --resume with this config to rebuild their records"
            )

    def same_image(self, record: Record) -> bool:
        """Whether the image of a record is the one that the teacher saw."""
        return same_image(record.file_name, self.manifest.records[record.image_id])

    def _bytes(self, entry: Entry) -> bytes:
        shard, offset, length = entry.location
        if shard not in self._files:
            self._files[shard] = os.open(self.folder / shard, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._files[shard], length, offset)

    def _decode(self, image_id: str, task: str) -> Any:
        if task != self.manifest.task:
            raise ValueError(f"{self.folder} is a cache for {self.manifest.task}, not {task}")
        header, payload = self.read(image_id)
        try:
            return _DECODERS[task](header["data"], payload)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(image_id, error) from None

    def _damaged(self, image_id: str, error: Exception) -> UserError:
        entry = self.manifest.records[image_id]
        where = self.folder / entry.location.shard
        return UserError(
            f"{where}: the record of image {image_id} is damaged ({error}); {REBUILD}, with --resume"
        )


def verify(store: CacheStore, records: Iterable[Record] = ()) -> list[str]:
    """One line for every damaged record, and for every image of ``records`` that is missing or has
    changed."""
    problems = []
    for image_id in store.image_ids:
        try:
            store.get(image_id)
        except UserError as error:
            problems.append(str(error))
    for record in records:
        if record.image_id not in store:
            problems.append(f"{store.folder}: holds nothing for image {record.image_id}")
        elif not store.same_image(record):
            problems.append(f"{record.file_name}: image {record.image_id} has changed since it was cached")
    return problems
