"""What is there of a data set for classification: images of each class and split, files that are missing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import UserError
from .catalog import load_dataset
from .cifar import LAYOUTS
from .class_folders import TINY_SOURCE
from .records import Dataset
from .verify import Findings

SPLITS = {
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "tiny_imagenet": ("train", "val", "test"),
}


def verify_classes(kind: str, root: str | Path) -> tuple[Findings, str]:
    """Check the splits of ``kind`` (of :data:`SPLITS`, or ``folder``: each folder of ``root``) below ``root``.

    Returns:
        What was found, with a table of the images of each class; and where the data are to be had.

    Raises:
        UserError: none of the splits is there.
    """
    source = LAYOUTS[kind].advice.removeprefix("get ") if kind in LAYOUTS else TINY_SOURCE
    found, sets, problems = Findings(), {}, []
    folders = Path(root).glob("*/") if kind == "folder" else ()
    for split in SPLITS.get(kind, sorted(folder.name for folder in folders)):
        try:
            sets[split] = load_dataset(f"{kind}_{split}", root=str(root), classes=(), on_error="skip")
        except UserError as error:
            problems.append(str(error))
    if not sets:
        raise UserError(problems[0] if problems else f"{root}: holds no folder <split>/<class> with images")
    for dataset in sets.values():
        found.names.append(dataset.name)
        lacking = [
            r.file_name for r in dataset.records if r.pixels is None and not os.path.isfile(r.file_name)
        ]
        if lacking:
            found.lack(Path(lacking[0]), len(lacking))
        found.lines += [f"{dataset.name}: {line}" for line in dataset.skipped]
        found.lines.append(
            f"{dataset.name}: {len(dataset)} images, {len(lacking)} without a file, {len(dataset.skipped)} unusable"
        )
    found.lines += [f"not there: {problem}" for problem in problems] + class_table(sets)
    return found, source


def class_table(sets: dict[str, Dataset]) -> list[str]:
    """Images of each class (rows) and split (columns)."""
    classes = next(iter(sets.values())).classes
    counts = [
        np.bincount(
            [r.class_label for r in data.records if r.class_label is not None], minlength=len(classes)
        )
        for data in sets.values()
    ]
    rows = [*zip(classes, zip(*counts)), ("all", [count.sum() for count in counts])]
    table = [("class", tuple(sets)), *rows]
    return [
        f"{name:<24}" + "".join(f" {cell:>{max(9, len(s))}}" for s, cell in zip(sets, row))
        for name, row in table
    ]
