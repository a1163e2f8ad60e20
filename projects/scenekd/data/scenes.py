"""The **scenes** data set: synthetic pictures in PASCAL VOC's folder layout, made from a seed.

    ROOT/JPEGImages/<id>.jpg                 RGB
    ROOT/Annotations/<id>.xml                boxes, 1-based and inclusive as in VOC
    ROOT/SegmentationClass/<id>.png          palette PNG: 0 background, 1 + index of the class
    ROOT/SegmentationObject/<id>.png         palette PNG: 0 background, 1 + index of the object in the XML
    ROOT/ImageSets/{Main,Segmentation}/<split>.txt
    ROOT/ClassProbabilities/<split>.jsonl    one line an image, see :func:`read_class_probabilities`
    ROOT/scenes.json                         what the data set was made from

Boxes are the tight bounds of what can be seen of an object. An object of which less than a quarter is seen
(the rest is cut off or hidden) is marked ``difficult``; one that could hardly be seen at all makes the layout
be drawn again with the same classes, so that no object is ever missing from the annotation.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from .scenes_draw import Picture, draw_scene
from .scenes_files import FOLDERS, write_voc_image
from .scenes_layout import draw_layout
from .scenes_model import CLASSES, SCENES, SceneObject, class_probabilities, draw_classes

SCENES_CLASSES = CLASSES
DEFAULT_SIZE = (128, 160)
MANIFEST = "scenes.json"
VERSION = 1  # raised by every change that alters the pictures or their labels
DIFFICULT_BELOW = 0.25  # share of an object's pixels that is seen
_REDRAW_BELOW, _REDRAW_PIXELS = 0.08, 16
_REDRAWS = 20
_SMALLEST = 48  # image side
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass
class Scene:
    """One picture and everything known about it; per object in the order of the annotation."""

    scene: int
    objects: list[SceneObject]
    picture: Picture
    visible: list[float]


def draw_random_scene(rng: np.random.Generator, size: tuple[int, int] = DEFAULT_SIZE) -> Scene:
    """Draw one scene of ``size`` (H, W)."""
    scene, labels, zones = draw_classes(rng)
    for _ in range(_REDRAWS):
        objects = draw_layout(rng, scene, labels, zones, size)
        picture = draw_scene(rng, scene, objects, size)
        seen = np.bincount(picture.instances.ravel(), minlength=len(objects) + 1)[1:]
        visible = [float(s) / max(c, 1) for s, c in zip(seen, picture.covered)]
        if min(visible) >= _REDRAW_BELOW and seen.min() >= _REDRAW_PIXELS:
            return Scene(scene, objects, picture, visible)
    raise RuntimeError(f"no layout of {len(labels)} objects fits into {size}")


def generate_scenes(
    root: str | Path,
    *,
    splits: Mapping[str, int],
    seed: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    border: int = 0,
    progress: bool = True,
) -> bool:
    """Make the data set at ``root``, or leave it as it is where it was made from the same arguments.

    An image depends on the seed, its split's name, its index and the size alone, so a longer split begins
    with the images of a shorter one. The folder appears when it is complete: a killed run leaves nothing at
    ``root``.

    Args:
        splits: number of images of each split.
        size: (height, width) in pixels.
        border: width of the void rim (255) around objects in the masks, 0 for none.

    Returns:
        True where it was made, False where it was there already.

    Raises:
        UserError: ``root`` holds something else, or scenes from other arguments.
    """
    root = Path(root)
    manifest = _manifest(splits, seed, size, border)
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent):
        if _is_made(root, manifest):
            return False
        partial = root.parent / f".{root.name}.partial"
        if partial.exists():  # left by a killed run: nobody else works on it, as we hold the lock
            shutil.rmtree(partial)
        try:
            _write_all(partial, manifest, progress)
            os.replace(partial, root)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return True


def _manifest(splits: Mapping[str, int], seed: int, size: tuple[int, int], border: int) -> dict[str, Any]:
    for name, count in splits.items():
        if not _SPLIT_NAME.fullmatch(name):
            raise UserError(f"split {name!r}: use letters, digits, '.', '_' and '-' in its name")
        if count < 1:
            raise UserError(f"split {name}: {count} images; ask for at least 1")
    if not splits:
        raise UserError("no split asked for; name at least one, for example train=2000")
    if seed < 0 or border < 0 or min(size) < _SMALLEST:
        raise UserError(
            f"scenes: seed {seed}, border {border}, size {size[0]}x{size[1]}; "
            f"seed and border must not be negative, both sides at least {_SMALLEST}"
        )
    return {
        "generator": "scenekd.data.scenes",
        "version": VERSION,
        "seed": int(seed),
        "size": [int(side) for side in size],
        "border": int(border),
        "splits": {name: int(count) for name, count in splits.items()},
        "classes": list(CLASSES),
        "scenes": [scene.name for scene in SCENES],
    }


def _is_made(root: Path, manifest: dict[str, Any]) -> bool:
    """Whether ``root`` holds exactly this data set; an error where it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        there = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{root}: exists, but is no scenes data set; choose another folder") from None
    differing = [key for key in manifest if not isinstance(there, dict) or there.get(key) != manifest[key]]
    if differing:
        raise UserError(
            f"{root}: holds scenes made with other {', '.join(differing)}; remove it or choose another folder"
        )
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make data sets in ``folder``; the lock goes with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write_all(folder: Path, manifest: dict[str, Any], progress: bool) -> None:
    for name in (*FOLDERS, "ImageSets/Main", "ImageSets/Segmentation", "ClassProbabilities"):
        (folder / name).mkdir(parents=True)
    total = sum(manifest["splits"].values())
    with tqdm(total=total, desc="scenes", unit="image", disable=not progress) as bar:
        for split, count in manifest["splits"].items():
            lines = []
            for index in range(count):
                lines.append(_write_one(folder, manifest, split, index))
                bar.update()
            ids = "".join(f"{_image_id(split, index)}\n" for index in range(count))
            for task in ("Main", "Segmentation"):
                (folder / "ImageSets" / task / f"{split}.txt").write_text(ids, encoding="utf-8")
            (folder / "ClassProbabilities" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _image_id(split: str, index: int) -> str:
    return f"{split}_{index:06d}"


def _write_one(folder: Path, manifest: dict[str, Any], split: str, index: int) -> str:
    """Draw and write one image; return its line of class probabilities."""
    rng = np.random.default_rng([manifest["seed"], zlib.crc32(split.encode()), index])
    height, width = manifest["size"]
    drawn = draw_random_scene(rng, (height, width))
    image_id = _image_id(split, index)
    write_voc_image(
        folder,
        image_id,
        drawn.picture.image,
        drawn.picture.instances,
        [CLASSES[thing.label] for thing in drawn.objects],
        [thing.label for thing in drawn.objects],
        [share < DIFFICULT_BELOW for share in drawn.visible],
        [_leaves(thing.box, height, width) for thing in drawn.objects],
        manifest["border"],
    )
    return json.dumps(_probability_record(image_id, drawn)) + "\n"


def _leaves(box: tuple[float, float, float, float], height: int, width: int) -> bool:
    return box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height


def _probability_record(image_id: str, drawn: Scene) -> dict[str, Any]:
    objects = []
    for index, thing in enumerate(drawn.objects):
        probabilities = class_probabilities(drawn.scene, drawn.objects, index)
        objects.append(
            {
                "class": CLASSES[thing.label],
                "visible": round(drawn.visible[index], 4),
                "whole_box": [round(value, 2) for value in thing.box],
                **{name: [round(float(p), 6) for p in values] for name, values in probabilities.items()},
            }
        )
    return {"image_id": image_id, "scene": SCENES[drawn.scene].name, "objects": objects}


def read_class_probabilities(root: str | Path, split: str) -> dict[str, dict[str, Any]]:
    """True class probabilities of every object of a split, by image id; objects in the order of the XML.

    A record holds ``scene`` and ``objects``; each object its ``class``, ``visible`` (share of it that is
    seen), ``whole_box`` (0-based xyxy, before anything is cut off or hidden) and four lists over
    ``SCENES_CLASSES``: ``given_scene``, ``given_objects``, ``given_scene_and_zone`` and
    ``given_scene_and_box``, explained at
    :func:`scenekd.data.scenes_model.class_probabilities`.
    """
    path = Path(root) / "ClassProbabilities" / f"{split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; make the data set with tools/prepare_data.py scenes"
        ) from None
    records = [json.loads(line) for line in lines]
    return {record["image_id"]: record for record in records}
