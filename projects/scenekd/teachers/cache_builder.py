"""Making a teacher cache: ask once for every image, then train as often as one likes.

:class:`CacheBuilder` holds the folder, :func:`encode_output` makes a record, :func:`write_cache` does all of
it in one process.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.records import Record
from ..errors import UserError
from .cache import CacheStore
from .codec import (
    CodecSettings,
    encode_detections,
    encode_instances,
    encode_segmentation,
)
from .images import image_state, same_image
from .manifest import FILE_NAME, Entry, Manifest, read_manifest
from .protocol import TeacherOutput
from .shards import ShardWriter, next_run, scan, shard_files

# A dense record aims at this share of a float32 array of the image's size.
TARGET_SHARE = 0.005


def encode_output(
    output: TeacherOutput, manifest: Manifest, image_id: str, state: Mapping[str, Any]
) -> tuple[dict[str, Any], bytes]:
    """Header and payload of an image's record; ``state`` is :func:`~.images.image_state` of its file."""
    if manifest.task == "detection":
        detections = output.detections
        if detections is None:
            raise ValueError("the teacher gave no boxes")
        data, payload = encode_detections(detections.keep(manifest.min_score, manifest.max_boxes or None))
    elif manifest.task == "instance_segmentation":
        instances = output.instances
        if instances is None:
            raise ValueError("the teacher gave no masks")
        data, payload = encode_instances(instances.keep(manifest.min_score, manifest.max_boxes or None))
    else:
        if output.segmentation is None:
            raise ValueError("the teacher gave no dense output")
        if len(output.segmentation.values) != len(manifest.classes) + 1:
            raise ValueError("a dense output has one plane a class, and background")
        dense = 4 * len(output.segmentation.values) * state["height"] * state["width"]
        settings = CodecSettings(**manifest.codec)
        data, payload = encode_segmentation(output.segmentation, settings, TARGET_SHARE * dense)
    header = {"image_id": image_id, "identity": manifest.identity, "image": dict(state), "data": data}
    return header, payload


class CacheBuilder:
    """Makes a cache, or goes on with one. Holds a lock on the folder: use it as a context manager.

    ``done`` are the whole records that are there. A killed run loses the record it was writing, no other.

    Raises:
        UserError: another run writes here, or what is here was made by another teacher or for other classes.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, *, rebuild: bool = False):
        self.folder, self.manifest = Path(folder), manifest
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"{self.folder}: another process is writing this cache; wait for it") from None
        try:
            self._prepare(rebuild)
        except BaseException:
            self._lock.close()
            raise

    def _prepare(self, rebuild: bool) -> None:
        if rebuild:
            for path in [*shard_files(self.folder), *self.folder.glob(FILE_NAME)]:
                path.unlink()
        elif (self.folder / FILE_NAME).exists():
            found = read_manifest(self.folder)
            if found.identity != self.manifest.identity:
                raise UserError(
                    f"{self.folder}: made with another {self.manifest.difference(found)}; "
                    "run tools/cache_teacher.py --rebuild with this config, or set another folder"
                )
        self.run = next_run(self.folder)
        self.done = self._index()

    def __enter__(self) -> CacheBuilder:
        return self

    def __exit__(self, *unused: object) -> None:
        self._lock.close()

    def forget_changed(self, records: Iterable[Record]) -> None:
        """Drop the records of images that are no longer what the teacher saw."""
        for record in records:
            entry = self.done.get(record.image_id)
            if entry is not None and not same_image(record.file_name, entry):
                del self.done[record.image_id]

    def begin(self) -> None:
        """Write the manifest of an unfinished cache."""
        self.manifest.complete, self.manifest.records = False, {}
        self.manifest.write(self.folder)

    def writer(self, process: int = 0) -> ShardWriter:
        """A new shard for one process."""
        return ShardWriter(self.folder, self.run, process)

    def finish(self, wanted: Iterable[str]) -> None:
        """Write the index; a UserError where an image of ``wanted`` has no record."""
        index = self._index()
        missing = [image_id for image_id in wanted if image_id not in index]
        if missing:
            raise UserError(
                f"{self.folder}: {len(missing)} images are missing (first: {missing[0]}); go on with --resume"
            )
        self.manifest.records, self.manifest.complete = index, True
        self.manifest.write(self.folder)

    def _index(self) -> dict[str, Entry]:
        """All whole records; of several for one image the newest."""
        index, identity = {}, self.manifest.identity
        for path in shard_files(self.folder):
            for location, header in scan(path):
                if header.get("identity") != identity:
                    raise UserError(
                        f"{path}: made by another teacher or for other classes; "
                        "run tools/cache_teacher.py --rebuild with this config, or set another folder"
                    )
                index[header["image_id"]] = Entry(location, **header["image"])
        return index


def write_cache(
    folder: str | Path, manifest: Manifest, outputs: Iterable[tuple[str, str | Path, TeacherOutput]]
) -> CacheStore:
    """A whole cache in one process, from (image id, image file, output) triples."""
    with CacheBuilder(folder, manifest) as builder:
        builder.begin()
        writer = builder.writer()
        wanted = []
        try:
            for image_id, file_name, output in outputs:
                wanted.append(image_id)
                if image_id not in builder.done:
                    writer.write(*encode_output(output, manifest, image_id, image_state(file_name)))
        finally:
            writer.close()
        builder.finish(wanted)
    return CacheStore(folder)
