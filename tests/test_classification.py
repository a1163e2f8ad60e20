"""Data sets for classification: CIFAR's batches, tiny-imagenet, folders; subsets; what the mapper makes of them."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from class_data import write_cifar10, write_images, write_tiny_imagenet
from tool_runner import ToolRunner
from voc_folder import bare_config

from scenekd.data.catalog import availability_report, load_dataset, load_datasets, with_class_names
from scenekd.data.images import read_image
from scenekd.data.mapper import Mapper
from scenekd.data.subset import stable_subset, subset_of_classes
from scenekd.data.transforms import PadCrop, Windows
from scenekd.errors import BadRecordError, UserError
from scenekd.sample import Sample


def test_cifar_batches_are_read_whole(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path, train=40, test=20)
    train = load_dataset("cifar10_train", root=str(tmp_path))
    assert len(train) == 40 and train.classes == tuple(f"class{k}" for k in range(10))
    # Row 3 of the second batch: the planes R, G, B one after another.
    batch = pickle.loads((folder / "data_batch_2").read_bytes())
    record = train.records[23]
    assert record.image_id == "train_data_batch_2_3" and record.class_label == 3 and record.size() == (32, 32)
    image = read_image(record)
    assert image[5, 7].tolist() == batch["data"][3].reshape(3, 32, 32)[:, 5, 7].tolist()
    image[:] = 0  # a copy: the record keeps its image
    assert read_image(record).any()
    assert load_dataset("cifar10_test", root=str(folder)).image_ids[0] == "test_test_batch_0"


def test_without_names_of_pictures_rows_are_ids(tmp_path: Path) -> None:
    write_cifar10(tmp_path, names=False)
    assert load_dataset("cifar10_train", root=str(tmp_path)).image_ids[21] == "data_batch_2_00001"


class _Calls:
    def __reduce__(self):
        return os.getenv, ("HOME",)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "x": _Calls()}, "names os.getenv"),
        ([1, 2], "holds a list"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, r"\(N, 3072\) uint8"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}, r"\(N, 3072\) uint8"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "a list of 2 numbers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "10, outside 0…9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, True]}, "True, outside"),
    ],
)
def test_a_batch_that_is_none_is_refused(tmp_path: Path, batch: object, message: str) -> None:
    """Nothing in it is run, whatever it names."""
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("cifar10_test", root=str(tmp_path))
    assert str(folder / "test_batch") in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "c")
    for file in folder.glob("data_batch_*"):
        file.unlink()
    with pytest.raises(UserError, match=r"no data_batch_\*; get cifar-10-batches-py from https"):
        load_dataset("cifar10_train", root=str(tmp_path / "c"))
    with pytest.raises(UserError, match="choose cifar10_train or cifar10_test"):
        load_dataset("cifar10_val", root=str(tmp_path / "c"))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": "cat"}))
    with pytest.raises(UserError, match="holds no label_names"):
        load_dataset("cifar10_test", root=str(tmp_path / "c"))
    for name, wanted in (("cifar100_test", "cifar-100-python"), ("folder_train", "DATASETS.ROOT")):
        with pytest.raises(UserError, match=wanted):
            load_dataset(name, root=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"wnids.txt.*tiny-imagenet-200.zip"):
        load_dataset("tiny_imagenet_val", root=str(tmp_path / "none"))


def test_superclasses_are_the_groups(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batch = {
        "data": np.zeros((4, 3072), np.uint8),
        "fine_labels": [0, 1, 2, 0],
        "coarse_labels": [1, 0, 1, 1],
    }
    (folder / "train").write_bytes(pickle.dumps(batch))
    meta = {"fine_label_names": ["apple", "bee", "corn"], "coarse_label_names": ["insect", "plant"]}
    (folder / "meta").write_bytes(pickle.dumps(meta))
    dataset = load_dataset("cifar100_train", root=str(tmp_path))
    assert dataset.groups == ("plant", "insect", "plant")
    chosen = load_dataset("cifar100_train", root=str(tmp_path), classes=("corn", "bee"))
    assert chosen.groups == ("plant", "insect") and [r.class_label for r in chosen.records] == [1, 0]
    rows = [line.split() for line in availability_report(dataset).splitlines()]
    assert ["classification", "4", "0", "0.0"] in rows and ["apple", "2", "plant"] in rows


def test_folders_number_their_classes_alike_in_every_split(tmp_path: Path) -> None:
    write_images(tmp_path / "train/cat", ("1.png", "2.jpg"))
    write_images(tmp_path / "train/ant", ("1.png",))
    write_images(tmp_path / "val/dog", ("1.png",))
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "val/dog/notes.txt").write_text("no image")
    train, val = (load_dataset(f"folder_{split}", root=str(tmp_path)) for split in ("train", "val"))
    assert train.classes == val.classes == ("ant", "cat", "dog")
    assert [(r.image_id, r.class_label) for r in train.records] == [
        ("train_ant_1", 0),
        ("train_cat_1", 1),
        ("train_cat_2", 1),
    ]
    assert [r.class_label for r in val.records] == [2]
    # CIFAR as pictures, under its own name
    assert load_dataset("cifar10_train", root=str(tmp_path)).image_ids == train.image_ids
    write_images(tmp_path / "train/cat", ("1.bmp",))
    with pytest.raises(UserError, match="'train_cat_1' stands for"):
        load_datasets(("folder_train",), bare_config(ROOT=str(tmp_path)), train=False)


def test_tiny_imagenet(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    train, val = (load_dataset(f"tiny_imagenet_{split}", root=str(tmp_path)) for split in ("train", "val"))
    # by wnid; one first word for two classes is told apart
    assert train.classes == val.classes == ("crane (n01)", "crane (n02)", "teapot")
    assert [r.class_label for r in train.records] == [0, 0, 1, 1, 2, 2]
    assert {r.image_id: r.class_label for r in val.records} == {"val_0": 2, "val_1": 0}
    assert read_image(train.records[1]).shape == (8, 8, 3)  # grey, as RGB
    write_images(folder / "test/images", ("test_0.JPEG",))
    test = load_dataset("tiny_imagenet_test", root=str(folder))
    assert [r.has_class_label for r in test.records] == [False]
    with pytest.raises(UserError, match="choose tiny_imagenet_train"):
        load_dataset("tiny_imagenet_all", root=str(folder))


@pytest.mark.parametrize("line", ["val_2.JPEG", "val_2.JPEG\tn77\t0", "../x.JPEG\tn01\t0"])
def test_a_bad_line_of_tiny_imagenet(tmp_path: Path, line: str) -> None:
    path = write_tiny_imagenet(tmp_path) / "val/val_annotations.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadRecordError, match="line 3 is not FILE, WNID"):
        load_dataset("tiny_imagenet_val", root=str(tmp_path))
    skipping = load_dataset("tiny_imagenet_val", root=str(tmp_path), on_error="skip")
    assert len(skipping) == 2 and len(skipping.skipped) == 1


def test_a_choice_of_classes_numbers_them_anew(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    chosen = load_dataset("cifar10_test", root=str(tmp_path), classes=("class7", "class2"))
    assert [r.class_label for r in chosen.records] == [1, 0, 1, 0]  # classes 2 and 7, of two images each
    with pytest.raises(UserError, match=r"CLASSES: cifar10_test has no class 'cat'; it has class0, "):
        load_dataset("cifar10_test", root=str(tmp_path), classes=("cat",))


def test_a_part_is_held_out_of_each_class(tmp_path: Path) -> None:
    write_cifar10(tmp_path, train=200)  # 20 of each class: 2 held, 18 left
    fit, held = (load_dataset(f"cifar10_train_{part}", root=str(tmp_path)) for part in ("fit", "held"))
    assert np.bincount([r.class_label for r in held.records]).tolist() == [2] * 10
    whole = load_dataset("cifar10_train", root=str(tmp_path)).image_ids
    assert sorted([*fit.image_ids, *held.image_ids]) == sorted(whole) and len(fit) == 180


def test_images_and_labels_by_class(tmp_path: Path) -> None:
    write_cifar10(tmp_path, train=80)
    cfg = bare_config(ROOT=str(tmp_path), IMAGES_PER_CLASS=4, KEEP_CLASS_LABELS=0.5)
    data = load_datasets(("cifar10_train",), cfg, train=True)
    assert len(data) == 40
    labelled = [r.class_label for r in data.records if r.has_class_label]
    assert np.bincount(labelled).tolist() == [2] * 10
    again = load_datasets(("cifar10_train",), cfg, train=True)
    assert [r.class_label for r in again.records] == [r.class_label for r in data.records]
    cfg.DATASETS.KEEP_SEED = 1
    other = load_datasets(("cifar10_train",), cfg, train=True)
    assert set(other.image_ids) != set(data.image_ids)
    assert len(load_datasets(("cifar10_train",), cfg, train=False)) == 80  # of training alone


def test_a_subset_of_classes_is_that_of_each_class() -> None:
    labels = {f"{i}": i % 2 for i in range(20)}
    odd = [i for i, label in labels.items() if label]
    chosen = subset_of_classes(labels, 5, fraction=0.3, salt="x")
    assert chosen & set(odd) == stable_subset(odd, 0.3, 5, "x") and len(chosen) == 6
    fewer, more = (subset_of_classes(labels, 5, number=n, salt="x") for n in (2, 3))
    assert fewer < more == chosen
    assert subset_of_classes(labels, 5, number=99) == set(labels)


def test_the_mapper_tells_the_class_and_whether_there_is_one(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    cfg = bare_config(ROOT=str(tmp_path))
    cfg.INPUT.SIZE = 32
    data = load_dataset("cifar10_test", cfg)
    image, target = Mapper(data, cfg, train=False)(4)
    # The image is not touched where it has the network's size.
    assert np.array_equal(image.permute(1, 2, 0).numpy(), data.records[4].pixels)
    assert (target.class_label, target.has_class_label) == (4, True)
    assert target.labelled_tasks() == {"classification"}
    data.records[4] = dataclasses.replace(data.records[4], class_label=None)
    target = Mapper(data, cfg, train=False)(4)[1]
    assert (target.class_label, target.has_class_label) == (None, False)
    assert target.labelled_tasks() == set()


def test_class_names_come_from_the_files(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    cfg = bare_config(ROOT=str(tmp_path), TEST=("cifar10_test",))
    named = with_class_names(cfg)
    assert len(named.DATASETS.CLASSES) == 10 and named.DATASETS.CLASSES[7] == "class7"
    assert not cfg.DATASETS.CLASSES
    cfg.DATASETS.CLASSES = ("class1",)
    assert with_class_names(cfg) is cfg
    cfg.DATASETS.TEST = ("voc_seg_val",)
    assert with_class_names(cfg) is cfg


def test_a_padded_crop_shifts_the_image() -> None:
    pixels = np.arange(1, 82, dtype=np.uint8).reshape(9, 9)
    image = np.repeat(pixels[..., None], 3, axis=2)
    seen = set()
    for seed in range(60):
        moved = Windows([PadCrop(1)])(Sample(image, "x"), np.random.default_rng(seed))
        # The pixel in the middle tells the shift: 41 is at (4, 4), rows are 9 apart.
        down, right = divmod(int(moved.image[4, 4, 0]) - 1, 9)
        down, right = down - 4, right - 4
        seen.add((down, right))
        assert moved.image.shape == (9, 9, 3)
        padded = np.pad(image.astype(int), ((1, 1), (1, 1), (0, 0)), constant_values=-1)
        window = padded[1 + down : 10 + down, 1 + right : 10 + right]
        inside = window >= 0
        assert np.array_equal(moved.image[inside], window[inside])
        assert (moved.image[~inside[..., 0]] == (123, 116, 103)).all()  # the mean colour
        assert moved.coordinates is None or np.allclose(
            moved.coordinates[0, 0], [(right + 0.5) / 9, (down + 0.5) / 9], atol=1e-6
        )
    assert len(seen) == 9  # all of −1, 0, 1 each way
    rng = np.random.default_rng(0)
    Windows([PadCrop(0)])(Sample(image, "x"), rng)
    assert rng.random() == np.random.default_rng(0).random()  # without padding nothing is drawn
    with pytest.raises(ValueError, match="pad"):
        PadCrop(-1)


def test_prepare_data_counts_classes_and_splits(tmp_path: Path, monkeypatch, capsys) -> None:
    run = ToolRunner("prepare_data", monkeypatch)
    folder = write_tiny_imagenet(tmp_path)
    assert run("tiny_imagenet", "--root", tmp_path, "--report") == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["teapot", "2", "1"] in rows and ["all", "6", "2"] in rows
    assert ["classification", "6", "0", "0.0"] in rows
    assert "not there: " in printed and "test/images: no such folder" in printed
    (folder / "val/images/val_1.JPEG").unlink()
    assert run("tiny_imagenet", "--root", tmp_path) == 2
    assert "1 listed files are missing, first" in capsys.readouterr().err
    write_cifar10(tmp_path, train=40)
    assert run("cifar10", "--root", tmp_path) == 0
    assert ["class3", "4", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert run("cifar100", "--root", tmp_path) == 2
    assert "cifar-100-python" in capsys.readouterr().err
    write_images(tmp_path / "sets/train/cat", ("1.png", "2.png"))
    assert run("folder", "--root", tmp_path / "sets") == 0
    assert ["cat", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert run("folder", "--root", tmp_path / "none") == 2
    assert "holds no folder <split>/<class>" in capsys.readouterr().err


def test_the_real_sets(test_data: Path) -> None:
    for name, folder, images, classes in (
        ("cifar10_test", "cifar10", 500, 10),
        ("cifar100_train", "cifar100", 10000, 100),
        ("cifar100_test", "cifar100", 2000, 100),
        ("tiny_imagenet_train", "tiny_imagenet", 1000, 20),
        ("tiny_imagenet_val", "tiny_imagenet", 400, 20),
    ):
        data = load_dataset(name, root=str(test_data / folder))
        counts = np.bincount([r.class_label for r in data.records], minlength=classes)
        assert len(data) == images and set(counts) == {images // classes}, name
    grey = [r for r in data.records if read_image(r).shape != (64, 64, 3)]
    assert not grey
