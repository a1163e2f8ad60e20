"""The evaluation of a data set: what counts, what is refused, COCO's numbers, and the trivial baseline."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from scenekd.config import get_cfg
from scenekd.data.records import Dataset, Record
from scenekd.errors import UserError
from scenekd.evaluation.coco_api import NUMBERS, CocoTruth
from scenekd.evaluation.detection import voc_ap
from scenekd.evaluation.evaluator import Evaluator, trivial_baseline
from scenekd.sample import Prediction

HEIGHT, WIDTH = 40, 60


def make_dataset(num_images=8, seed=0, boxes=lambda i: True, masks=lambda i: True):
    """Two classes; every object is a filled rectangle, its box and its mask agree."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(num_images):
        n = int(rng.integers(1, 4))
        corner = rng.integers(0, [WIDTH - 20, HEIGHT - 15], (n, 2))
        truth = np.concatenate([corner, corner + rng.integers(8, 15, (n, 2))], axis=1).astype(np.float32)
        labels = rng.integers(0, 2, n)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for (x1, y1, x2, y2), label in zip(truth.astype(int), labels):
            mask[y1:y2, x1:x2] = label + 1
        mask[0] = 255
        difficult = rng.random(n) < 0.2
        record = Record(f"image{i}", f"image{i}.jpg", HEIGHT, WIDTH)
        if boxes(i):
            record.boxes, record.labels = truth, labels.astype(np.int64)
            record.difficult = difficult
        if masks(i):
            record.segmentation = lambda mask=mask: mask
        records.append(record)
    return Dataset("toy", ("a", "b"), records)


def make_prediction(dataset, record, seed=1):
    """The truth, shifted and with some pixels wrong."""
    rng = np.random.default_rng([seed, int(record.image_id[5:])])
    boxes = np.repeat(record.boxes, 2, axis=0) + rng.normal(0, 1, (2 * len(record.boxes), 4))
    mask = dataset.read_sem_seg(record) % 255
    mask = np.where(rng.random(mask.shape) < 0.2, rng.integers(0, 3, mask.shape), mask)
    logits = torch.nn.functional.one_hot(torch.from_numpy(mask.astype(np.int64)), 3).permute(2, 0, 1)
    return Prediction(
        (HEIGHT, WIDTH),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(np.repeat(record.labels, 2)),
        scores=torch.from_numpy(rng.random(len(boxes))),
        sem_seg=logits.float(),
    )


def add_all(evaluator, records):
    for record in records:
        evaluator.add(record.image_id, make_prediction(evaluator.dataset, record))


def test_numbers_are_those_of_the_metrics():
    dataset = make_dataset()
    evaluator = Evaluator(dataset, bootstrap=50)
    add_all(evaluator, dataset.records)
    result = evaluator.summarize()
    predictions = [make_prediction(dataset, r) for r in dataset.records]
    ap = voc_ap([vars(p) for p in predictions], [vars(r) for r in dataset.records], num_classes=2)
    assert result["bbox"]["AP50"] == result["bbox"]["mAP"] == pytest.approx(100 * ap.mean())
    assert result["bbox"]["AP-b"] == pytest.approx(100 * ap[1])
    pred = np.stack([p.sem_seg.argmax(0).numpy() for p in predictions])
    label = np.stack([dataset.read_sem_seg(r) for r in dataset.records])
    valid = label != 255
    iou = [
        np.sum(valid & (pred == k) & (label == k)) / np.sum(valid & ((pred == k) | (label == k)))
        for k in range(3)
    ]
    assert result["sem_seg"]["mIoU"] == pytest.approx(100 * np.mean(iou))
    assert result["sem_seg"]["IoU-background"] == pytest.approx(100 * iou[0])
    low, high = result["sem_seg"]["mIoU_interval"]
    assert low < result["sem_seg"]["mIoU"] < high
    assert result["bbox"]["mAP_interval"][0] < result["bbox"]["mAP_interval"][1]


