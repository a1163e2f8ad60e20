"""Saved predictions: ground truth scores 100, the references come out, and bad files are one clear line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evaluator import HEIGHT, WIDTH, make_dataset

from scenekd.config import get_cfg
from scenekd.data.catalog import load_dataset
from scenekd.errors import UserError
from scenekd.evaluation.predictions import score_predictions


def write_truth(folder, dataset):
    """The ground truth in the form of predictions."""
    (folder / "segmentation").mkdir(parents=True, exist_ok=True)
    entries = []
    for record in dataset.records:
        if record.has_boxes:
            for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist()):
                box = [x1, y1, x2 - x1, y2 - y1]
                entry = {"image_id": record.image_id, "category_id": label + 1, "bbox": box, "score": 0.9}
                entries.append(entry)
        if record.has_sem_seg:
            mask = dataset.read_sem_seg(record)
            Image.fromarray(mask).save(folder / "segmentation" / f"{record.image_id}.png")
    (folder / "detections.json").write_text(json.dumps(entries))
    return folder


def config(**test):
    cfg = get_cfg()
    cfg.TEST.BOOTSTRAP = 5
    for key, value in test.items():
        cfg.TEST[key] = value
    return cfg


@pytest.mark.parametrize("box_metric", ["voc", "voc07", "coco"])
def test_ground_truth_scores_100(tmp_path, box_metric):
    dataset = make_dataset(boxes=lambda i: i != 2, masks=lambda i: i != 3)
    result = score_predictions(write_truth(tmp_path, dataset), dataset, config(BOX_METRIC=box_metric))
    for name in ("mIoU", "pACC", "mACC", "fwIoU", "IoU-a", "IoU-b"):
        assert result["sem_seg"][name] == pytest.approx(100)
    for name in ("mAP", "AP", "AP50", "AP75", "AP-a", "AP-b"):
        assert result["bbox"][name] == pytest.approx(100)


def test_one_task_alone(tmp_path):
    dataset = make_dataset()
    write_truth(tmp_path, dataset)
    (tmp_path / "detections.json").unlink()
    assert list(score_predictions(tmp_path, dataset, config())) == ["sem_seg"]
    write_truth(tmp_path, dataset)
    shutil.rmtree(tmp_path / "segmentation")
    assert list(score_predictions(tmp_path, dataset, config())) == ["bbox"]


def test_images_without_detections_count(tmp_path):
    dataset = make_dataset(num_images=2)
    for record in dataset.records:
        record.boxes, record.labels = record.boxes[:1], np.zeros(1, np.int64)
        record.difficult = np.zeros(1, bool)
    write_truth(tmp_path, dataset)
    entries = json.loads((tmp_path / "detections.json").read_text())
    (tmp_path / "detections.json").write_text(json.dumps(entries[:1]))
    # One of the two boxes is found, at precision 1.
    assert score_predictions(tmp_path, dataset, config())["bbox"]["AP-a"] == pytest.approx(50)


GOOD = {"image_id": "image0", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        ({"annotations": []}, "must hold a list"),
        ([GOOD, 3], "entry 1: needs image_id"),
        ([{"image_id": "image0", "bbox": [1, 2, 3, 4], "score": 0.5}], "entry 0: needs image_id"),
        ([{**GOOD, "image_id": "nowhere"}], "entry 0: image_id 'nowhere' is not in toy"),
        ([{**GOOD, "category_id": 0}], "entry 0: category_id 0 is none of the 2 ids 1…2"),
        ([{**GOOD, "category_id": 3}], "category_id 3"),
        ([{**GOOD, "category_id": [1]}], "category_id"),
        ([{**GOOD, "bbox": [1, 2, 3]}], "entry 0: bbox"),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], "entry 0: bbox"),
        ([{**GOOD, "bbox": [1, 2, 3, float("nan")]}], "entry 0: bbox"),
        ([{**GOOD, "bbox": "1234"}], "entry 0: bbox"),
        ([{**GOOD, "score": float("inf")}], "entry 0: score"),
        ([{**GOOD, "score": "high"}], "entry 0: score"),
    ],
)
def test_bad_detections(tmp_path, content, message):
    path = tmp_path / "detections.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        score_predictions(tmp_path, make_dataset(), config())
    assert "\n" not in str(caught.value) and "detections.json" in str(caught.value)


def test_bad_folders(tmp_path):
    dataset = make_dataset()
    with pytest.raises(UserError, match="no such folder"):
        score_predictions(tmp_path / "nothing", dataset, config())
    with pytest.raises(UserError, match="holds neither detections.json nor segmentation/"):
        score_predictions(tmp_path, dataset, config())


def test_bad_masks(tmp_path):
    dataset = make_dataset()
    masks = write_truth(tmp_path, dataset) / "segmentation"

    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            score_predictions(tmp_path, dataset, config())
        assert "\n" not in str(caught.value)

    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(masks / "stranger.png")
    refused("stranger.png stands for no image of toy")
    (masks / "stranger.png").unlink()
    good = (masks / "image3.png").read_bytes()
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(masks / "image3.png")
    refused("image3.png: .*7×5")
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint8)).save(masks / "image3.png")
    refused("image3.png: mask value 9")
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(masks / "image3.png")
    refused("image3: pred holds 255")
    (masks / "image3.png").write_bytes(good[: len(good) // 2])
    refused("image3.png")
    (masks / "image3.png").unlink()
    refused("1 of 8 masks are missing, for example image3.png")


@pytest.fixture
def data_root():
    root = os.environ.get("SCENEKD_TEST_DATA")
    if not root:
        pytest.skip("SCENEKD_TEST_DATA is not set")
    return Path(root)


def test_coco_reference(tmp_path, data_root):
    """COCO's own image and category ids, from the results file as it is."""
    folder = data_root / "evaluator_reference" / "coco_val2014_100"
    shutil.copy(folder / "instances_val2014_fakebbox100_results.json", tmp_path / "detections.json")
    cfg = config(BOX_METRIC="coco")
    cfg.DATASETS.ROOT = str(folder)
    dataset = load_dataset("coco_instances_val2014_100", cfg)
    result = score_predictions(tmp_path, dataset, cfg)["bbox"]
    # The file's 6-digit numbers, see SOURCES.md.
    for name, expected in (("AP", 0.504581), ("AP50", 0.696973), ("AP75", 0.572982), ("ARl", 0.564291)):
        assert result[name] / 100 == pytest.approx(expected, abs=1e-6)


def test_real_voc_ground_truth_scores_100(tmp_path, data_root):
    cfg = config()
    cfg.DATASETS.ROOT = str(data_root / "voc_mini")
    if not (data_root / "voc_mini").is_dir():
        pytest.skip("voc_mini is not there")
    dataset = load_dataset("voc2012_seg_val", cfg)
    dataset.records = dataset.records[:25]
    result = score_predictions(write_truth(tmp_path, dataset), dataset, cfg)
    assert result["sem_seg"]["mIoU"] == pytest.approx(100)
    assert result["bbox"]["mAP"] == pytest.approx(100)
