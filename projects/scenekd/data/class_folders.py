"""Images in folders by their class, and the layout of tiny-imagenet-200."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import BadRecordError, UserError
from .images import SUFFIXES
from .records import Dataset, Record

TINY_SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"

# The number of a class is its place in WordNet 3.0's file of nouns, which is sorted by WordNet's own topics (its
# lexicographer files): where each of those that have pictures begins, and where it ends.
_WORDNET = {
    "animal": (1_300_000, 2_660_000),
    "artifact": (2_660_000, 4_620_000),
    "food": (7_550_000, 7_940_000),
    "object": (9_180_000, 9_490_000),
    "person": (9_600_000, 10_800_000),
    "plant": (11_500_000, 13_200_000),
}


def read_folders(roots: Sequence[Path], split: str, advice: str = "") -> Dataset:
    """<root>/<split>/<class>/*.jpg (or another image format). The classes are those of all splits of the root, by
    name, so that a split that lacks one numbers them like the others.

    Args:
        advice: what else could be done where there is no such folder.

    Raises:
        UserError: no root has such a folder with images.
    """
    root = next((root for root in roots if _class_folders(root / split)), None)
    if root is None:
        looked = ", ".join(str(root / split) for root in roots)
        raise UserError(
            f"no folders of classes with images in {looked}; set DATASETS.ROOT to the folder above"
            + (f", or {advice}" if advice else "")
        )
    splits = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    names = tuple(sorted({one.name for folder in splits for one in _class_folders(folder)}))
    records = [
        Record(f"{split}_{folder.name}_{file.stem}", str(file), class_label=names.index(folder.name))
        for folder in _class_folders(root / split)
        for file in sorted(folder.iterdir())
        if _is_image(file)
    ]
    return Dataset(name=f"folder_{split}", classes=names, records=records)


def _class_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that hold images."""
    if not folder.is_dir():
        return []
    inside = (one for one in sorted(folder.iterdir()) if one.is_dir())
    return [one for one in inside if any(_is_image(file) for file in one.iterdir())]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def read_tiny_imagenet(roots: Sequence[Path], split: str, on_error: str = "raise") -> Dataset:
    """train/<wnid>/images/*, val/images/* with val_annotations.txt, test/images/* without labels; wnids.txt lists the
    classes, which are numbered in the order of their wnids; words.txt names them. Their ``groups`` are WordNet's
    topics.

    Raises:
        UserError: no such folder, or no such split in it.
        BadRecordError: a line of val_annotations.txt that cannot be read, where ``on_error`` is not ``skip``.
    """
    folder = find_tiny_imagenet(roots)
    wnids = sorted(set(_text(folder / "wnids.txt").split()))
    places = {wnid: label for label, wnid in enumerate(wnids)}
    groups = [_topic(wnid) for wnid in wnids]
    dataset = Dataset(
        name=f"tiny_imagenet_{split}",
        classes=_names(folder, wnids),
        records=[],
        groups=tuple(groups) if all(groups) else (),
    )
    if split == "train":
        for wnid, label in places.items():
            files = _images(folder / "train" / wnid / "images")
            dataset.records += [Record(file.stem, str(file), class_label=label) for file in files]
    elif split == "val":
        _read_val(dataset, folder / "val", places, on_error)
    elif split == "test":
        dataset.records += [Record(file.stem, str(file)) for file in _images(folder / "test" / "images")]
    else:
        raise UserError(f"tiny_imagenet_{split}: no such split; choose tiny_imagenet_train, val or test")
    return dataset


def find_tiny_imagenet(roots: Sequence[Path]) -> Path:
    """The folder with wnids.txt: one of ``roots``, or a folder in it whose name begins with tiny-imagenet.

    Raises:
        UserError: there is none.
    """
    candidates = [folder for root in roots for folder in (root, *sorted(root.glob("tiny-imagenet*")))]
    found = next((folder for folder in candidates if (folder / "wnids.txt").is_file()), None)
    if found is None:
        raise UserError(
            f"tiny-imagenet not found: looked for wnids.txt in {', '.join(map(str, candidates))}; get {TINY_SOURCE} "
            "and set DATASETS.ROOT to the unpacked folder"
        )
    return found


def _read_val(dataset: Dataset, folder: Path, places: dict[str, int], on_error: str) -> None:
    path = folder / "val_annotations.txt"

    def read(numbered: tuple[int, str]) -> tuple[Record, int]:
        number, line = numbered
        match = re.fullmatch(r"([^/\\\t]+)\t(\S+)(?:\t.*)?", line)
        if match is None or match[2] not in places:
            raise BadRecordError(
                f"{path}: line {number} is not FILE, WNID of wnids.txt, box; mend or delete it"
            )
        file = folder / "images" / match[1]
        return Record(file.stem, str(file), class_label=places[match[2]]), 0

    dataset.fill(enumerate(_text(path).splitlines(), start=1), read, on_error)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; get {TINY_SOURCE}, or choose another split")
    return [file for file in sorted(folder.iterdir()) if _is_image(file)]


def _names(folder: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """The first word of each class in words.txt; with its wnid where another class has the same, alone where it has
    none."""
    path = folder / "words.txt"
    rows = (line.split("\t", 1) for line in _text(path).splitlines()) if path.is_file() else iter(())
    words = {row[0]: row[1].split(",")[0].strip() for row in rows if len(row) == 2}
    names = [words.get(wnid, wnid) for wnid in wnids]
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids))


def _topic(wnid: str) -> str:
    """WordNet's topic of a noun, such as n02124075; empty where it is none of those that have pictures."""
    if re.fullmatch(r"n\d{8}", wnid) is None:
        return ""
    number = int(wnid[1:])
    return next((name for name, (first, end) in _WORDNET.items() if first <= number < end), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; get {TINY_SOURCE}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; get {TINY_SOURCE}") from None
