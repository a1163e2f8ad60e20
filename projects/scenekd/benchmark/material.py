"""Dense teacher outputs for the benchmark: a real teacher's where there is real data, else synthetic ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..data.catalog import load_dataset
from ..data.records import Dataset, Record
from ..data.scenes import SCENES_CLASSES
from ..data.voc import VOC_CLASSES
from ..sample import SoftSegmentation
from ..teachers.codec import DEFAULT_SETTINGS
from ..teachers.folder import read_top_classes
from ..teachers.manifest import Manifest
from ..teachers.protocol import TeacherOutput
from .options import VOC_SIZE, Options


class Example(NamedTuple):
    """One image's dense output."""

    image_id: str
    file_name: str
    soft: SoftSegmentation


def manifest(task: str, classes: tuple[str, ...], name: str) -> Manifest:
    """For a cache of made-up or converted outputs."""
    codec = {name: getattr(DEFAULT_SETTINGS, name) for name in ("step", "max_step", "max_kl")}
    teacher = {"type": "benchmark", "name": name, "form": "logits" if task == "segmentation" else ""}
    if task == "detection":
        return Manifest(task=task, classes=classes, teacher=teacher, max_boxes=100)
    return Manifest(task=task, classes=classes, teacher=teacher, codec=codec)


def voc_images(options: Options) -> Dataset:
    """Images at VOC's usual size: the real ``voc_mini`` or, without it, scenes."""
    if options.data is not None:
        return load_dataset("voc_seg_train", root=str(options.data / "voc_mini" / "VOCdevkit"))
    root = options.scenes(options.pick(40, 10, 2), VOC_SIZE)
    return load_dataset("voc_seg_train", root=str(root), classes=SCENES_CLASSES)


def synthetic_outputs(records: list[Record], stride: int) -> Iterator[Example]:
    """Random logits that vary slowly over the image, background in the lead, on a grid of ``stride``."""
    for seed, record in enumerate(records):
        height, width = record.size()
        grid = (math.ceil(height / stride), math.ceil(width / stride))
        values = _smooth(np.random.default_rng(seed), len(VOC_CLASSES) + 1, grid, 4.0)
        values[0] += 4
        yield Example(record.image_id, record.file_name, SoftSegmentation(values, "logits"))


def saved_outputs(pool: Path, records: list[Record]) -> Iterator[Example]:
    """The real teacher's, as saved: the four likeliest classes of each cell, the rest spread evenly."""
    for record in records:
        path = pool / "TeacherSegmentation" / f"{record.image_id}.npz"
        if path.is_file():
            yield Example(record.image_id, record.file_name, read_top_classes(path, len(VOC_CLASSES)))


def finer_outputs(pool: Path, records: list[Record], stride: int) -> Iterator[Example]:
    """The real teacher's on a grid of ``stride``. The classes that were not saved get smooth random tails and
    every value a little noise, as what is saved is rounded: otherwise packing would be too easy."""
    for seed, (record, example) in enumerate(zip(records, saved_outputs(pool, records))):
        rng = np.random.default_rng(seed)
        values = example.soft.values
        unsaved = values == np.sort(values, axis=0)[: len(values) - 4].max(0)
        tails = _smooth(rng, len(values), values.shape[1:], 1.5) + rng.normal(size=values.shape) * 0.15
        values = (values + unsaved * tails + rng.normal(size=values.shape) * 0.05).astype(np.float32)
        height, width = record.size()
        size = (math.ceil(width / stride), math.ceil(height / stride))
        finer = np.stack([cv2.resize(plane, size) for plane in values])
        yield Example(example.image_id, example.file_name, SoftSegmentation(finer, "logits"))


def _smooth(rng: np.random.Generator, planes: int, grid: tuple[int, ...], amplitude: float) -> np.ndarray:
    coarse = rng.normal(size=(planes, 6, 8)).astype(np.float32) * amplitude
    fine = [cv2.resize(plane, grid[::-1], interpolation=cv2.INTER_CUBIC) for plane in coarse]
    return np.stack(fine) + rng.normal(size=(planes, *grid)).astype(np.float32) * 0.05


def made_up_outputs(dataset: Dataset, boxes: int, stride: int) -> Iterator[tuple[str, str, TeacherOutput]]:
    """For ``write_cache``: ``boxes`` boxes an image, near its own and anywhere, and logits from its mask."""
    for seed, record in enumerate(dataset.records):
        rng = np.random.default_rng(seed)
        height, width = record.size()
        own = record.boxes if record.boxes is not None and len(record.boxes) else np.zeros((1, 4), np.float32)
        labels = record.labels if record.labels is not None and len(record.labels) else np.zeros(1, np.int64)
        pick = rng.integers(0, len(own), boxes)
        corners = own[pick] + rng.normal(scale=0.1 * width, size=(boxes, 4))
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 8)
        corners = np.clip(corners, 0, [width, height, width, height])
        mask = dataset.read_sem_seg(record)
        grid = (math.ceil(width / stride), math.ceil(height / stride))
        planes = [cv2.resize((mask == k).astype(np.float32), grid) for k in range(len(dataset.classes) + 1)]
        logits = 6 * np.stack(planes) + rng.normal(size=(len(planes), *grid[::-1])) * 0.2
        soft = SoftSegmentation(logits.astype(np.float32), "logits")
        scores = rng.random(boxes) ** 3  # few are sure
        yield record.image_id, record.file_name, TeacherOutput(corners, labels[pick], scores, soft)
