"""CIFAR-10 and CIFAR-100 in their python batches (Krizhevsky, Learning Multiple Layers of Features, 2009).

A batch is a pickle of {data: (N, 3072) uint8, the planes R, G, B of 32×32 pixels; labels or fine_labels: N numbers;
filenames, coarse_labels where told}. It is read without running code from it (:mod:`scenekd.array_pickle`).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..array_pickle import load_array_pickle
from ..errors import UserError
from .records import Dataset, Record

SIDE = 32  # pixels


@dataclass(frozen=True)
class Layout:
    """The files of one of the two: folder, file of the names, keys, and the pattern of each split's batches."""

    folder: str
    meta: str
    names: str
    labels: str
    splits: dict[str, str]

    @property
    def advice(self) -> str:
        """Where the files are to be had."""
        return f"get {self.folder} from https://www.cs.toronto.edu/~kriz/cifar.html (python version)"


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        "batches.meta",
        "label_names",
        "labels",
        {"train": "data_batch_*", "test": "test_batch"},
    ),
    "cifar100": Layout(
        "cifar-100-python", "meta", "fine_label_names", "fine_labels", {"train": "train", "test": "test"}
    ),
}


def find_batches(kind: str, roots: Sequence[Path]) -> Path | None:
    """The folder of the batches: one of ``roots``, or the folder of the usual name in it; None without one."""
    layout = LAYOUTS[kind]
    candidates = [folder for root in roots for folder in (root, root / layout.folder)]
    return next((folder for folder in candidates if (folder / layout.meta).is_file()), None)


def read_batches(kind: str, folder: Path, split: str) -> Dataset:
    """A split with its images in memory; CIFAR-100's superclasses are the ``groups`` of its classes.

    Raises:
        UserError: no such split, or a file that is missing or not a batch.
    """
    layout = LAYOUTS[kind]
    if split not in layout.splits:
        raise UserError(f"{kind}_{split}: no such split; choose {kind}_train or {kind}_test")
    meta = _read(folder / layout.meta)
    classes = _names(meta, layout.names, folder / layout.meta)
    files = sorted(folder.glob(layout.splits[split]))
    if not files:
        raise UserError(f"{folder}: holds no {layout.splits[split]}; {layout.advice}")
    dataset = Dataset(name=f"{kind}_{split}", classes=classes, records=[])
    coarse: dict[int, int] = {}
    names: list[str] = []
    for file in files:
        batch = _read(file)
        dataset.records += _records(file, batch, layout.labels, len(classes))
        coarse |= zip(batch[layout.labels], batch.get("coarse_labels", ()))
        names += (Path(str(name)).stem for name in batch.get("filenames", ()))
    if len(set(names)) == len(dataset):  # the pictures' own names, which a part of the set keeps
        for record, name in zip(dataset.records, names):
            record.image_id = f"{split}_{name}"
    if len(coarse) == len(classes):
        groups = _names(meta, "coarse_label_names", folder / layout.meta)
        dataset.groups = tuple(groups[coarse[label]] for label in range(len(classes)))
    return dataset


def _read(file: Path) -> dict[str, Any]:
    try:
        content = load_array_pickle(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: not a batch of CIFAR's ({error}); it is not loaded") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a batch of CIFAR's, it holds a {type(content).__name__}; replace it")
    return content


def _names(meta: dict[str, Any], key: str, file: Path) -> tuple[str, ...]:
    names = meta.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: holds no {key}; replace it")
    return tuple(names)


def _records(file: Path, batch: dict[str, Any], key: str, num_classes: int) -> list[Record]:
    data, labels = batch.get("data"), batch.get(key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIDE * SIDE,):
        raise UserError(f"{file}: data must be (N, {3 * SIDE * SIDE}) uint8; replace it")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise UserError(f"{file}: {key} must be a list of {len(data)} numbers; replace it")
    for label in labels:
        if type(label) is not int or not 0 <= label < num_classes:
            raise UserError(f"{file}: {key} holds {label!r}, outside 0…{num_classes - 1}; replace it")
    images = np.ascontiguousarray(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
    return [
        Record(f"{file.name}_{row:05d}", f"{file}#{row}", SIDE, SIDE, class_label=label, pixels=image)
        for row, (label, image) in enumerate(zip(labels, images))
    ]
