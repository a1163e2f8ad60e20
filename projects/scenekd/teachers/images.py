"""The state of an image file, by which a cache knows that an image has changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..errors import BadRecordError
from .manifest import Entry


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def image_state(path: str | Path) -> dict[str, Any]:
    """Size in pixels and bytes, hash and time of change: the fields of :class:`~.manifest.Entry`."""
    path = Path(path)
    status = path.stat()
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise BadRecordError(f"{path}: not an image") from None
    return {
        "height": height,
        "width": width,
        "image_bytes": status.st_size,
        "image_sha256": file_sha256(path),
        "image_mtime_ns": status.st_mtime_ns,
    }


def same_image(path: str | Path, entry: Entry) -> bool:
    """Whether a file is the one of ``entry``. Its hash is computed only where its time of change differs."""
    try:
        status = Path(path).stat()
    except OSError:
        return False
    if status.st_size != entry.image_bytes:
        return False
    return status.st_mtime_ns == entry.image_mtime_ns or file_sha256(path) == entry.image_sha256
