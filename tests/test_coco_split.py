"""Images held out of a COCO-layout folder, for settings that are chosen apart from the test set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenekd.data.coco import load_coco
from scenekd.errors import UserError
from scenekd.study.coco_split import split_coco


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twenty images with one box each, and a val json."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    images, boxes = [], []
    for n in range(20):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "train2017" / f"{n}.jpg")
        images.append({"id": n, "file_name": f"{n}.jpg", "height": 8, "width": 8})
        boxes.append({"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 4, 4]})
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    for part in ("train2017", "val2017"):
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def test_the_parts_are_disjoint_and_whole(source, tmp_path) -> None:
    """A quarter of twenty; every image keeps its box, is found, and is in one of them; asked again, nothing changes."""
    view = tmp_path / "view"
    split_coco(source, view, part="train2017", share=0.25)
    fit, hold = (load_coco(f"coco_det_{side}_train2017", str(view)) for side in ("fit", "hold"))
    ids = [{record.image_id for record in data.records} for data in (fit, hold)]
    assert [len(one) for one in ids] == [15, 5] and ids[0] | ids[1] == {str(n) for n in range(20)}
    assert all(len(record.boxes) == 1 and Path(record.file_name).is_file() for record in hold.records)
    assert len(load_coco("coco_det_val2017", str(view)).records) == 20
    written = view / "annotations" / "instances_hold_train2017.json"
    before = written.stat().st_mtime_ns
    split_coco(source, view, part="train2017", share=0.25)
    assert written.stat().st_mtime_ns == before


def test_what_cannot_be_split(source, tmp_path) -> None:
    """No json, one that is none, a share of nothing, and a folder of another source."""
    with pytest.raises(UserError, match="instances_test2017.json: no such file"):
        split_coco(source, tmp_path / "a", part="test2017", share=0.5)
    with pytest.raises(UserError, match="instances_hold_train2017.json: would be empty"):
        split_coco(source, tmp_path / "b", part="train2017", share=0.01)
    (source / "annotations" / "instances_odd.json").write_text("[]")
    with pytest.raises(UserError, match="not COCO's instances json"):
        split_coco(source, tmp_path / "c", part="odd", share=0.5)
    (tmp_path / "d" / "train2017").mkdir(parents=True)
    with pytest.raises(UserError, match="is no link to"):
        split_coco(source, tmp_path / "d", part="train2017", share=0.5)
