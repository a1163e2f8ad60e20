"""Data sets for classification by name, one class an image.

``cifar10_<split>``, ``cifar100_<split>``: the python batches (:mod:`.cifar`), else folders of classes.
``tiny_imagenet_<split>``: the layout of tiny-imagenet-200. ``folder_<split>``: <ROOT>/<split>/<class>/*.jpg (both
:mod:`.class_folders`).

``<name>_held`` is a tenth of the images of each class of a split, chosen by their ids, and ``<name>_fit`` the rest:
``cifar100_train_fit`` to train and ``cifar100_train_held`` to choose settings, without a look at the test set.
``<name>_half1`` and ``<name>_half2`` are two halves of each class, chosen likewise: a teacher's, and a stream's.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

from ..errors import UserError
from .cifar import LAYOUTS, find_batches, read_batches
from .class_folders import read_folders, read_tiny_imagenet
from .records import Dataset, Record
from .subset import subset_of_classes
from .voc_layout import default_roots

HELD = 0.1  # share of each class

_NAME = re.compile(r"(cifar10|cifar100|tiny_imagenet|folder)_(.+?)(?:_(fit|held|half1|half2))?")

logger = logging.getLogger(__name__)


def is_classification_name(name: str) -> bool:
    """Whether the name is of the form above."""
    return _NAME.fullmatch(name) is not None


def load_classification(
    name: str, root: str = "", classes: tuple[str, ...] = (), on_error: str = "raise"
) -> Dataset:
    """The data set ``name``; with ``classes`` only images of these, labelled in their order.

    Raises:
        UserError: nothing found, files of another format, or a class it does not have.
        BadRecordError: a broken annotation, where ``on_error`` is not ``skip``.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no name of a data set for classification")
    kind, split, part = match.groups()
    dataset = _read(kind, split, [Path(root)] if root else default_roots(), on_error)
    dataset = _choose(dataset, classes) if classes else dataset
    records = _part(dataset, part) if part else dataset.records
    if not records:
        raise UserError(f"{name}: holds no image below {root or 'the default folders'}; set DATASETS.ROOT")
    return dataclasses.replace(dataset, name=name, records=records)


def _read(kind: str, split: str, roots: list[Path], on_error: str) -> Dataset:
    if kind == "tiny_imagenet":
        return read_tiny_imagenet(roots, split, on_error)
    if kind in LAYOUTS:
        folder = find_batches(kind, roots)
        if folder is not None:
            return read_batches(kind, folder, split)
    return read_folders(roots, split, LAYOUTS[kind].advice if kind in LAYOUTS else "")


def _choose(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """Only the images of ``classes``, and those without a class."""
    places = {name: place for place, name in enumerate(dataset.classes)}
    for name in classes:
        if name not in places:
            known = ", ".join(dataset.classes[:8]) + (", …" if len(dataset.classes) > 8 else "")
            raise UserError(f"DATASETS.CLASSES: {dataset.name} has no class {name!r}; it has {known}")
    new = {places[name]: label for label, name in enumerate(classes)}
    records = [
        record
        if record.class_label is None
        else dataclasses.replace(record, class_label=new[record.class_label])
        for record in dataset.records
        if record.class_label is None or record.class_label in new
    ]
    if len(records) < len(dataset):
        logger.info("%s: %d images of classes outside CLASSES", dataset.name, len(dataset) - len(records))
    groups = tuple(dataset.groups[places[name]] for name in classes) if dataset.groups else ()
    return dataclasses.replace(dataset, classes=tuple(classes), records=records, groups=groups)


def _part(dataset: Dataset, part: str) -> list[Record]:
    labels = {r.image_id: r.class_label for r in dataset.records if r.class_label is not None}
    halves = part.startswith("half")
    chosen = subset_of_classes(labels, 0, fraction=0.5 if halves else HELD, salt="half" if halves else "held")
    return [
        record for record in dataset.records if (record.image_id in chosen) == (part in ("held", "half1"))
    ]
