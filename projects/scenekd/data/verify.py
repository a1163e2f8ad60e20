"""What is there of PASCAL VOC or COCO on this disk, what is missing, and how to get it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .catalog import load_dataset
from .sbd import write_list
from .voc_layout import find_list, find_voc_folder, read_list

VOC_SOURCE = (
    "http://host.robots.ox.ac.uk/pascal/VOC (VOCtrainval_11-May-2012.tar; VOCtrainval_06-Nov-2007.tar and "
    "VOCtest_06-Nov-2007.tar), unpack them into one folder and set --root to its VOCdevkit"
)
COCO_SOURCE = (
    "https://cocodataset.org/#download (train2017.zip, val2017.zip, annotations_trainval2017.zip), unpack "
    "them into one folder and set --root to it"
)
DETECTION_LIST = "trainval_minus_seg_val"
# Challenge lists by their own names; the many lists of single classes in Main are not looked at.
_LISTS = ("train", "val", "trainval", "test", DETECTION_LIST)

# COCO's own files of other kinds, by the beginning of their names.
_NO_INSTANCES = ("captions", "image_info", "panoptic", "person_keypoints", "stuff")


@dataclass
class Findings:
    """``lines`` to print, ``names`` of the data sets found, the first files that ``missing`` counts."""

    lines: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    missing: int = 0
    first: str = ""

    def lack(self, path: Path, count: int = 1) -> None:
        self.first = self.first or str(path)
        self.missing += count

    def check(self, source: str) -> None:
        """Raise a one-line error where files are missing."""
        if self.missing:
            raise UserError(f"{self.missing} listed files are missing, first {self.first}; get {source}")


def verify_voc(root: str | Path) -> list[tuple[Path, Findings]]:
    """Check every VOC folder at ``root`` (a VOCdevkit, a year's folder, or another folder of that layout).

    Raises:
        UserError: there is none.
    """
    folders: list[Path] = []
    if not Path(root).is_dir():
        raise UserError(f"--root: no such folder {root}; get PASCAL VOC from {VOC_SOURCE}")
    for year in ("2007", "2012", None):
        try:
            folder = find_voc_folder(str(root), year)
        except UserError as error:
            if year is None and not folders:
                looked = str(error).partition("; set ")[0]  # DATASETS.ROOT is no option of the tool
                raise UserError(f"{looked}; get it from {VOC_SOURCE}") from None
            continue
        if folder not in folders:
            folders.append(folder)
    return [(folder, _verify_folder(folder)) for folder in folders]


def _verify_folder(folder: Path) -> Findings:
    """Which ids of each list lack their picture, annotation or mask. A test list may lack its labels."""
    found = Findings()
    have = {
        name: {file.rsplit(".", 1)[0] for file in os.listdir(folder / name)}
        if (folder / name).is_dir()
        else set()
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug")
    }
    year = folder.name.removeprefix("VOC") if folder.name in ("VOC2007", "VOC2012") else ""
    found.lines.append(f"{'list':<40}{'ids':>8}{'no image':>10}{'no boxes':>10}{'no mask':>10}")
    for task, kind, label in (
        ("Main", "main", "Annotations"),
        ("Segmentation", "seg", "SegmentationClass"),
        ("Segmentation", "aug", "SegmentationClassAug"),
    ):
        for path in _lists(folder, task, kind):
            ids = set(read_list(path))
            masks = "SegmentationClassAug" if kind == "aug" else "SegmentationClass"
            lacking = {name: sorted(ids - have[name]) for name in ("JPEGImages", "Annotations", masks)}
            found.lines.append(
                f"{f'{task}/{path.stem}':<40}{len(ids):>8}"
                + "".join(f"{len(lacking[name]):>10}" for name in ("JPEGImages", "Annotations", masks))
            )
            for name, suffix in (("JPEGImages", "jpg"), (label, "xml" if kind == "main" else "png")):
                if lacking[name] and (name == "JPEGImages" or path.stem != "test"):
                    found.lack(folder / name / f"{lacking[name][0]}.{suffix}", len(lacking[name]))
            stem = path.stem.removesuffix("_aug") if kind == "aug" else path.stem
            found.names.append(f"voc{year}_{kind}_{stem}")
    if not found.names:
        raise UserError(f"{folder / 'ImageSets'}: no list in Main or Segmentation; get {VOC_SOURCE}")
    if not have["SegmentationClassAug"]:
        found.lines.append(
            "no SegmentationClassAug (not needed; prepare_data.py sbd makes it of SBD's masks)"
        )
    return found


def _lists(folder: Path, task: str, kind: str) -> list[Path]:
    """The lists to look at: VOC's own names, or all of them in a folder that has none of those."""
    there = sorted((folder / "ImageSets" / task).glob("*.txt"))
    if kind == "aug":
        return [path for path in there if path.stem.endswith("_aug")]
    there = [path for path in there if not path.stem.endswith("_aug")]
    return [path for path in there if path.stem in _LISTS] or there


def write_detection_list(folder: Path) -> tuple[Path, int]:
    """Write Main/trainval_minus_seg_val.txt: the detection trainval list without segmentation's val ids.

    Returns its path and length. Use it as ``voc_main_trainval_minus_seg_val``.
    """
    trainval = read_list(find_list(folder, "main", "trainval")[0])
    val = set(read_list(find_list(folder, "seg", "val")[0]))
    kept = [image_id for image_id in trainval if image_id not in val]
    path = folder / "ImageSets" / "Main" / f"{DETECTION_LIST}.txt"
    write_list(path, kept)
    return path, len(kept)


def verify_coco(root: str | Path) -> Findings:
    """Check the instances files in ``root``/annotations and the pictures that they name.

    Raises:
        UserError: there is no annotations folder, or no file of COCO's instances format in it.
    """
    folder = Path(root) / "annotations"
    found, other = Findings(), []
    for path in sorted(folder.glob("*.json")):
        if path.stem.startswith(_NO_INSTANCES):
            other.append(path.name)
            continue
        name = f"coco_{path.stem}"
        try:
            # Without masks: those that are stored may be of an older json.
            dataset = load_dataset(f"coco_det_{path.stem}", root=str(root), classes=(), on_error="skip")
        except UserError:
            other.append(path.name)
            continue
        lacking = [record.file_name for record in dataset.records if not os.path.isfile(record.file_name)]
        boxes = sum(len(record.labels) for record in dataset.records if record.labels is not None)
        found.lines.append(
            f"{path.name}: {len(dataset)} images, {len(lacking)} without a file, {boxes} boxes, "
            f"{len(dataset.classes)} classes, {len(dataset.skipped)} unusable"
        )
        found.names.append(name)
        if lacking:
            found.lack(Path(lacking[0]), len(lacking))
    if other:
        found.lines.append(f"not read, as they hold no instances: {', '.join(other)}")
    if not found.names:
        raise UserError(f"COCO not found: looked for instances json files in {folder}; get {COCO_SOURCE}")
    return found
