"""Where a stream's images come from: records in the order of a plan, or the frames of a video or camera.

H, W: size of an image as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from fvcore.common.config import CfgNode

from scenekd.data.geometry import wider
from scenekd.data.images import image_files, read_image
from scenekd.data.records import Dataset, Record
from scenekd.data.transforms import Compose, build_transforms
from scenekd.errors import UserError
from scenekd.sample import Sample

CAMERA = re.compile(r"camera:(\d+)")


class Source(Protocol):
    """Images by position, which only ever rises by one, or jumps ahead when a run goes on.

    Attributes:
        length: samples that there are; 0 where nobody knows before the end.
    """

    length: int

    def read(self, position: int) -> tuple[str, np.ndarray] | None:
        """The id and the (H, W, 3) uint8 RGB image; None at the end.

        Raises:
            BadRecordError: this image cannot be read; the next may be.
        """
        ...


class RecordSource:
    """Images of data sets or folders.

    Args:
        records: the images. plan: (S,) the record of each position; None: one after the other.
    """

    def __init__(self, records: Sequence[Record], plan: np.ndarray | None = None) -> None:
        self._records, self._plan = records, plan
        self.length = len(records if plan is None else plan)

    def read(self, position: int) -> tuple[str, np.ndarray] | None:
        """See :class:`Source`."""
        if position >= self.length:
            return None
        record = self._records[position if self._plan is None else int(self._plan[position])]
        return record.image_id, read_image(record)


class VideoSource:
    """Frames of a video file or of a camera, by OpenCV. A camera's frames come as they are when they are read, and
    never again: a run that goes on sees later ones.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, source: str) -> None:
        camera = CAMERA.fullmatch(source)
        if camera is None and not Path(source).is_file():
            raise UserError(f"STREAM.SOURCE: {source}: no such file; name a folder, a video, or camera:N")
        self._live, self._name = camera is not None, source if camera else Path(source).stem
        self._capture = cv2.VideoCapture(int(camera[1]) if camera else source)
        if not self._capture.isOpened():
            how = "no such camera, or it is in use" if camera else "OpenCV cannot read it as a video"
            raise UserError(f"STREAM.SOURCE: {source}: {how}; name a folder of images or another source")
        self._next = 0
        self.length = 0

    def read(self, position: int) -> tuple[str, np.ndarray] | None:
        """See :class:`Source`.

        Raises:
            ValueError: a frame of a file that has been passed.
        """
        if not self._live:
            if position < self._next:
                raise ValueError(f"frame {position} comes before {self._next}")
            while self._next < position and self._capture.grab():
                self._next += 1
        good, frame = self._capture.read()
        if not good:
            return None
        self._next += 1
        return f"{self._name}_{position:08d}", np.ascontiguousarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def open_source(source: str) -> Source:
    """What ``STREAM.SOURCE`` names: a folder of images, by name, or a video or camera.

    Raises:
        UserError: nothing there, or it cannot be read.
    """
    if not Path(source).is_dir():
        return VideoSource(source)
    files = image_files([source])
    return RecordSource([Record(file.name, str(file)) for file in files])


@dataclass(frozen=True)
class CropMask:
    """Makes the mask of a crop's object, (1, H, W) uint8 as in :mod:`scenekd.data.instance_masks`, when it is asked.

    Args:
        dataset, record, number: whose box it was. window: (x1, y1, x2, y2) pixels that were cut out. prepare: what
            brought them to the network's input size.

    Raises:
        BadRecordError: when called: the masks cannot be read.
    """

    dataset: Dataset
    record: Record
    number: int
    window: tuple[int, int, int, int]
    prepare: Compose

    def __call__(self, size: tuple[int, int]) -> np.ndarray:
        x1, y1, x2, y2 = self.window
        whole = self.dataset.read_instance_masks(self.record)[self.number]
        cut = np.ascontiguousarray(whole[y1:y2, x1:x2])
        blank = Sample(image=np.zeros((*cut.shape, 3), np.uint8), image_id=self.record.image_id, sem_seg=cut)
        mask = self.prepare(blank, np.random.default_rng(0)).sem_seg
        if mask is None or mask.shape != tuple(size):
            raise ValueError(f"a crop's mask is at the network's input size, not {tuple(size)}")
        return mask[None]


def object_crops(dataset: Dataset, cfg: CfgNode) -> Dataset:
    """One record an object: its box, wider by ``STREAM.CROP_MARGIN`` of its longer side on each side as far as the
    image goes, at the network's input size, with the box's class. Difficult and small objects are left out.

    Raises:
        UserError: nothing is left.
        BadRecordError: an image cannot be read.
    """
    margin, least = cfg.STREAM.CROP_MARGIN, cfg.STREAM.CROP_MIN_SIDE
    prepare = build_transforms(cfg, train=False)
    crops: list[Record] = []
    for record in dataset.records:
        if record.boxes is None or record.labels is None or not len(record.boxes):
            continue
        image = read_image(record)
        extent = image.shape[1], image.shape[0]
        for number, (box, label) in enumerate(zip(record.boxes, record.labels)):
            side = float(max(box[2] - box[0], box[3] - box[1]))
            if side < least or (record.difficult is not None and record.difficult[number]):
                continue
            x1, y1, x2, y2 = wider(box, margin, *extent)
            cut = Sample(image=np.ascontiguousarray(image[y1:y2, x1:x2]), image_id=record.image_id)
            pixels = prepare(cut, np.random.default_rng(0)).image
            name = f"{record.image_id}_{number}"
            size = {"height": pixels.shape[0], "width": pixels.shape[1]}
            crop = Record(name, record.file_name, **size, class_label=int(label), pixels=pixels)
            if record.has_instance_masks:
                scale = np.array([pixels.shape[1] / (x2 - x1), pixels.shape[0] / (y2 - y1)] * 2)
                crop.boxes = ((box - [x1, y1, x1, y1]) * scale).astype(np.float32)[None]
                crop.labels = np.array([label], np.int64)
                crop.object_masks = CropMask(dataset, record, number, (x1, y1, x2, y2), prepare)
            crops.append(crop)
    if not crops:
        raise UserError(
            f"STREAM.OBJECT_CROPS: {dataset.name} has no object of {least:g} pixels or more; lower CROP_MIN_SIDE, or "
            "set OBJECT_CROPS False"
        )
    return Dataset(name=dataset.name, classes=dataset.classes, records=crops, groups=dataset.groups)