def test_processes_merge_and_repeated_images_count_once():
    dataset = make_dataset()
    whole = Evaluator(dataset, bootstrap=20)
    add_all(whole, dataset.records)
    # A distributed sampler pads the last share with images from the front.
    first, second = Evaluator(dataset, bootstrap=20), Evaluator(dataset, bootstrap=20)
    add_all(first, dataset.records[::2])
    add_all(second, [*dataset.records[1::2], dataset.records[0]])
    states = [first.state(), second.state()]
    first.merge(states)
    assert first.summarize() == whole.summarize()
    first.reset()
    with pytest.raises(UserError, match="was predicted for"):
        first.summarize()


def test_images_without_a_label_are_no_part_of_its_numbers():
    full = make_dataset()
    partial = make_dataset(boxes=lambda i: i < 5, masks=lambda i: i % 2 == 0)
    evaluator = Evaluator(partial)
    for record in full.records:
        evaluator.add(record.image_id, make_prediction(full, record))
    result = evaluator.summarize()
    for task, keep in (("bbox", range(5)), ("sem_seg", range(0, 8, 2))):
        part = Dataset("part", full.classes, [full.records[i] for i in keep])
        alone = Evaluator(part, tasks=[task])
        add_all(alone, part.records)
        assert result[task] == alone.summarize()[task]


def test_a_task_without_predictions_or_ground_truth_is_left_out():
    dataset = make_dataset()
    evaluator = Evaluator(dataset)
    for record in dataset.records:
        evaluator.add(record.image_id, Prediction((1, 1), sem_seg=make_prediction(dataset, record).sem_seg))
    assert list(evaluator.summarize()) == ["sem_seg"]
    no_boxes = Evaluator(make_dataset(boxes=lambda i: False))
    for record in dataset.records:
        no_boxes.add(record.image_id, make_prediction(dataset, record))
    assert list(no_boxes.summarize()) == ["sem_seg"]


def test_missing_images_are_an_error_that_counts_them():
    dataset = make_dataset()
    evaluator = Evaluator(dataset)
    add_all(evaluator, dataset.records[:5])
    with pytest.raises(UserError, match="3 of 8 images of toy were not predicted.*image5, image6, image7"):
        evaluator.summarize()


def test_bad_predictions_are_named():
    dataset = make_dataset()
    evaluator = Evaluator(dataset)
    with pytest.raises(ValueError, match="no image 'other'"):
        evaluator.add_arrays("other", sem_seg=np.zeros((HEIGHT, WIDTH), int))
    with pytest.raises(UserError, match="image0: the map is 3 × 4, the ground truth 40 × 60"):
        evaluator.add_arrays("image0", sem_seg=np.zeros((3, 4), int))
    with pytest.raises(UserError, match="image0: pred holds 3"):
        evaluator.add_arrays("image0", sem_seg=np.full((HEIGHT, WIDTH), 3))
    bad = np.full((1, 4), np.nan)
    with pytest.raises(UserError, match="image0: prediction boxes must be finite"):
        evaluator.add_arrays("image0", boxes=bad, labels=np.zeros(1, int), scores=np.ones(1))


def test_from_config():
    cfg = get_cfg()
    cfg.TEST.BOX_METRIC, cfg.TEST.BOOTSTRAP, cfg.SEED = "voc07", 7, 3
    evaluator = Evaluator.from_config(make_dataset(), cfg)
    assert (evaluator.box_metric, evaluator.bootstrap, evaluator.seed) == ("voc07", 7, 3)
    assert evaluator.tasks == ("sem_seg", "bbox", "segm", "classification", "hidden_object", "multi_label")
    assert Evaluator.from_config(make_dataset(), cfg, ["bbox"]).tasks == ("bbox",)
    cfg.TEST.BOX_METRIC = "voc12"
    with pytest.raises(UserError, match="TEST.BOX_METRIC: 'voc12'"):
        Evaluator.from_config(make_dataset(), cfg)
    with pytest.raises(UserError, match="TEST.METRICS: 'masks'"):
        Evaluator(make_dataset(), tasks=["masks"])


