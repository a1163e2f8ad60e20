"""A teacher scored alone: every column by closed form, saved, found again, and shown in the report."""

from __future__ import annotations

import math

import numpy as np
import pytest
from voc_folder import bare_config

from scenekd.data.records import Dataset, Record
from scenekd.errors import UserError
from scenekd.evaluation.detection import right_boxes
from scenekd.report import write_report
from scenekd.sample import SoftSegmentation
from scenekd.teachers.protocol import Detections
from scenekd.teachers.score import (
    mean_entropy,
    pixel_probabilities,
    read_scores,
    score_table,
    score_teacher,
    write_scores,
)
from scenekd.teachers.score_run import score_run

CLASSES = ("cat", "dog")


class Store:
    """What a teacher said, by image id."""

    classes = CLASSES
    info = {"type": "test", "name": "oracle", "weights_sha256": "1"}

    def __init__(self, said):
        self.said = said

    def __contains__(self, image_id):
        return image_id in self.said

    def get_detections(self, image_id):
        return self.said[image_id]

    get_segmentation = get_detections


def config(**changes):
    cfg = bare_config(CLASSES=CLASSES, TRAIN=("x",))
    cfg.DISTILL.DETECTION.MIN_SCORE = 0.3
    for key, value in changes.items():
        cfg.TEACHER[key] = value
    return cfg


def boxes(*rows):
    """Detections of (x1, class, score): boxes of 10 × 10 pixels."""
    return Detections.build(
        [(x, 0, x + 10, 10) for x, _, _ in rows], [c for _, c, _ in rows], [s for *_, s in rows]
    )


def image(image_id, *objects, difficult=(), labelled=True):
    """A record whose ground truth are boxes of 10 × 10 pixels at (x1, class)."""
    record = Record(image_id, f"{image_id}.jpg", 20, 40)
    if labelled:
        record.boxes = np.array([(x, 0, x + 10, 10) for x, _ in objects], np.float32).reshape(-1, 4)
        record.labels = np.array([c for _, c in objects], np.int64)
        record.difficult = np.array([i in difficult for i in range(len(objects))], bool)
    return record


@pytest.fixture
def detections():
    """Image a: a cat found (.9), found again (.6), and a dog that is missed. b: a box on a difficult dog (.8), and
    one on nothing, under the filter (.2). c: empty, and nothing said. d: not labelled."""
    records = [
        image("a", (0, 0), (20, 1)),
        image("b", (0, 1), difficult=(0,)),
        image("c"),
        image("d", labelled=False),
    ]
    said = {"a": boxes((0, 0, 0.9), (1, 0, 0.6)), "b": boxes((0, 1, 0.8), (20, 1, 0.2)), "c": boxes()}
    return Dataset("x", CLASSES, records), Store(said | {"d": boxes((0, 0, 0.5))})


def test_boxes(detections):
    """Of labelled images only c has no box that passes: 1/3. One of two boxes that are not difficult is found:
    50 %. ECE, bins of 1/15: .9 and right: .1; .6 and wrong (the cat is taken): .6; .8 does not count: .35.
    mAP: the cat's 1, the dog's 0."""
    dataset, store = detections
    score = score_teacher(config(), "detection", dataset, store=store)
    assert (score.labelled, score.images, score.teacher, score.min_score) == (3, 3, "oracle", 0.3)
    assert score.sparsity == pytest.approx(100 / 3)
    assert score.agreement == pytest.approx(50)
    assert score.calibration_error == pytest.approx(35, abs=1e-4)
    assert score.quality == pytest.approx(50)
    assert score.entropy is None


def test_right_boxes_keep_the_order_of_the_prediction():
    """Sorted by class and score the true positive is second; in the prediction it is first."""
    prediction = {"boxes": [(0, 0, 10, 10), (30, 0, 40, 10), (20, 0, 30, 10)], "labels": [1, 1, 0]}
    target = {"boxes": [(0, 0, 10, 10), (20, 0, 30, 10)], "labels": [1, 0], "difficult": [False, True]}
    right, counted = right_boxes(prediction | {"scores": [0.5, 0.9, 0.7]}, target, num_classes=2)
    assert right.tolist() == [True, False, False] and counted.tolist() == [True, True, False]


def test_without_labels_what_needs_none_is_told(detections):
    dataset, store = detections
    dataset.records = dataset.records[3:]
    score = score_teacher(config(), "detection", dataset, store=store)
    assert (score.labelled, score.images, score.sparsity) == (0, 1, 0.0)
    assert score.quality is score.agreement is score.calibration_error is None
    with pytest.raises(UserError, match="its store holds no image of x"):
        score_teacher(config(), "detection", dataset, store=Store({}))


def masks(*maps):
    records = []
    for i, mask in enumerate(maps):
        mask = np.asarray(mask, np.uint8)
        height, width = mask.shape
        records.append(Record(f"m{i}", "", height, width, segmentation=lambda mask=mask: mask))
    return Dataset("x", CLASSES, records)


def probabilities(*planes):
    return SoftSegmentation(np.asarray(planes, np.float32), "probabilities")


