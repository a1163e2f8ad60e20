"""Image, ground truth, teacher and students in one row, and what is wrong with each below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..data.images import read_image
from ..data.records import Dataset, Record
from ..report_panels import Picture, with_ground_truth
from ..view import View
from ..visualize import SIDE, panel
from .sources import Source

WIDTH = 1240  # pixels of a whole picture: what a page shows without making it smaller
_GAP, _LEAST = 8, 170  # pixels


def compare_pictures(
    dataset: Dataset, records: Sequence[Record], sources: Sequence[Source]
) -> Iterator[Picture]:
    """A panel of each record: the image, its ground truth, and one column a source with its mask and an error map."""
    for record in records:
        image = read_image(record)
        views = [
            View(source.name, sem_seg=source.label_map(record, image).astype("uint8")) for source in sources
        ]
        truth, *others = with_ground_truth(dataset, record, views)
        truth.boxes = truth.labels = truth.class_label = None  # of other tasks
        height, width = image.shape[:2]
        room = min(SIDE, max(_LEAST, WIDTH // (len(sources) + 2) - _GAP))  # for a tile's width
        pixels = panel(
            image,
            [truth, *others],
            dataset.classes,
            title=record.image_id,
            palette=dataset.palette,
            side=room if width >= height else min(SIDE, round(room * height / width)),
            errors=True,
        )
        yield Picture(record.image_id, pixels)