def test_coco_numbers_against_torchmetrics():
    """The records' own truth; "difficult" boxes are COCO's crowds on both sides."""
    dataset = make_dataset(num_images=20, seed=3)
    evaluator = Evaluator(dataset, tasks=["bbox"], box_metric="coco")
    oracle = MeanAveragePrecision(class_metrics=True)
    for record in dataset.records:
        prediction = make_prediction(dataset, record)
        evaluator.add(record.image_id, prediction)
        oracle.update(
            [{"boxes": prediction.boxes, "scores": prediction.scores, "labels": prediction.labels}],
            [
                {
                    "boxes": torch.from_numpy(record.boxes),
                    "labels": torch.from_numpy(record.labels),
                    "iscrowd": torch.from_numpy(record.difficult.astype(np.int64)),
                }
            ],
        )
    result, expected = evaluator.summarize()["bbox"], oracle.compute()
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    names += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")
    for ours, theirs in zip(NUMBERS, names):
        value = float(expected[theirs])
        assert result[ours] == pytest.approx(100 * value if value >= 0 else np.nan, abs=1e-4, nan_ok=True)
    assert [result["AP-a"], result["AP-b"]] == pytest.approx(
        list(100 * expected["map_per_class"].numpy()), abs=1e-4
    )
    assert result["mAP"] == result["AP"]


def test_coco_without_any_detection():
    dataset = make_dataset()
    evaluator = Evaluator(dataset, tasks=["bbox"], box_metric="coco")
    for record in dataset.records:
        evaluator.add_arrays(record.image_id, boxes=np.zeros((0, 4)), labels=np.zeros(0), scores=np.zeros(0))
    assert evaluator.summarize()["bbox"]["AP"] == 0


