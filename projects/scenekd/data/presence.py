"""Which classes a picture shows, from its boxes or its mask: the labels of multi-label classification.

C: object classes. Presence is (C,) int8: 1 shown, 0 not, and :data:`UNSURE` where only objects marked difficult are of
the class, which then counts neither way, as in VOC's classification task.
"""

from __future__ import annotations

import numpy as np

from .records import Dataset, Record

UNSURE = -1
SOURCES = ("boxes", "masks")


def presence_of(dataset: Dataset, record: Record, source: str) -> np.ndarray | None:
    """The presence of every class in a record's image; None where it has no such label.

    Args:
        source: ``boxes``, groups (crowds) among them; or ``masks``, where void tells nothing.

    Raises:
        ValueError: no such source. BadRecordError: the mask cannot be read.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    presence = np.zeros(len(dataset.classes), np.int8)
    if source == "boxes":
        if record.boxes is None or record.labels is None:
            return None
        difficult = np.zeros(len(record.labels), bool) if record.difficult is None else record.difficult
        presence[record.labels[difficult]] = UNSURE
        presence[record.labels[~difficult]] = 1
        return presence
    if not record.has_sem_seg:
        return None
    seen = np.unique(dataset.read_sem_seg(record)).astype(np.int64)
    presence[seen[(seen >= 1) & (seen <= len(dataset.classes))] - 1] = 1
    return presence