def test_pixels():
    """Four pixels, the last void. Likeliest: cat (right, .5), background (right, .8), dog (wrong, .6), background.
    Pixel accuracy 2/3. ECE over three bins of one: (.5 + .2 + .6) / 3. Sparsity: 2 of 4.
    IoU: background 1/2 (predicted once of two labelled), cat 1, dog 0/1: mean 1/2.
    Entropy: (H(.25,.5,.25) + H(.8,.1,.1) + H(.2,.2,.6) + H(1,0,0)) / 4 / ln 3."""
    soft = probabilities([[0.25, 0.8, 0.2, 1.0]], [[0.5, 0.1, 0.2, 0.0]], [[0.25, 0.1, 0.6, 0.0]])
    dataset = masks([[1, 0, 0, 255]])
    score = score_teacher(config(), "segmentation", dataset, store=Store({"m0": soft}))
    assert score.agreement == pytest.approx(200 / 3)
    assert score.calibration_error == pytest.approx(130 / 3, abs=1e-4)
    assert score.sparsity == pytest.approx(50)
    assert score.quality == pytest.approx(50)
    h = -sum(p * math.log(p) for p in (0.25, 0.5, 0.25, 0.8, 0.1, 0.1, 0.2, 0.2, 0.6))
    assert score.entropy == pytest.approx(100 * h / 4 / math.log(3), abs=1e-3)


def test_entropy_at_its_ends():
    """All classes alike: 1; one certain: 0."""
    assert mean_entropy(np.full((5, 2, 3), 0.2, np.float32)) == pytest.approx(1)
    certain = np.zeros((5, 2, 3), np.float32)
    certain[2] = 1
    assert mean_entropy(certain) == 0


def test_probabilities_of_each_form():
    """Logits through a softmax; scores .6 for one class leave .4 to background; no score leaves all."""
    logits = SoftSegmentation(np.log(np.array([[[0.1]], [[0.7]], [[0.2]]], np.float32)), "logits")
    np.testing.assert_allclose(pixel_probabilities(logits, (2, 2))[:, 1, 1], [0.1, 0.7, 0.2], atol=1e-6)
    scores = SoftSegmentation(np.array([[[0, 0]], [[0.6, 0]], [[0, 0]]], np.float32), "scores")
    p = pixel_probabilities(scores, (1, 2))
    np.testing.assert_allclose(p[:, 0], [[0.4, 1], [0.6, 0], [0, 0]], atol=1e-6)


def test_at_most_so_many_images_evenly_spaced():
    soft = probabilities([[1.0]], [[0.0]], [[0.0]])
    dataset = masks(*[[[0]]] * 9)
    asked = []

    class Watched(Store):
        def get_segmentation(self, image_id):
            asked.append(image_id)
            return soft

    store = Watched({record.image_id: None for record in dataset.records})
    score = score_teacher(config(), "segmentation", dataset, store=store, limit=3)
    assert asked == ["m0", "m4", "m8"] and (score.labelled, score.images) == (9, 3)


def test_a_run_computes_once_and_again_when_something_changed(detections, tmp_path):
    dataset, store = detections
    cfg = config()
    cfg.OUTPUT_DIR = str(tmp_path)
    first = score_run(cfg, {"detection": store}, dataset)
    assert read_scores(tmp_path) == first

    def fail(image_id):
        raise AssertionError("the saved score should do")

    store.get_detections = fail
    assert score_run(cfg, {"detection": store}, dataset) == first
    cfg.DISTILL.DETECTION.MIN_SCORE = 0.7
    with pytest.raises(AssertionError):
        score_run(cfg, {"detection": store}, dataset)
    cfg.TEACHER.SCORE_IMAGES = 0
    assert score_run(cfg, {"detection": store}, dataset) == {}


def test_a_score_beside_the_cache_is_taken(detections, tmp_path):
    dataset, store = detections
    cfg = config()
    cfg.OUTPUT_DIR, cfg.TEACHER.DETECTION.CACHE = str(tmp_path / "run"), str(tmp_path / "cache")
    score = score_teacher(cfg, "detection", dataset, store=store)
    score.quality = 12.5
    write_scores(tmp_path / "cache", {"detection": score})
    assert score_run(cfg, {"detection": store}, dataset)["detection"].quality == 12.5
    assert read_scores(tmp_path / "run")["detection"].quality == 12.5


def test_a_teacher_without_score_does_not_stop_the_run(tmp_path, caplog):
    cfg = config()
    cfg.OUTPUT_DIR = str(tmp_path)
    assert score_run(cfg, {"segmentation": Store({})}, masks([[0]])) == {}
    assert "no score of the segmentation teacher: TEACHER.SEGMENTATION" in caplog.text
    (tmp_path / "teacher_scores.json").write_text("{")
    assert read_scores(tmp_path) == {}


def test_table_in_text_and_report(detections, tmp_path):
    dataset, store = detections
    scores = {"detection": score_teacher(config(), "detection", dataset, store=store)}
    lines = score_table(scores).splitlines()
    assert " ".join(lines[0].split()) == "task teacher images mAP / mIoU ECE entropy sparsity agreement"
    assert " ".join(lines[1].split()) == "detection oracle 3 50.00 35.00 – 33.33 50.00"
    write_scores(tmp_path, scores)
    page = write_report(tmp_path, results={}).read_text(encoding="utf-8")
    assert "<h2>Teachers</h2>" in page and "oracle" in page and "33.33" in page
    (tmp_path / "teacher_scores.json").unlink()
    assert "<h2>Teachers</h2>" not in write_report(tmp_path, results={}).read_text(encoding="utf-8")
