"""The manifest of a cache: whose outputs these are, of which images, and where each record lies.

It is written at the start without records (``complete`` false), so that a resumed run knows what it goes on
with, and at the end with the index of all records. It carries a checksum over itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from .protocol import SAVED_TASKS
from .shards import Location, is_shard_name

FORMAT = 1
FILE_NAME = "manifest.json"
REBUILD = "run tools/cache_teacher.py with this config to rebuild it"


@dataclass(frozen=True)
class Entry:
    """One record: where it lies, and the image it was made from (size in pixels and bytes, SHA-256, time)."""

    location: Location
    height: int
    width: int
    image_bytes: int
    image_sha256: str
    image_mtime_ns: int


@dataclass
class Manifest:
    """See the module. ``teacher`` holds TeacherInfo's fields, ``class_map`` the teacher's classes → ours."""

    task: str
    classes: tuple[str, ...]
    teacher: dict[str, Any]
    class_map: dict[str, str] = field(default_factory=dict)
    codec: dict[str, float] = field(default_factory=dict)
    min_score: float = 0.0
    max_boxes: int = 0
    library: str = __version__
    complete: bool = False
    records: dict[str, Entry] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Short hash of everything that shapes a record. Each record carries it, and only equals are
        joined."""
        return _hash([FORMAT, *self._shaping().values()])[:16]

    def _shaping(self) -> dict[str, Any]:
        """What shapes a record: not where the weights lie, nor what is known of their training."""
        names = ("task", "classes", "class_map", "codec", "min_score", "max_boxes")
        teacher = {k: v for k, v in self.teacher.items() if k not in ("source", "trained_on")}
        return {"teacher": teacher} | {name: getattr(self, name) for name in names}

    def difference(self, other: Manifest) -> str:
        """Names of what differs in ``other``, for an error message; "" where nothing does."""
        theirs = other._shaping()
        return ", ".join(name for name, value in self._shaping().items() if value != theirs[name])

    def write(self, folder: Path) -> None:
        """Write to a temporary name, then rename."""
        body = dataclasses.asdict(self) | {"format": FORMAT}
        body["records"] = {
            image_id: [*e.location, e.height, e.width, e.image_bytes, e.image_sha256, e.image_mtime_ns]
            for image_id, e in sorted(self.records.items())
        }
        temporary = folder / f"{FILE_NAME}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"checksum": _hash(body), "manifest": body}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / FILE_NAME)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache folder; a UserError where it is missing, damaged or of another format."""
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no teacher cache here; run tools/cache_teacher.py with this config to make it"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: damaged; delete it and {REBUILD}") from None
    try:
        outer = json.loads(text)
        body = outer["manifest"]
        if outer["checksum"] != _hash(body):
            raise ValueError("checksum")
        if body.pop("format") != FORMAT:
            raise UserError(f"{path}: made by SceneKD {body.get('library')}, whose format differs; {REBUILD}")
        return _parse(body)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: damaged; delete it and {REBUILD}") from None


def _parse(body: dict[str, Any]) -> Manifest:
    if body["task"] not in SAVED_TASKS:
        raise ValueError("task")
    rows = body.pop("records")
    records = {}
    for image_id, (shard, offset, length, height, width, size, digest, mtime) in rows.items():
        if not is_shard_name(shard) or int(offset) < 0 or int(length) <= 0:
            raise ValueError("shard")
        location = Location(shard, int(offset), int(length))
        records[image_id] = Entry(location, int(height), int(width), int(size), str(digest), int(mtime))
    body["classes"] = tuple(body["classes"])
    return Manifest(**body, records=records)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
