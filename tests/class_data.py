"""Small data sets for classification, written to disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n02", "n01", "n03")


def write_cifar10(root: Path, train: int = 40, test: int = 20, seed: int = 0, *, names: bool = True) -> Path:
    """CIFAR-10's python batches with ``train`` images in two batches; a class is a colour, so that it can be learnt."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for name, count in (
        ("data_batch_1", train // 2),
        ("data_batch_2", train - train // 2),
        ("test_batch", test),
    ):
        labels = [i % 10 for i in range(count)]
        planes = np.array([[25 * k, 255 - 25 * k, 128] for k in labels])[:, :, None]
        data = np.clip(planes + rng.integers(-20, 21, (count, 3, 1024)), 0, 255).astype(np.uint8)
        batch = {"data": data.reshape(count, 3072), "labels": labels, "batch_label": name}
        if names:
            batch["filenames"] = [f"{name}_{i}.png" for i in range(count)]
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"label_names": [f"class{k}" for k in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def write_images(folder: Path, names: tuple[str, ...], size: int = 8, mode: str = "RGB") -> None:
    """Grey images of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new(mode, (size, size), 20 * i if mode == "L" else (20 * i,) * 3).save(folder / name)


def write_tiny_imagenet(root: Path) -> Path:
    """Two training images of each of three classes, two of which have the same first name; two images to validate."""
    folder = root / "tiny-imagenet-3"
    for wnid in WNIDS:
        write_images(folder / "train" / wnid / "images", (f"{wnid}_0.JPEG", f"{wnid}_1.JPEG"), mode="L")
    write_images(folder / "val" / "images", ("val_0.JPEG", "val_1.JPEG"))
    (folder / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn03\t0\t0\t7\t7\nval_1.JPEG\tn01\t1\t1\t6\t6\n"
    )
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01\tcrane, machine\nn02\tcrane\nn03\tteapot\nn99\tother\n")
    return folder
