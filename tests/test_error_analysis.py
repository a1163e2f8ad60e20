"""Kinds of detection errors, by hand."""

import math

import numpy as np
import pytest
from voc_folder import bare_config, make_voc

from scenekd.data.catalog import load_datasets
from scenekd.evaluation.error_analysis import KINDS, ErrorRecords
from scenekd.evaluation.evaluator import ERRORS, Evaluator
from scenekd.report import write_report
from scenekd.report_tables import error_shares

CLASSES = ("cat", "dog", "car")


def prediction(*rows):
    """Rows of (label, score, x1): boxes of 10 × 10 at height 0."""
    return {
        "labels": np.asarray([row[0] for row in rows], int),
        "scores": np.asarray([row[1] for row in rows], float),
        "boxes": np.asarray([[row[2], 0, row[2] + 10, 10] for row in rows], float).reshape(-1, 4),
    }


def target(*rows, difficult=None):
    """Rows of (label, x1)."""
    return {
        "labels": np.asarray([row[0] for row in rows], int),
        "boxes": np.asarray([[row[1], 0, row[1] + 10, 10] for row in rows], float).reshape(-1, 4),
        "difficult": np.zeros(len(rows), bool) if difficult is None else np.asarray(difficult),
    }


def kinds(records, label):
    return dict(zip(KINDS, records.counts()[label].tolist()))


def test_each_kind():
    # Five cats, so the five surest cat detections count. Boxes shifted by d overlap (10 − d) / (10 + d):
    # 0 → 1; 5 → 1/3; 8 → 1/9 = .111.
    records = ErrorRecords(CLASSES)
    truth = target((0, 0), (0, 200), (0, 300), (0, 400), (0, 500), (1, 100), (2, 150))
    found = prediction(
        (0, 0.9, 0),  # correct
        (0, 0.8, 1),  # the same cat again: IoU 9/11, localisation
        (0, 0.7, 205),  # IoU 1/3 with a cat: localisation
        (0, 0.6, 108),  # IoU 1/9 with a dog: similar
        (0, 0.5, 158),  # IoU 1/9 with a car: other
        (0, 0.4, 700),  # nothing there, but it is the sixth
    )
    records.add("a", found, truth)
    assert kinds(records, 0) == {
        "correct": 1,
        "localisation": 2,
        "similar": 1,
        "other": 1,
        "background": 0,
    }
    summary = records.summary()
    assert summary["localisation-cat"] == pytest.approx(40.0)
    assert summary["correct"] == pytest.approx(20.0)
    assert np.isnan(summary["correct-dog"])


def test_a_similar_class_wins_over_another():
    # One box overlaps a car by 1/3 and a dog by 1/9: similar is asked first.
    records = ErrorRecords(CLASSES)
    records.add("a", prediction((0, 0.9, 100)), target((2, 105), (1, 108), (0, 500)))
    assert kinds(records, 0)["similar"] == 1


def test_background_and_an_image_without_boxes():
    records = ErrorRecords(CLASSES)
    records.add("a", prediction(), target((0, 0)))
    records.add("b", prediction((0, 0.3, 0)), target())
    assert kinds(records, 0)["background"] == 1


def test_what_lies_on_a_difficult_box_is_left_out():
    # One countable cat: the surest detection lies on the difficult one, so the second is looked at.
    records = ErrorRecords(CLASSES)
    records.add(
        "a", prediction((0, 0.9, 0), (0, 0.5, 100)), target((0, 0), (0, 100), difficult=[True, False])
    )
    assert kinds(records, 0) == {
        "correct": 1,
        "localisation": 0,
        "similar": 0,
        "other": 0,
        "background": 0,
    }


def test_surest_over_all_images_and_images_count_once():
    records = ErrorRecords(CLASSES)
    records.add("b", prediction((0, 0.2, 0)), target((0, 0)))
    records.add("a", prediction((0, 0.9, 300), (0, 0.8, 400)), target((0, 0)))
    records.add("a", prediction((0, 1.0, 0)), target((0, 0)))
    # Two cats in all: the two surest are both on nothing.
    assert kinds(records, 0)["background"] == 2


def test_merged_records_give_the_same():
    one, two, both = (ErrorRecords(CLASSES) for _ in range(3))
    first = (prediction((0, 0.9, 0), (1, 0.5, 0)), target((0, 0), (1, 50)))
    second = (prediction((0, 0.8, 5), (1, 0.6, 50)), target((0, 0), (1, 50)))
    one.add("a", *first)
    two.add("b", *second)
    both.add("b", *second)
    both.add("a", *first)
    one.merge(two.state())
    assert np.array_equal(one.counts(), both.counts())


def test_perfect_detections_have_no_errors():
    records = ErrorRecords(CLASSES)
    records.add("a", prediction((0, 0.9, 0), (1, 0.8, 50)), target((0, 0), (1, 50)))
    assert records.summary()["correct"] == 100


def test_through_the_evaluator_to_the_report(tmp_path):
    # Four images, one box each (aeroplane, bicycle, bird, boat): two found, one a little off, one not there.
    cfg = bare_config()
    cfg.DATASETS.ROOT = str(make_voc(tmp_path / "voc"))
    data = load_datasets(("voc_seg_train",), cfg, train=False)
    evaluator = Evaluator(data, tasks=("bbox",), error_analysis=True)
    shifts = {"a0": 0.0, "a1": 0.0, "a2": 14.0, "a3": 1000.0}
    for record in data.records:
        boxes = record.boxes + [shifts[record.image_id], 0, shifts[record.image_id], 0]
        evaluator.add_arrays(record.image_id, boxes=boxes, labels=record.labels, scores=np.ones(1))
    results = evaluator.summarize()
    # Boxes of 31 × 21 shifted by 14 overlap 17 / 45 = .38.
    assert results[ERRORS]["correct"] == 50
    assert (results[ERRORS]["localisation"], results[ERRORS]["background"]) == (25, 25)
    shares = error_shares(results)
    assert shares["aeroplane"]["correct"] == 100 and shares["boat"]["background"] == 100
    assert math.isnan(shares["cat"]["correct"])
    assert "Wrong boxes" in write_report(tmp_path, results=results).read_text(encoding="utf-8")
    assert ERRORS not in Evaluator(data, tasks=("bbox",))._records
