"""Helpers of the data tests: small folders in VOC's layout, and a bare configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image

from scenekd.config import add_scenekd_config
from scenekd.data.images import voc_palette

Object = tuple[str, tuple[float, float, float, float]]


def bare_config(**datasets: object) -> CfgNode:
    """The keys that the data code reads, without a system."""
    cfg = CfgNode()
    cfg.SEED = 0
    cfg.SOLVER = CfgNode({"IMS_PER_BATCH": 8})
    add_scenekd_config(cfg)
    for key, value in datasets.items():
        cfg.DATASETS[key] = value
    return cfg


def annotation(objects: Iterable[Object], size: tuple[int, int] | None = (40, 60)) -> str:
    """VOC XML; ``size`` is (height, width), boxes are written as they are given (1-based)."""
    text = "<annotation>"
    if size is not None:
        text += f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    for name, (x0, y0, x1, y1) in objects:
        text += (
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    return text + "</annotation>"


def add_image(
    folder: Path,
    image_id: str,
    xml: str | None = None,
    mask: np.ndarray | None = None,
    *,
    size: tuple[int, int] = (40, 60),
    masks: str = "SegmentationClass",
) -> None:
    """One image of random noise with what labels are given."""
    for name in ("JPEGImages", "Annotations", masks):
        (folder / name).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(image_id)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "JPEGImages" / f"{image_id}.jpg")
    if xml is not None:
        (folder / "Annotations" / f"{image_id}.xml").write_text(xml)
    if mask is not None:
        indexed = Image.fromarray(mask.astype(np.uint8), mode="P")
        indexed.putpalette(voc_palette().ravel().tolist())
        indexed.save(folder / masks / f"{image_id}.png")


def add_list(folder: Path, kind: str, name: str, ids: Iterable[str]) -> None:
    """ImageSets/<kind>/<name>.txt."""
    path = folder / "ImageSets" / kind / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in ids))


def make_voc(folder: Path, count: int = 4) -> Path:
    """``count`` images a0, a1, … with one box (class i mod 20) and a mask, in Segmentation/train.txt."""
    from scenekd.data.voc import VOC_CLASSES

    for i in range(count):
        mask = np.zeros((40, 60), np.uint8)
        mask[9:30, 19:50] = i % 20 + 1
        add_image(folder, f"a{i}", annotation([(VOC_CLASSES[i % 20], (20, 10, 50, 30))]), mask)
    add_list(folder, "Segmentation", "train", [f"a{i}" for i in range(count)])
    return folder
