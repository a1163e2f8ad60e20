"""Where PASCAL VOC lies: the folder of a year, the lists of ids in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import UserError


def find_voc_folder(root: str, year: str | None = None) -> Path:
    """The folder with JPEGImages and ImageSets: ``root`` itself, VOC<year> in it, or in its VOCdevkit.

    Without ``root``: $DETECTRON2_DATASETS, ./datasets and ./data are searched. Without ``year``: 2012, or the
    only year there is.
    """
    roots = [Path(root)] if root else default_roots()
    looked: list[Path] = []
    for base in roots:
        same = base.parent / f"VOC{year}" if re.fullmatch(r"VOC\d{4}", base.name) and year else base
        candidates = [same] if same != base or _is_layout(base) else []
        for devkit in (base / "VOCdevkit", base):
            candidates += [devkit / f"VOC{year}"] if year else _years_in(devkit)
        looked += candidates
        found = next((folder for folder in candidates if _is_layout(folder)), None)
        if found is not None:
            return found
    where = ", ".join(dict.fromkeys(str(p) for p in looked))
    raise UserError(
        f"PASCAL VOC not found: looked for ImageSets and JPEGImages in {where}; "
        "set DATASETS.ROOT to a VOCdevkit or to a folder of VOC's layout"
    )


def default_roots() -> list[Path]:
    """The folders that are searched where ``DATASETS.ROOT`` is empty."""
    named = os.environ.get("DETECTRON2_DATASETS")
    return ([Path(named)] if named else []) + [Path("datasets"), Path("data")]


def _is_layout(folder: Path) -> bool:
    return (folder / "ImageSets").is_dir() and (folder / "JPEGImages").is_dir()


def _years_in(devkit: Path) -> list[Path]:
    others = [p for p in sorted(devkit.glob("VOC[0-9][0-9][0-9][0-9]")) if p.name != "VOC2012"]
    return [devkit / "VOC2012", *(others if len(others) == 1 else [])]


def find_list(folder: Path, kind: str, name: str) -> tuple[Path, bool]:
    """(path of the list, whether its second column tells the class's presence)."""
    sets = folder / "ImageSets"
    if kind == "main":
        candidates = [sets / "Main" / f"{name}.txt"]
    elif kind == "seg":
        candidates = [sets / "Segmentation" / f"{name}.txt"]
    else:
        candidates = [sets / "SegmentationAug" / f"{name}.txt", sets / "Segmentation" / f"{name}_aug.txt"]
        # VOC's own train list must not pass for the larger one of SBD.
        if name not in ("train", "trainval"):
            candidates.append(sets / "Segmentation" / f"{name}.txt")
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        there = sorted(p.stem for p in candidates[-1].parent.glob("*.txt"))
        raise UserError(
            f"no list {' or '.join(str(p) for p in candidates)}; "
            f"lists there: {', '.join(there[:12]) or 'none'}; set DATASETS.TRAIN or TEST to one of them"
        )
    return found, kind == "main"


def read_list(path: Path, flagged: bool = False) -> list[str]:
    """The ids of a list. ``flagged``: a class's list (``cat_train.txt``) marks those that lack it by −1."""
    ids = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and not (flagged and len(words) > 1 and words[1] == "-1"):
            ids.append(words[0])
    if not ids:
        raise UserError(f"{path}: the list is empty; put image ids into it, or choose another split")
    return list(dict.fromkeys(ids))
