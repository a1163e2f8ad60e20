"""Class-id masks of COCO that are stored beforehand, and COCO's 91 ids as classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_coco import CROWD, _object, _write
from test_prepare_data import run_tool

from scenekd.config import load_config
from scenekd.data.catalog import load_dataset
from scenekd.data.class_ids import masks_folder, store_class_ids
from scenekd.data.coco import find_json, read_instances
from scenekd.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs" / "_base_"


@pytest.fixture
def root(tmp_path) -> str:
    crowd = _object(1, 10, 0, 1, 20, iscrowd=1, segmentation=CROWD)
    return _write(tmp_path, [_object(17, 4, 4, 4, 4), _object(18, 2, 2, 12, 10), crowd])


def test_stored_masks_are_those_made_of_the_outlines(root, tmp_path, monkeypatch, capsys) -> None:
    before = load_dataset("coco_tiny", root=root)
    made = before.read_sem_seg(before.records[0])
    assert {0, 2, 3, 255} == set(np.unique(made).tolist())
    assert run_tool(monkeypatch, "coco", "--root", root, "--class-id-masks") == 0
    assert "1 written" in capsys.readouterr().out
    after = load_dataset("coco_tiny", root=root)
    assert after.records[0].segmentation is None
    assert after.records[0].sem_seg_file == str(tmp_path / "class_ids" / "instances_tiny" / "7.png")
    np.testing.assert_array_equal(after.read_sem_seg(after.records[0]), made)
    assert run_tool(monkeypatch, "coco", "--root", root, "--class-id-masks") == 0
    assert "none written" in capsys.readouterr().out
    assert not load_dataset("coco_det_tiny", root=root).records[0].has_sem_seg


def test_masks_of_another_json_are_refused_and_made_again(root, monkeypatch) -> None:
    path = find_json("coco_tiny", root)
    store_class_ids(read_instances(path, "coco_tiny"), path)
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"class_ids.instances_tiny: class-id masks of another"):
        load_dataset("coco_tiny", root=root)
    assert run_tool(monkeypatch, "coco", "--root", root, "--class-id-masks") == 0
    again = load_dataset("coco_tiny", root=root)
    np.testing.assert_array_equal(
        again.read_sem_seg(again.records[0]), read_instances(path, "x").records[0].segmentation()
    )


def test_masks_of_other_classes_are_not_read(root, caplog) -> None:
    path = find_json("coco_tiny", root)
    store_class_ids(read_instances(path, "coco_tiny"), path)
    few = load_dataset("coco_tiny", root=root, classes=("dog",))
    assert few.records[0].segmentation is not None and "other classes" in caplog.text
    assert set(np.unique(few.read_sem_seg(few.records[0])).tolist()) == {0, 1}


def test_a_broken_manifest_is_no_store(root) -> None:
    path = find_json("coco_tiny", root)
    store_class_ids(read_instances(path, "coco_tiny"), path)
    (masks_folder(path) / "manifest.json").write_text("{")
    assert load_dataset("coco_tiny", root=root).records[0].segmentation is not None


def test_image_ids_that_leave_the_folder_are_refused(root) -> None:
    path = find_json("coco_tiny", root)
    dataset = read_instances(path, "coco_tiny")
    dataset.records[0].image_id = "../seven"
    with pytest.raises(UserError, match="no file name"):
        store_class_ids(dataset, path)


def test_unused_classes_need_no_category(root) -> None:
    names = ("unused 0", "person", "unused 2", "dog", "cat")
    dataset = load_dataset("coco_tiny", root=root, classes=names)
    assert dataset.classes == names and sorted(dataset.records[0].labels.tolist()) == [1, 3, 4]
    with pytest.raises(UserError, match="no category 'bird'"):
        load_dataset("coco_tiny", root=root, classes=("person", "bird"))


def test_the_91_classes_are_coco_s_ids() -> None:
    """Of 91 names 80 are those of the usual list, in its order; COCO's ids of some are known by heart."""
    names, usual = (
        load_config(CONFIGS / f"{name}.yaml").DATASETS.CLASSES for name in ("coco2017_91", "coco2017")
    )
    assert len(names) == 91 and tuple(n for n in names if not n.startswith("unused")) == tuple(usual)
    assert [names.index(n) for n in ("person", "cat", "dog", "toothbrush")] == [1, 17, 18, 90]


def test_stored_masks_have_the_palette_of_voc(root) -> None:
    path = find_json("coco_tiny", root)
    store_class_ids(read_instances(path, "coco_tiny"), path)
    with Image.open(masks_folder(path) / "7.png") as picture:
        assert picture.mode == "P" and picture.getpalette()[3:6] == [128, 0, 0]
