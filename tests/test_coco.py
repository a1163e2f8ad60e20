"""COCO's json: boxes, classes, crowds and masks made of instances."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scenekd.data.catalog import load_dataset
from scenekd.errors import BadRecordError, UserError

REAL = os.environ.get("SCENEKD_TEST_DATA", "")
needs_data = pytest.mark.skipif(not REAL, reason="SCENEKD_TEST_DATA is not set")


def _square(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def _object(category: int, x: int, y: int, w: int, h: int, **more: Any) -> dict[str, Any]:
    return {
        "image_id": 7,
        "category_id": category,
        "bbox": [x, y, w, h],
        "segmentation": _square(x, y, x + w, y + h),
        "iscrowd": 0,
        **more,
    }


def _write(root: Path, objects: list[dict[str, Any]]) -> str:
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 17, "name": "cat"}]
    images = [{"id": 7, "file_name": "seven.png", "height": 20, "width": 30}]
    for item, number in zip(objects, range(len(objects))):
        item["id"] = number
    (root / "annotations").mkdir()
    (root / "tiny").mkdir()
    Image.new("RGB", (30, 20)).save(root / "tiny" / "seven.png")
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations" / "instances_tiny.json").write_text(json.dumps(content))
    return str(root)


# run lengths go down the columns: 20·10 zeros, then one column of ones and the rest zeros
CROWD = {"counts": [200, 20, 380], "size": [20, 30]}


def test_boxes_labels_and_crowds(tmp_path: Path) -> None:
    crowd = _object(1, 10, 0, 1, 20, iscrowd=1, segmentation=CROWD)
    root = _write(tmp_path, [_object(18, 2, 3, 5, 6), crowd, _object(17, 25, 15, 10, 10)])
    dataset = load_dataset("coco_tiny", root=root)
    record = dataset.records[0]
    assert dataset.classes == ("person", "cat", "dog")  # in the order of the ids 1, 17, 18
    # (x, y, w, h) → corners; the last box reaches 5 pixels over both borders
    np.testing.assert_array_equal(record.boxes, np.float32([[2, 3, 7, 9], [10, 0, 11, 20], [25, 15, 30, 20]]))
    assert record.labels.tolist() == [2, 0, 1]
    assert record.crowd.tolist() == record.difficult.tolist() == [False, True, False]
    assert dataset.clipped == 1
    assert record.image_id == "7"


def test_the_smaller_object_is_on_top_and_crowds_are_void(tmp_path: Path) -> None:
    crowd = _object(1, 10, 0, 1, 20, iscrowd=1, segmentation=CROWD)
    root = _write(tmp_path, [_object(17, 4, 4, 4, 4), _object(18, 2, 2, 12, 10), crowd])
    dataset = load_dataset("coco_instances_tiny", root=root)
    expected = np.zeros((20, 30), np.uint8)
    expected[:, 10] = 255
    expected[2:12, 2:14] = 3  # the dog hides the crowd
    expected[4:8, 4:8] = 2  # the cat hides the dog
    np.testing.assert_array_equal(dataset.read_sem_seg(dataset.records[0]), expected)


def test_a_subset_of_the_classes_leaves_the_others_as_background(tmp_path: Path) -> None:
    root = _write(tmp_path, [_object(17, 4, 4, 4, 4), _object(18, 20, 2, 5, 5)])
    dataset = load_dataset("coco_tiny", root=root, classes=("dog", "person"))
    assert dataset.records[0].labels.tolist() == [0]
    assert np.unique(dataset.read_sem_seg(dataset.records[0])).tolist() == [0, 1]
    with pytest.raises(UserError, match="no category 'horse'"):
        load_dataset("coco_tiny", root=root, classes=("horse",))


def test_the_name_chooses_boxes_alone(tmp_path: Path) -> None:
    root = _write(tmp_path, [_object(17, 4, 4, 4, 4)])
    assert load_dataset("coco_tiny", root=root).records[0].has_sem_seg
    assert not load_dataset("coco_det_tiny", root=root).records[0].has_sem_seg


def test_an_image_without_objects_is_labelled(tmp_path: Path) -> None:
    record = load_dataset("coco_tiny", root=_write(tmp_path, [])).records[0]
    assert record.has_boxes
    assert record.boxes.shape == (0, 4)


def test_boxes_without_area_are_left_out(tmp_path: Path) -> None:
    record = load_dataset("coco_tiny", root=_write(tmp_path, [_object(17, 4, 4, 0, 4)])).records[0]
    assert record.boxes.shape == (0, 4)


def test_a_file_of_another_format_and_a_broken_object(tmp_path: Path) -> None:
    root = _write(tmp_path, [_object(17, 4, 4, 4, 4, bbox=[1, 2])])
    with pytest.raises(BadRecordError, match="without a box"):
        load_dataset("coco_tiny", root=root)
    (tmp_path / "annotations" / "instances_tiny.json").write_text("[1]")
    with pytest.raises(UserError, match="not COCO's instances json: needs images with"):
        load_dataset("coco_tiny", root=root)
    (tmp_path / "annotations" / "instances_tiny.json").write_text('{"images": [')
    with pytest.raises(UserError, match="not valid json"):
        load_dataset("coco_tiny", root=root)


def test_an_image_outside_its_folder_is_refused(tmp_path: Path) -> None:
    root = _write(tmp_path, [])
    path = tmp_path / "annotations" / "instances_tiny.json"
    path.write_text(path.read_text().replace("seven.png", "../../seven.png"))
    with pytest.raises(UserError, match="outside its folder"):
        load_dataset("coco_tiny", root=root)


def test_a_broken_outline_is_a_bad_record(tmp_path: Path) -> None:
    wrong = {"counts": [30 * 21], "size": [21, 30]}
    dataset = load_dataset("coco_tiny", root=_write(tmp_path, [_object(17, 4, 4, 4, 4, segmentation=wrong)]))
    with pytest.raises(BadRecordError, match="outline"):
        dataset.read_sem_seg(dataset.records[0])


@needs_data
def test_real_coco_against_pycocotools() -> None:
    from pycocotools.coco import COCO

    root = f"{REAL}/coco_mini"
    dataset = load_dataset("coco_val2017", root=root)
    oracle = COCO(f"{root}/annotations/instances_val2017.json")
    names = {item["id"]: item["name"] for item in oracle.loadCats(oracle.getCatIds())}
    assert len(dataset) == 50
    assert len(dataset.classes) == 80
    for record in dataset.records:
        objects = oracle.loadAnns(oracle.getAnnIds(imgIds=int(record.image_id)))
        assert len(record.boxes) == len(objects)
        mask = dataset.read_sem_seg(record)
        for item, box, label in zip(objects, record.boxes, record.labels):
            assert dataset.classes[label] == names[item["category_id"]]
            x, y, w, h = item["bbox"]
            np.testing.assert_allclose(box, [x, y, x + w, y + h], atol=0.02)
        smallest = min((o for o in objects if not o["iscrowd"]), key=lambda o: oracle.annToMask(o).sum())
        inside = oracle.annToMask(smallest).astype(bool)
        # nothing may lie over the smallest object
        assert (mask[inside] == dataset.classes.index(names[smallest["category_id"]]) + 1).all()
        covered = np.any([oracle.annToMask(o) for o in objects], axis=0)
        np.testing.assert_array_equal(mask > 0, covered)
