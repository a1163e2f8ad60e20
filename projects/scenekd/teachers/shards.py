"""Shard files: records one after the other, written once, never changed.

A record is a fixed prefix, a JSON header and a payload:

    magic (4 bytes) · header length · payload length · CRC-32 of header · of payload · of the prefix so far

Each process writes shards of its own, and a resumed run begins new ones, so that a torn record at the end of
a killed run stays where it is and is passed over. Reading trusts nothing: lengths are checked before memory
is asked for.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError

MAGIC = b"SKD1"
_PREFIX = struct.Struct("<4s4I")
_CHECK = struct.Struct("<I")
PREFIX_SIZE = _PREFIX.size + _CHECK.size
MAX_HEADER = 1 << 20
_NAME = re.compile(r"shard-(\d{3,6})-(\d{3,6})\.skd", re.ASCII)


class DamagedRecord(ValueError):
    """The bytes of a record are not those that were written."""


class Location(NamedTuple):
    """Where a record lies: shard's file name, offset and length in bytes."""

    shard: str
    offset: int
    length: int


def is_shard_name(name: str) -> bool:
    """Whether ``name`` is one that :class:`ShardWriter` gives: never a path."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def shard_files(folder: Path) -> list[Path]:
    """The shards of a cache folder, oldest first."""
    named = [(match, path) for path in folder.glob("shard-*.skd") if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(named, key=lambda pair: [int(part) for part in pair[0].groups()])]


def next_run(folder: Path) -> int:
    """A number for the shards of a new run, above all that are there."""
    matches = [_NAME.fullmatch(path.name) for path in shard_files(folder)]
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def pack_record(header: dict[str, Any], payload: bytes) -> bytes:
    """A record's bytes."""
    head = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    prefix = _PREFIX.pack(MAGIC, len(head), len(payload), zlib.crc32(head), zlib.crc32(payload))
    return b"".join((prefix, _CHECK.pack(zlib.crc32(prefix)), head, payload))


def unpack_record(record: bytes) -> tuple[dict[str, Any], bytes]:
    """``(header, payload)`` of exactly one record; :class:`DamagedRecord` where any byte differs."""
    length = record_length(record)
    if length != len(record):
        raise DamagedRecord("it is cut short" if length > len(record) else "it has another length")
    _, head_size, _, head_crc, payload_crc = _PREFIX.unpack_from(record)
    head, payload = record[PREFIX_SIZE : PREFIX_SIZE + head_size], record[PREFIX_SIZE + head_size :]
    if zlib.crc32(head) != head_crc or zlib.crc32(payload) != payload_crc:
        raise DamagedRecord("its checksum does not match")
    return json.loads(head), payload


def record_length(data: bytes) -> int:
    """Length that the prefix at the start of ``data`` states; :class:`DamagedRecord` where it is none."""
    if len(data) < PREFIX_SIZE:
        raise DamagedRecord("it is cut short")
    magic, head_size, payload_size, _, _ = _PREFIX.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _PREFIX.size)
    if magic != MAGIC or zlib.crc32(data[: _PREFIX.size]) != check or head_size > MAX_HEADER:
        raise DamagedRecord("its checksum does not match")
    return PREFIX_SIZE + head_size + payload_size


def scan(path: Path) -> Iterator[tuple[Location, dict[str, Any]]]:
    """Every whole record of a shard with its header; what is torn or damaged is passed over."""
    size = path.stat().st_size
    if size < PREFIX_SIZE:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = data.find(MAGIC)
        while offset >= 0:
            try:
                length = record_length(data[offset : offset + PREFIX_SIZE])
                header, _ = unpack_record(data[offset : offset + length])
            except ValueError:
                offset = data.find(MAGIC, offset + 1)
                continue
            yield Location(path.name, offset, length), header
            offset = data.find(MAGIC, offset + length)


class ShardWriter:
    """Appends records to a new shard; every record is handed to the operating system at once."""

    def __init__(self, folder: Path, run: int, process: int):
        self.path = folder / f"shard-{run:03d}-{process:03d}.skd"
        self._file = self.path.open("xb", buffering=0)

    def write(self, header: dict[str, Any], payload: bytes) -> None:
        """Append one record; a UserError where the disk is full."""
        record = memoryview(pack_record(header, payload))
        try:
            while record:
                record = record[self._file.write(record) or 0 :]
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write: {error.strerror}; what is written is kept, go on with --resume"
            ) from None

    def close(self) -> None:
        """Bring the bytes to the disk; an empty shard is removed."""
        if self._file.closed:
            return
        os.fsync(self._file.fileno())
        empty = self._file.tell() == 0
        self._file.close()
        if empty:
            self.path.unlink()
