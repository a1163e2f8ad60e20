"""SBD (Hariharan et al. 2011) put into PASCAL VOC's layout, as the larger training set of segmentation.

SBD's ``cls/<id>.mat`` hold masks for images of VOC 2012, most of which VOC itself did not segment.
``SegmentationClassAug/<id>.png`` is VOC's own mask where there is one, else SBD's, else void (255) all over.
``ImageSets/Segmentation/train_aug.txt`` is VOC's train list and both lists of SBD without VOC's val list
(10,582 ids for the whole of both); ``trainval_aug.txt`` is that with VOC's val list.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import BadRecordError, UserError
from ..sample import IGNORE_INDEX
from .images import image_size
from .scenes_files import write_mask
from .voc_layout import find_list, find_voc_folder, read_list

_HINT = "set --sbd to the unpacked benchmark_RELEASE (benchmark.tgz of SBD)"
_NUM_CLASSES = 20


@dataclass
class SbdSummary:
    """What :func:`prepare_sbd` did. The first three count masks by origin, whether written now or before."""

    from_voc: int = 0
    from_sbd: int = 0
    void: int = 0
    written: int = 0
    without_image: int = 0
    train_aug: int = 0
    trainval_aug: int = 0


def find_sbd_folder(root: str | Path) -> Path:
    """The folder with ``cls`` and the lists: ``root``, or ``[benchmark_RELEASE/]dataset`` in it."""
    candidates = [Path(root) / part for part in ("benchmark_RELEASE/dataset", "dataset", ".")]
    found = next((folder for folder in candidates if (folder / "cls").is_dir()), None)
    if found is None:
        raise UserError(f"SBD not found: looked for cls/ in {', '.join(map(str, candidates))}; {_HINT}")
    return found


def read_sbd_mask(path: str | Path) -> np.ndarray:
    """The class mask of a GTcls file, (H, W) uint8: 0 background, 1…20.

    Raises:
        BadRecordError: missing, damaged, or no GTcls file.
    """
    from scipy.io import loadmat  # slow to import

    try:
        content = loadmat(str(path), variable_names=["GTcls"])
        mask = np.asarray(content["GTcls"]["Segmentation"][0, 0])
    except FileNotFoundError:
        raise BadRecordError(f"{path}: no such file; {_HINT}") from None
    # loadmat has no error of its own: a damaged file ends in whatever its bytes lead to.
    except Exception as error:
        raise BadRecordError(f"{path}: no readable GTcls file ({error}); unpack SBD again") from None
    if mask.ndim != 2 or mask.size == 0 or not np.isin(np.unique(mask), np.arange(_NUM_CLASSES + 1)).all():
        raise BadRecordError(f"{path}: GTcls.Segmentation is no mask of 0…{_NUM_CLASSES}; unpack SBD again")
    return mask.astype(np.uint8)


def prepare_sbd(sbd: str | Path, voc: str | Path, *, progress: bool = True) -> SbdSummary:
    """Write SegmentationClassAug and the two lists into a VOC folder; see the module.

    A mask that is there already stays, so a run that was ended goes on where it stopped. A void mask is made
    again once a source for it exists. Ids without a picture in JPEGImages are counted and left out.

    Args:
        sbd: see :func:`find_sbd_folder`.
        voc: a VOCdevkit, or a folder of VOC's layout.

    Raises:
        UserError: a folder or list is missing.
        BadRecordError: a file is damaged, or a mask has another size than its image.
    """
    source, target = find_sbd_folder(sbd), find_voc_folder(str(voc))
    summary = SbdSummary()
    train, val = _ids(source, target)
    pictures = {name.rsplit(".", 1)[0]: name for name in os.listdir(target / "JPEGImages")}
    wanted = [image_id for image_id in [*train, *val] if image_id in pictures]
    summary.without_image = len(train) + len(val) - len(wanted)
    (target / "SegmentationClassAug").mkdir(exist_ok=True)
    for image_id in tqdm(wanted, desc="SegmentationClassAug", unit="mask", disable=not progress):
        _prepare_one(source, target, image_id, target / "JPEGImages" / pictures[image_id], summary)
    train_aug = [image_id for image_id in train if image_id in pictures]
    summary.train_aug, summary.trainval_aug = len(train_aug), len(wanted)
    write_list(target / "ImageSets" / "Segmentation" / "train_aug.txt", train_aug)
    write_list(target / "ImageSets" / "Segmentation" / "trainval_aug.txt", sorted(wanted))
    return summary


def _ids(source: Path, target: Path) -> tuple[list[str], list[str]]:
    """(train_aug, VOC's val), sorted and disjoint."""
    val = set(read_list(find_list(target, "seg", "val")[0]))
    union = set(read_list(find_list(target, "seg", "train")[0]))
    for name in ("train", "val"):
        path = source / f"{name}.txt"
        if not path.is_file():
            raise UserError(f"{path}: SBD's list is missing; {_HINT}")
        union |= set(read_list(path))
    return sorted(union - val), sorted(val)


def _prepare_one(source: Path, target: Path, image_id: str, picture: Path, summary: SbdSummary) -> None:
    """Make one mask unless it is there, and count its origin."""
    path = target / "SegmentationClassAug" / f"{image_id}.png"
    own = target / "SegmentationClass" / f"{image_id}.png"
    theirs = source / "cls" / f"{image_id}.mat"
    if own.is_file():
        summary.from_voc += 1
    elif theirs.is_file():
        summary.from_sbd += 1
    else:
        summary.void += 1
    has_source = own.is_file() or theirs.is_file()
    if path.is_file() and not (has_source and _is_void(path)):
        return
    if own.is_file():
        _replace(path, lambda temporary: shutil.copyfile(own, temporary))
    else:
        size = image_size(str(picture))
        mask = read_sbd_mask(theirs) if theirs.is_file() else np.full(size, IGNORE_INDEX, np.uint8)
        if mask.shape != size:
            raise BadRecordError(
                f"{theirs}: mask is {mask.shape[1]}×{mask.shape[0]}, its image {size[1]}×{size[0]}; "
                "unpack SBD and VOC again"
            )
        _replace(path, lambda temporary: write_mask(temporary, mask))
    summary.written += 1


def _is_void(path: Path) -> bool:
    with Image.open(path) as mask:
        return bool((np.asarray(mask) == IGNORE_INDEX).all())


def write_list(path: Path, ids: list[str]) -> None:
    """Write a list of ids, one a line; never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda temporary: temporary.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then give it its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
