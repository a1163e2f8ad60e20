"""What a data set is made of: records (one image each, with what is known of it) and the set itself.

N: boxes; C: object classes. Boxes are absolute xyxy, 0-based. Which labels exist is data: ``boxes`` is None,
or no mask is named, where the labels are missing; N = 0 means that the image was labelled and is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from ..errors import BadRecordError
from ..hidden import HiddenObject
from .images import image_size, read_sem_seg, voc_palette

T = TypeVar("T")


@dataclass
class Record:
    """One image.

    Attributes:
        image_id: unique in its data set; no path, no suffix.
        file_name: path of the image.
        height, width: pixels, or None where only the file knows; see :meth:`size`.
        boxes: (N, 4) float32, or None where the image has no box labels.
        labels: (N,) int64, 0…C−1. difficult: (N,) bool. crowd: (N,) bool, COCO's groups: never trained on,
            ignored in evaluation (they are marked difficult too).
        sem_seg_file: path of the mask, or None.
        segmentation: makes the mask where no file holds it: () → (H, W) uint8.
        object_masks: makes the masks of the boxes: (H, W) → (N, H, W) uint8, see :mod:`.instance_masks`; None
            where no box has one.
        class_label: of the whole image, 0…C−1, or None where it has none.
        pixels: (H, W, 3) uint8 RGB, the image itself where no file holds it alone; ``file_name`` says where it is
            from.
        hidden: the object that is hidden from the image, where it stands for one case of many of its picture.
        presence: (C,) int8, which classes the image shows (see :mod:`.presence`), where that is a task.
    """

    image_id: str
    file_name: str
    height: int | None = None
    width: int | None = None
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    difficult: np.ndarray | None = None
    crowd: np.ndarray | None = None
    sem_seg_file: str | None = None
    segmentation: Callable[[], np.ndarray] | None = None
    object_masks: Callable[[tuple[int, int]], np.ndarray] | None = None
    class_label: int | None = None
    pixels: np.ndarray | None = None
    hidden: HiddenObject | None = None
    presence: np.ndarray | None = None

    @property
    def has_boxes(self) -> bool:
        return self.boxes is not None

    @property
    def has_sem_seg(self) -> bool:
        return self.sem_seg_file is not None or self.segmentation is not None

    @property
    def has_instance_masks(self) -> bool:
        return self.boxes is not None and self.object_masks is not None

    @property
    def has_class_label(self) -> bool:
        return self.class_label is not None

    def has(self, task: str) -> bool:
        """Whether the image has ground truth of a task."""
        return {
            "detection": self.has_boxes,
            "segmentation": self.has_sem_seg,
            "instance_segmentation": self.has_instance_masks,
            "classification": self.has_class_label,
            "hidden_object": self.hidden is not None,
            "multi_label": self.presence is not None,
        }[task]

    def size(self) -> tuple[int, int]:
        """(height, width); read from the image's header where the annotation does not tell."""
        if self.height is None or self.width is None:
            self.height, self.width = image_size(self.file_name)
        return self.height, self.width


@dataclass
class Dataset:
    """Records of one or several data sets with one list of classes.

    Attributes:
        name: names joined by ``+``.
        classes: names of the C object classes, without background.
        records: one for each image, unique by image_id.
        palette: (256, 3) uint8 RGB, colour of each mask index.
        skipped: one line for each image left out (``ON_ERROR: skip``).
        clipped: boxes that reached over the image's border and were clipped to it.
        groups: name of the group of each class (CIFAR-100's superclasses); empty where there are none.
    """

    name: str
    classes: tuple[str, ...]
    records: list[Record]
    palette: np.ndarray = field(default_factory=voc_palette)
    skipped: list[str] = field(default_factory=list)
    clipped: int = 0
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def fill(self, items: Iterable[T], read: Callable[[T], tuple[Record, int]], on_error: str) -> None:
        """Add the record of each item; where ``on_error`` is ``skip``, unusable ones are noted in ``skipped``.

        Args:
            read: the record of an item and how many of its boxes were clipped.

        Raises:
            BadRecordError: an unusable item, where ``on_error`` is not ``skip``.
        """
        for item in items:
            try:
                record, clipped = read(item)
            except BadRecordError as error:
                if on_error != "skip":
                    raise
                self.skipped.append(str(error))
                continue
            self.records.append(record)
            self.clipped += clipped

    @property
    def image_ids(self) -> list[str]:
        return [record.image_id for record in self.records]

    def read_sem_seg(self, record: Record, size: tuple[int, int] | None = None) -> np.ndarray:
        """The record's mask, (H, W) uint8: 0 background, 1…C, 255 void.

        Args:
            size: (height, width) of the image, where it has been read already.

        Raises:
            BadRecordError: the mask cannot be read, has another size than the image, a colour outside the
                palette, or a value above C other than 255.
        """
        if record.segmentation is not None:
            return record.segmentation()
        if record.sem_seg_file is None:
            raise ValueError(f"{record.image_id} has no mask")
        return read_sem_seg(
            record.sem_seg_file, size or record.size(), num_classes=len(self.classes), palette=self.palette
        )

    def read_instance_masks(self, record: Record, size: tuple[int, int] | None = None) -> np.ndarray:
        """The masks of the record's boxes, (N, H, W) uint8, see :mod:`.instance_masks`.

        Args:
            size: (height, width) of the image, where it has been read already.

        Raises:
            BadRecordError: they cannot be read, or have another size than the image.
        """
        if record.object_masks is None:
            raise ValueError(f"{record.image_id} has no masks of objects")
        return record.object_masks(size or record.size())
