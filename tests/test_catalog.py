"""The catalog: names, concatenation, shares of labels, overlap, the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from voc_folder import add_list, bare_config, make_voc

from scenekd.data import catalog
from scenekd.data.catalog import (
    Dataset,
    Record,
    assert_disjoint,
    availability_report,
    load_dataset,
    load_datasets,
    register_loader,
)
from scenekd.data.subset import stable_subset
from scenekd.errors import UserError


def test_an_unknown_name_lists_the_forms() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'nonsense'.*voc\[YEAR\]_seg"):
        load_dataset("nonsense", bare_config())


def test_other_loaders_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_LOADERS", list(catalog._LOADERS))

    def load(name: str, root: str, classes: tuple[str, ...], on_error: str) -> Dataset:
        return Dataset(name, classes, [Record("x", "x.jpg")])

    register_loader(lambda name, root: name == "theirs", load)
    assert load_dataset("theirs", classes=("a",)).classes == ("a",)


def test_names_are_concatenated_and_an_image_is_taken_once(tmp_path: Path) -> None:
    make_voc(tmp_path)
    add_list(tmp_path, "Main", "some", ["a3", "a1"])
    add_list(tmp_path, "Segmentation", "half", ["a0", "a1"])
    cfg = bare_config(ROOT=str(tmp_path))
    dataset = load_datasets(("voc_seg_half", "voc_main_some"), cfg, train=False)
    assert dataset.image_ids == ["a0", "a1", "a3"]
    assert dataset.name == "voc_seg_half+voc_main_some"
    cfg.DATASETS.MAX_IMAGES = 1
    assert load_datasets(("voc_seg_half", "voc_main_some"), cfg, train=False).image_ids == ["a0", "a3"]


def test_one_id_for_two_images_is_refused(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC2007")
    make_voc(tmp_path / "VOC2012")
    with pytest.raises(UserError, match="image id 'a0' stands for"):
        load_datasets(
            ("voc2007_seg_train", "voc2012_seg_train"), bare_config(ROOT=str(tmp_path)), train=False
        )


def test_no_names_is_an_error() -> None:
    with pytest.raises(UserError, match="DATASETS.TRAIN"):
        load_datasets((), bare_config(), train=True)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.29, 0.5, 1.0])
def test_a_subset_has_the_exact_size_whatever_the_order(fraction: float) -> None:
    ids = [f"image{i}" for i in range(100)]
    chosen = stable_subset(ids, fraction, seed=3)
    assert len(chosen) == round(100 * fraction)
    assert chosen == stable_subset(reversed(ids), fraction, seed=3)
    assert chosen <= stable_subset(ids, min(1.0, fraction + 0.1), seed=3)
    if 0 < fraction < 1:
        assert chosen != stable_subset(ids, fraction, seed=4)


def test_a_fraction_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction"):
        stable_subset(["a"], 1.1, 0)


def test_labels_are_kept_on_a_share_of_the_training_images_only(tmp_path: Path) -> None:
    make_voc(tmp_path, count=20)
    cfg = bare_config(ROOT=str(tmp_path), KEEP_SEM_SEG=0.2, KEEP_BOXES=0.5)
    train = load_datasets(("voc_seg_train",), cfg, train=True)
    masks = {record.image_id for record in train.records if record.has_sem_seg}
    boxes = {record.image_id for record in train.records if record.has_boxes}
    assert (len(train), len(masks), len(boxes)) == (20, 4, 10)
    # the same ids when the list is read in another order
    add_list(tmp_path, "Segmentation", "train", [f"a{i}" for i in reversed(range(20))])
    again = load_datasets(("voc_seg_train",), cfg, train=True)
    assert masks == {record.image_id for record in again.records if record.has_sem_seg}
    test = load_datasets(("voc_seg_train",), cfg, train=False)
    assert all(record.has_sem_seg and record.has_boxes for record in test.records)


def test_images_without_labels_of_the_named_tasks_are_left_out(tmp_path: Path) -> None:
    """Masks stay on 4 of 20 images, boxes on 10: 4, 10, and those that have either."""
    make_voc(tmp_path, count=20)
    shares = {"ROOT": str(tmp_path), "KEEP_SEM_SEG": 0.2, "KEEP_BOXES": 0.5}
    every = load_datasets(("voc_seg_train",), bare_config(**shares), train=True).records
    for tasks, has in (
        (("segmentation",), lambda record: record.has_sem_seg),
        (("detection",), lambda record: record.has_boxes),
        (("segmentation", "detection"), lambda record: record.has_sem_seg or record.has_boxes),
    ):
        cfg = bare_config(**shares, REQUIRE_LABELS=tasks)
        found = load_datasets(("voc_seg_train",), cfg, train=True)
        assert found.image_ids == [record.image_id for record in every if has(record)]
        assert len(load_datasets(("voc_seg_train",), cfg, train=False)) == 20
    for tasks, words in (
        (("masks",), "'masks' is no task"),
        (("classification",), "none of the 20 training"),
    ):
        with pytest.raises(UserError, match=words):
            load_datasets(("voc_seg_train",), bare_config(**shares, REQUIRE_LABELS=tasks), train=True)


def test_a_share_out_of_range_names_the_key(tmp_path: Path) -> None:
    make_voc(tmp_path)
    with pytest.raises(UserError, match="DATASETS.KEEP_BOXES: 2.0"):
        load_datasets(("voc_seg_train",), bare_config(ROOT=str(tmp_path), KEEP_BOXES=2.0), train=True)


def test_overlap_is_refused() -> None:
    train = Dataset("train", ("a",), [Record("1", "1.jpg"), Record("2", "2.jpg")])
    test = Dataset("test", ("a",), [Record("2", "2.jpg"), Record("3", "3.jpg")])
    with pytest.raises(UserError, match=r"1 of the 2 test images of test are in train too \(2\)"):
        assert_disjoint(train, test)
    assert_disjoint(train, Dataset("test", ("a",), [Record("3", "3.jpg")]))


def test_the_report_counts_what_is_missing() -> None:
    def record(name: str, labels: list[int] | None, mask: bool) -> Record:
        known = labels is not None
        return Record(
            name,
            f"{name}.jpg",
            boxes=np.zeros((len(labels or []), 4), np.float32) if known else None,
            labels=np.asarray(labels, np.int64) if known else None,
            difficult=np.asarray([i == 0 for i in range(len(labels or []))], bool) if known else None,
            sem_seg_file="m.png" if mask else None,
        )

    records = [record("a", [0, 0, 1], True), record("b", [1], False), record("c", [], False)]
    records.append(record("d", None, True))
    rows = [
        line.split() for line in availability_report(Dataset("set", ("cat", "dog"), records)).splitlines()
    ]
    assert ["detection", "3", "1", "25.0"] in rows
    assert ["segmentation", "2", "2", "50.0"] in rows
    assert ["both", "1", "3", "75.0"] in rows
    # images, boxes, difficult: the first box of "a" (a cat) and of "b" (a dog) are difficult
    assert ["cat", "1", "2", "1"] in rows
    assert ["dog", "2", "2", "1"] in rows
    assert ["all", "3", "4", "2"] in rows