def test_coco_json_keeps_what_the_data_set_has(tmp_path):
    box = {"bbox": [0, 0, 10, 10], "area": 70, "iscrowd": 0}
    content = {
        "images": [{"id": 5}, {"id": 6}],
        "categories": [{"id": 3, "name": "a"}, {"id": 9, "name": "other"}, {"id": 11, "name": "b"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 11, **box},
            {"id": 2, "image_id": 5, "category_id": 9, **box},
            {"id": 3, "image_id": 6, "category_id": 3, **box},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    record = Record("5", "x.jpg", 20, 20, boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64))
    truth = CocoTruth.from_json(path, Dataset("d", ("b", "a"), [record]))
    assert truth.category_ids == (11, 3)
    assert truth.image_ids == {"5": 5}
    assert [a["id"] for a in truth.content["annotations"]] == [1]
    with pytest.raises(UserError, match="no category 'zebra'"):
        CocoTruth.from_json(path, Dataset("d", ("zebra",), [record]))
    record.image_id = "7"
    with pytest.raises(UserError, match="no image 7"):
        CocoTruth.from_json(path, Dataset("d", ("a",), [record]))


def test_trivial_baseline_by_hand():
    def record(name, box, label, mask):
        return Record(
            name,
            f"{name}.jpg",
            *mask.shape,
            boxes=np.array([box], np.float32),
            labels=np.array([label]),
            segmentation=lambda: mask,
        )

    # Training: class a always lies in the left half (2 of 3 images), class b in the right half (1 of 3).
    left, right = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    left[:, :32], right[:, 32:] = 1, 2
    train = Dataset(
        "train",
        ("a", "b"),
        [
            record("t0", [0, 0, 32, 64], 0, left),
            record("t1", [0, 0, 32, 64], 0, left),
            record("t2", [32, 0, 64, 64], 1, right),
        ],
    )
    # So it says: a on the left, background on the right; boxes a (score 2/3) and b (score 1/3) everywhere.
    # Test image of 128 × 128: exactly that for a, and b is not there.
    truth = np.zeros((128, 128), np.uint8)
    truth[:, :64] = 1
    test = Dataset("test", ("a", "b"), [record("x", [0, 0, 64, 128], 0, truth)])
    result = trivial_baseline(train, test)
    assert result["sem_seg"]["IoU-a"] == result["sem_seg"]["mIoU"] == 100
    assert result["bbox"]["AP-a"] == 100
    assert np.isnan(result["bbox"]["AP-b"])
    with pytest.raises(ValueError, match="different classes"):
        trivial_baseline(train, Dataset("test", ("a",), test.records))
    for r in train.records:
        r.boxes = None
    assert list(trivial_baseline(train, test)) == ["sem_seg"]


def test_reference_coco_numbers():
    """The COCO API's own example: the twelve numbers come out exactly."""
    root = os.environ.get("SCENEKD_TEST_DATA")
    if not root:
        pytest.skip("SCENEKD_TEST_DATA is not set")
    folder = Path(root) / "evaluator_reference" / "coco_val2014_100"
    truth = folder / "instances_val2014_100.json"
    content = json.loads(truth.read_bytes())
    categories = {c["id"]: k for k, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
    names = tuple(c["name"] for c in sorted(content["categories"], key=lambda c: c["id"]))
    no_boxes = np.zeros((0, 4), np.float32)
    records = [Record(str(i["id"]), i["file_name"], boxes=no_boxes) for i in content["images"]]
    dataset = Dataset("coco", names, records)
    evaluator = Evaluator(
        dataset, tasks=["bbox"], box_metric="coco", coco_truth=CocoTruth.from_json(truth, dataset)
    )
    found = {record.image_id: [] for record in records}
    for entry in json.loads((folder / "instances_val2014_fakebbox100_results.json").read_bytes()):
        found[str(entry["image_id"])].append(entry)
    for image_id, entries in found.items():
        boxes = np.array([e["bbox"] for e in entries], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([categories[e["category_id"]] for e in entries], int)
        evaluator.add_arrays(
            image_id, boxes=boxes, labels=labels, scores=np.array([e["score"] for e in entries])
        )
    result = evaluator.summarize()["bbox"]
    expected = [0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398]
    expected += [0.386813, 0.593680, 0.595353, 0.639811, 0.566421, 0.564291]
    # The reference is printed to six places.
    np.testing.assert_allclose([result[name] / 100 for name in NUMBERS], expected, rtol=0, atol=5.1e-7)


def test_coco_interval_is_ap_over_resampled_images():
    """The slow way: repeat the drawn images under new ids and score them again."""
    dataset = make_dataset(num_images=6, seed=4)
    evaluator = Evaluator(dataset, tasks=["bbox"], box_metric="coco", bootstrap=30, seed=9)
    add_all(evaluator, dataset.records)
    result = evaluator.summarize()["bbox"]
    values = []
    for drawn in np.random.default_rng(9).integers(0, 6, size=(30, 6)):
        copies = [
            dataclasses.replace(dataset.records[i], image_id=f"copy{n}") for n, i in enumerate(np.sort(drawn))
        ]
        again = Evaluator(Dataset("again", ("a", "b"), copies), tasks=["bbox"], box_metric="coco")
        for copy, i in zip(copies, np.sort(drawn)):
            again.add(copy.image_id, make_prediction(dataset, dataset.records[i]))
        summary = again.summarize()["bbox"]
        values.append([summary["AP"], summary["AP-b"]])
    for key, column in (("mAP", 0), ("AP", 0), ("AP-b", 1)):
        expected = np.nanquantile([v[column] for v in values], [0.025, 0.975])
        assert result[f"{key}_interval"] == pytest.approx(list(expected), abs=1e-6)
