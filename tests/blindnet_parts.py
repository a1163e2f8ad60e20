"""Helpers of blindnet's tests: a configuration, and data sets in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scenekd.config import load_config
from scenekd.data.records import Dataset, Record

FOLDER = Path(__file__).parents[1] / "projects" / "blindnet"
CLASSES = ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")


def blind_config(*overrides: object, file: str = "scenes.yaml"):
    """``scenes.yaml`` with keys over it, on the CPU, 64 pixels."""
    plain = ["MODEL.DEVICE", "cpu", "INPUT.SIZE", "64", "DATALOADER.NUM_WORKERS", "0"]
    return load_config(FOLDER / file, [*plain, *map(str, overrides)])


def picture(
    image_id: str, objects: Sequence[tuple[int, Sequence[float]]], size=(64, 64), **options
) -> Record:
    """A noisy image in memory with (label, box) objects."""
    pixels = np.random.default_rng(len(image_id)).integers(0, 256, (*size, 3), dtype=np.uint8)
    count = len(objects)
    given = {"difficult": np.zeros(count, bool), "crowd": np.zeros(count, bool)} | options
    return Record(
        image_id,
        f"pool/JPEGImages/{image_id}.jpg",
        *size,
        boxes=np.array([box for _, box in objects], np.float32).reshape(-1, 4),
        labels=np.array([label for label, _ in objects], np.int64),
        pixels=pixels,
        **given,
    )


def dataset(*records: Record) -> Dataset:
    return Dataset("pool", CLASSES, list(records))
