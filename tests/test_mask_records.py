"""Mask AP: pycocotools' numbers, what is left out, and one record an image."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_evaluator import HEIGHT, WIDTH, make_dataset, make_prediction
from voc_folder import bare_config

from scenekd.config import get_cfg
from scenekd.data.catalog import load_dataset
from scenekd.errors import UserError
from scenekd.evaluation.coco_api import NUMBERS
from scenekd.evaluation.evaluator import Evaluator
from scenekd.evaluation.mask_records import MaskRecords, encode

REAL = os.environ.get("SCENEKD_TEST_DATA", "")
needs_data = pytest.mark.skipif(not REAL, reason="SCENEKD_TEST_DATA is not set")


def fill(boxes):
    """(N, H, W) uint8: the pixels whose centre lies in each box."""
    x, y = np.arange(WIDTH) + 0.5, (np.arange(HEIGHT) + 0.5)[:, None]
    boxes = np.asarray(boxes).reshape(-1, 4)
    inside = [(x > b[0]) & (x < b[2]) & (y > b[1]) & (y < b[3]) for b in boxes]
    return np.asarray(inside, np.uint8).reshape(-1, HEIGHT, WIDTH)


def masked_dataset(**options):
    """The evaluator's toy data, each box with its filled rectangle as mask."""
    dataset = make_dataset(**options)
    for record in dataset.records:
        record.object_masks = lambda size, boxes=record.boxes: fill(boxes)
    return dataset


def whole(prediction):
    """A prediction whose boxes end on pixels, with filled boxes as masks."""
    prediction.boxes = prediction.boxes.round().clamp(min=0)
    prediction.boxes = torch.minimum(prediction.boxes, torch.tensor([WIDTH, HEIGHT] * 2))
    prediction.masks = torch.from_numpy(fill(prediction.boxes)).bool()
    return prediction


def test_filled_boxes_score_as_boxes():
    """On whole pixels the IoU of two filled boxes is that of the boxes, so all numbers but areas' agree."""
    dataset = masked_dataset(num_images=12)
    evaluator = Evaluator(dataset, tasks=("bbox", "segm"), box_metric="coco", bootstrap=20)
    for record in dataset.records:
        evaluator.add(record.image_id, whole(make_prediction(dataset, record)))
    result = evaluator.summarize()
    for name in (*NUMBERS, "mAP", "AP-a", "AP-b"):
        assert result["segm"][name] == pytest.approx(result["bbox"][name], nan_ok=True), name
    low, high = result["segm"]["AP_interval"]
    assert 0 < low < result["segm"]["AP"] < high < 100


def test_processes_merge_and_repeats_count_once():
    dataset = masked_dataset()
    predictions = {r.image_id: whole(make_prediction(dataset, r)) for r in dataset.records}
    alone, *parts = (Evaluator(dataset, tasks=("segm",)) for _ in range(3))
    for image_id, prediction in predictions.items():
        alone.add(image_id, prediction)
    for k, image_id in enumerate([*predictions, *predictions]):
        parts[k % 2].add(image_id, predictions[image_id])
    gathered = Evaluator(dataset, tasks=("segm",))
    gathered.merge([part.state() for part in parts])
    np.testing.assert_equal(gathered.summarize(), alone.summarize())


