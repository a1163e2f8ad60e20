"""Saved predictions: ground truth scores 100, the references come out, and bad files are one clear line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evaluator import HEIGHT, WIDTH, make_dataset
from test_mask_records import masked_dataset

from scenekd.config import get_cfg
from scenekd.data.catalog import load_dataset
from scenekd.data.scenes_files import tight_box
from scenekd.errors import UserError
from scenekd.evaluation.coco_results import read_results, result_entries
from scenekd.evaluation.evaluator import Evaluator
from scenekd.evaluation.mask_records import encode
from scenekd.evaluation.predictions import score_predictions
from scenekd.teachers.runs import encode_runs


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


def outline(mask, form):
    """A mask as COCO's results may hold it."""
    if form == "polygons":  # of a filled rectangle
        x1, y1, x2, y2 = tight_box(mask)
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]
    if form == "counts":
        return {"size": list(mask.shape), "counts": encode_runs(mask).tolist()}
    runs = encode(mask)
    return {"size": runs["size"], "counts": runs["counts"].decode()}


@pytest.mark.parametrize("form", ["compressed", "counts", "polygons"])
@pytest.mark.parametrize("boxes", [True, False])
def test_masks_of_objects_are_scored(tmp_path, form, boxes):
    """True masks score 100; the left half of each scores as the evaluator of a training run says. Boxes may be left
    out, as in COCO's own results of masks."""
    dataset = masked_dataset()
    for record in dataset.records:
        record.difficult[:] = False
    for whole in (True, False):
        evaluator, entries = Evaluator(dataset, tasks=("segm",), bootstrap=5), []
        for record in dataset.records:
            masks = dataset.read_instance_masks(record) == 1
            if not whole:
                for mask, box in zip(masks, record.boxes.astype(int)):
                    mask[:, (box[0] + box[2]) // 2 :] = False
            scores = np.linspace(0.2, 0.8, len(masks))
            evaluator.add_arrays(record.image_id, masks=masks, labels=record.labels, scores=scores)
            for entry, mask in zip(
                result_entries(record.image_id, record.boxes, record.labels, scores), masks
            ):
                entry["segmentation"] = outline(mask, form)
                if not boxes:
                    del entry["bbox"]
                entries.append(entry)
        (tmp_path / "detections.json").write_text(json.dumps(entries))
        result = score_predictions(tmp_path, dataset, config())
        assert list(result) == ["bbox", "segm"][not boxes :]
        np.testing.assert_equal(result["segm"], evaluator.summarize()["segm"])
        assert result["segm"]["AP"] == pytest.approx(100) if whole else result["segm"]["AP"] < 20


def test_written_entries_hold_the_masks(tmp_path):
    dataset = masked_dataset()
    record = dataset.records[0]
    masks = dataset.read_instance_masks(record) == 1
    scores = np.full(len(masks), 0.5)
    entries = list(result_entries(record.image_id, record.boxes, record.labels, scores, masks))
    (tmp_path / "detections.json").write_text(json.dumps(entries))
    found = read_results(tmp_path / "detections.json", dataset, (1, 2))
    arrays = found.arrays(record.image_id, record.size)
    assert found.shapes == ("bbox", "segmentation")
    np.testing.assert_array_equal(arrays["masks"], masks)
    np.testing.assert_array_equal(arrays["boxes"], record.boxes)
    assert found.arrays("image1", record.size)["masks"].shape == (0, HEIGHT, WIDTH)


GOOD = {"image_id": "image0", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
RUNS = {"size": [HEIGHT, WIDTH], "counts": [5, 7, HEIGHT * WIDTH - 12]}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({**RUNS, "size": [WIDTH, HEIGHT]}, r"another size than the image, \(60, 40\) instead of \(40, 60\)"),
        ({**RUNS, "size": 40}, "broken object outline"),
        ({"counts": RUNS["counts"]}, "broken object outline \\(no 'size'"),
        ({**RUNS, "counts": [5, 7]}, "broken object outline \\(run lengths do not fill"),
        ({**RUNS, "counts": [5, -7, HEIGHT * WIDTH + 2]}, "run lengths do not fill"),
        ({**RUNS, "counts": [2**63 - 1, 2**63 - 1, HEIGHT * WIDTH + 2]}, "run lengths do not fill"),
        ({**RUNS, "counts": [2**70]}, "broken object outline"),
        ({**RUNS, "counts": [5.5, 6.5]}, "whole numbers"),
        ({**RUNS, "counts": "522"}, "run lengths do not fill"),
        ({**RUNS, "counts": "!"}, "no compressed run lengths"),
        ({**RUNS, "counts": "é"}, "broken object outline"),
        ({**RUNS, "counts": "o" * 9 + "0"}, "a run of over"),
        ({**RUNS, "counts": None}, "broken object outline"),
        ("mask", "broken object outline"),
        (None, "broken object outline"),
        ([], "no polygon of three corners"),
        ([[1, 2, 3, 4]], "no polygon of three corners"),
        ([[1, 2, 3, 4, 5]], "a polygon must be a list of x, y"),
        ([1, 2, 3, 4, 5, 6], "a polygon must be a list of x, y"),
        ([["a"] * 6], "broken object outline"),
        ([[0, 0, 1e9, 0, 5, 5]], "over 100000 pixels away"),
        ([[0, 0, float("nan"), 0, 5, 5]], "not finite"),
    ],
)
def test_bad_masks_of_objects(tmp_path, segmentation, message):
    """pycocotools would read beyond its memory for some of them."""
    entries = [{**GOOD, "segmentation": RUNS}, {**GOOD, "segmentation": segmentation}]
    (tmp_path / "detections.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message) as caught:
        score_predictions(tmp_path, masked_dataset(), config())
    assert "detections.json: entry 1: " in str(caught.value) and "\n" not in str(caught.value)


def test_entries_hold_the_same(tmp_path):
    (tmp_path / "detections.json").write_text(json.dumps([GOOD, {**GOOD, "segmentation": RUNS}]))
    with pytest.raises(UserError, match="entry 1: holds bbox and segmentation, entry 0 bbox; give all"):
        score_predictions(tmp_path, masked_dataset(), config())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        ({"annotations": []}, "must hold a list"),
        ([GOOD, 3], "entry 1: needs image_id"),
        ([{"image_id": "image0", "category_id": 1, "score": 0.5}], "entry 0: needs bbox or segmentation"),
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
