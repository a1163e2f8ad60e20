"""Saved outputs of teachers that tell the truth, as TEACHER.<TASK>.TYPE folder reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from scenekd.data.records import Dataset, Record
from scenekd.teachers.protocol import Detections
from scenekd.teachers.thesis_files import write_detections


def save_boxes(folder: Path, data: Dataset, records: Iterable[Record], score: float) -> Path:
    """The records' own boxes, each of confidence ``score``."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        found = Detections.build(record.boxes, record.labels, np.full(len(record.boxes), score))
        write_detections(
            folder / f"{record.image_id}.xml", found, data.classes, filename=f"{record.image_id}.jpg"
        )
    return folder


def save_masks(folder: Path, data: Dataset, records: Iterable[Record], stride: int = 1) -> Path:
    """The records' own masks (void as background) as sure outputs, every ``stride``-th pixel."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        mask = data.read_sem_seg(record)[::stride, ::stride].copy()
        mask[mask == 255] = 0
        total = np.zeros(mask.shape, np.float32)
        np.savez_compressed(
            folder / f"{record.image_id}.npz", classes=mask[None], logits=total[None] - 0.01, logsumexp=total
        )
    return folder