def test_unknown_masks_and_void_pixels_count_neither_way():
    true = np.zeros((2, 10, 10), np.uint8)
    true[0, 2:6, 2:6], true[1] = 1, 255  # nothing is known of the second
    true[0, 6, :] = 255  # a rim of void below the first
    boxes = np.array([[2, 2, 6, 6], [7, 7, 10, 10]], np.float32)
    target = {"boxes": boxes, "labels": np.array([0, 0]), "masks": true}
    predicted = np.zeros((2, 10, 10), bool)
    predicted[0, 2:7, 2:6] = True  # reaches into the void rim: IoU 1 without it
    predicted[1, 7:10, 7:10] = True  # lies in the box without a mask: neither right nor wrong
    records = MaskRecords(("cat",))
    records.add("a", {"masks": predicted, "labels": [0, 0], "scores": [0.5, 0.9]}, target)
    assert records.summary()["AP"] == pytest.approx(100)
    # With the second mask known to be elsewhere, the more confident detection is wrong, and one object is missed:
    # precision ½ up to recall ½. pycocotools counts 51 of the 101 recall levels up to ½.
    true[1, :, :6] = 0
    true[1, 0, 9], true[1, 1:, :] = 1, 0
    records = MaskRecords(("cat",))
    records.add("a", {"masks": predicted, "labels": [0, 0], "scores": [0.5, 0.9]}, target)
    assert records.summary()["AP50"] == pytest.approx(100 * 0.5 * 51 / 101)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((1, 3, 3), bool)}, r"masks of \(3, 3\)"),
        ({"scores": [np.nan]}, "finite"),
        ({"labels": [2]}, r"0…1"),
        ({"labels": [0, 0]}, "length"),
    ],
)
def test_misuse_is_one_line(change, message):
    dataset = masked_dataset()
    evaluator = Evaluator(dataset, tasks=("segm",))
    good = {"masks": np.zeros((1, HEIGHT, WIDTH), bool), "labels": [0], "scores": [0.5]}
    with pytest.raises(UserError, match=message):
        evaluator.add_arrays("image0", boxes=np.zeros((1, 4)), **{**good, **change})
    with pytest.raises(UserError, match=r"images of \w+ was predicted for segm"):
        evaluator.summarize()
    with pytest.raises(UserError, match="has ground truth of classification; name another"):
        Evaluator(dataset, tasks=("classification",)).summarize()


def coco_mini(**options):
    cfg = bare_config(ROOT=f"{REAL}/coco_mini")
    return load_dataset("coco_val2017", cfg, **options)


@needs_data
@pytest.mark.parametrize("own", [True, False])
def test_the_truth_of_coco_mini_scores_100(own):
    """With the json as truth, and with the records' masks; a filled box for each mask scores far less."""
    dataset = coco_mini()
    cfg = get_cfg()
    cfg.DATASETS.ROOT, cfg.TEST.METRICS, cfg.TEST.BOOTSTRAP = f"{REAL}/coco_mini", ("segm",), 0
    make = (
        (lambda: Evaluator.from_config(dataset, cfg))
        if own
        else (lambda: Evaluator(dataset, tasks=("segm",)))
    )
    perfect, filled = make(), make()
    for record in dataset.records:
        keep = ~record.crowd
        masks = dataset.read_instance_masks(record)[keep]
        arrays = {"labels": record.labels[keep], "scores": np.ones(keep.sum()), "boxes": record.boxes[keep]}
        perfect.add_arrays(record.image_id, masks=masks == 1, **arrays)
        rectangles = np.zeros_like(masks)
        for rectangle, (x1, y1, x2, y2) in zip(rectangles, record.boxes[keep].round().astype(int)):
            rectangle[y1:y2, x1:x2] = 1
        filled.add_arrays(record.image_id, masks=rectangles, **arrays)
    # Over 100 objects in an image, or objects that coincide, would cost a little.
    assert perfect.summarize()["segm"]["AP"] > 99.5
    assert filled.summarize()["segm"]["AP"] < 40


@needs_data
def test_the_numbers_are_pycocotools_own():
    """Against COCOeval fed with a results file of the same masks, shifted by three pixels."""
    dataset = coco_mini()
    cfg = get_cfg()
    cfg.DATASETS.ROOT, cfg.TEST.METRICS, cfg.TEST.BOOTSTRAP = f"{REAL}/coco_mini", ("segm",), 0
    evaluator, results = Evaluator.from_config(dataset, cfg), []
    rng = np.random.default_rng(0)
    for record in dataset.records:
        masks = np.roll(dataset.read_instance_masks(record) == 1, 3, axis=2)
        scores = rng.random(len(masks))
        evaluator.add_arrays(record.image_id, masks=masks, labels=record.labels, scores=scores)
        for mask, label, score in zip(masks, record.labels, scores):
            runs = encode(mask)
            runs["counts"] = runs["counts"].decode()
            category = evaluator.mask_truth.category_ids[label]
            row = {"image_id": int(record.image_id), "category_id": category, "segmentation": runs}
            results.append({**row, "score": float(score)})
    truth = COCO(f"{REAL}/coco_mini/annotations/instances_val2017.json")
    official = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "segm")
    official.params.imgIds = sorted(int(record.image_id) for record in dataset.records)
    official.evaluate()
    official.accumulate()
    official.summarize()
    ours = evaluator.summarize()["segm"]
    for name, value in zip(NUMBERS, official.stats):
        assert ours[name] == pytest.approx(100 * value if value >= 0 else np.nan, nan_ok=True)
