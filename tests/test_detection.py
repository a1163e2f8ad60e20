"""VOC average precision by hand, on a published toy set, and against a plain loop over the rules."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from scenekd.evaluation.detection import IOU_THRESHOLDS, DetectionRecords, voc_ap

BOX = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def prediction(*rows):
    """Rows of (box, score, label)."""
    return {
        "boxes": np.array([r[0] for r in rows], float).reshape(-1, 4),
        "scores": np.array([r[1] for r in rows], float),
        "labels": np.array([r[2] for r in rows], int),
    }


def target(*rows):
    """Rows of (box, label, difficult)."""
    return {
        "boxes": np.array([r[0] for r in rows], float).reshape(-1, 4),
        "labels": np.array([r[1] for r in rows], int),
        "difficult": np.array([r[2] for r in rows], bool),
    }


def random_case(num_images=30, num_classes=4, per_image=20, seed=0):
    """Detections scattered round the boxes, distinct scores, a quarter of the boxes difficult."""
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    scores = rng.permutation(num_images * per_image) / (num_images * per_image)
    for i in range(num_images):
        m = int(rng.integers(0, 6))
        corner = rng.integers(1, 200, (m, 2))
        truth = np.concatenate([corner, corner + rng.integers(10, 120, (m, 2))], axis=1).astype(float)
        labels = rng.integers(0, num_classes, m)
        boxes, chosen = rng.uniform(0, 100, (per_image, 4)), rng.integers(0, num_classes, per_image)
        boxes[:, 2:] += boxes[:, :2] + 1
        if m:
            near = rng.random(per_image) < 0.8
            source = rng.integers(0, m, per_image)
            jitter = truth[source] + rng.normal(0, 5, (per_image, 4))
            jitter[:, 2:] = np.maximum(jitter[:, 2:], jitter[:, :2] + 1)
            boxes = np.where(near[:, None], jitter, boxes)
            chosen = np.where(near, labels[source], chosen)
        part = scores[i * per_image : (i + 1) * per_image]
        predictions.append({"boxes": boxes, "scores": part, "labels": chosen})
        targets.append({"boxes": truth, "labels": labels, "difficult": rng.random(m) < 0.25})
    return predictions, targets


def slow_ap(predictions, targets, label, threshold, use_07_metric=False, extra=0.0):
    """The rules of the devkit, one detection after another."""
    ranked = sorted(
        ((-s, i, n) for i, p in enumerate(predictions) for n, s in enumerate(p["scores"])),
        key=lambda entry: entry[0],
    )
    ranked = [(i, n) for _, i, n in ranked if predictions[i]["labels"][n] == label]
    claimed, hits = set(), []
    for i, n in ranked:
        a, best, where = predictions[i]["boxes"][n], -1.0, None
        for g, b in enumerate(targets[i]["boxes"]):
            if targets[i]["labels"][g] != label:
                continue
            w = max(min(a[2], b[2]) - max(a[0], b[0]) + extra, 0)
            h = max(min(a[3], b[3]) - max(a[1], b[1]) + extra, 0)
            area = [(x[2] - x[0] + extra) * (x[3] - x[1] + extra) for x in (a, b)]
            iou = w * h / (sum(area) - w * h)
            if iou > best:
                best, where = iou, g
        if best > threshold:
            if targets[i]["difficult"][where]:
                continue
            hits.append((i, where) not in claimed)
            claimed.add((i, where))
        else:
            hits.append(False)
    positives = sum(int((t["labels"][~t["difficult"]] == label).sum()) for t in targets)
    if not positives:
        return np.nan
    recall = np.cumsum(hits) / positives
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    if use_07_metric:
        return np.mean([max(precision[recall >= t], default=0) for t in np.arange(0, 1.1, 0.1)])
    area, previous = 0.0, 0.0
    for k in range(len(hits)):
        area += (recall[k] - previous) * precision[k:].max()
        previous = recall[k]
    return area


def test_area_and_eleven_points_by_hand():
    # Ranked: hit, miss, hit; two boxes. Recall ½ at precision 1, recall 1 at precision 2/3.
    p = [prediction((BOX, 0.9, 0), (FAR, 0.8, 0)), prediction((BOX, 0.7, 0))]
    t = [target((BOX, 0, 0)), target((BOX, 0, 0))]
    # Area: ½ · 1 + ½ · 2/3 = 5/6.
    assert voc_ap(p, t, num_classes=1) == pytest.approx([5 / 6])
    # Levels 0 … .5 reach precision 1, .6 … 1 reach 2/3: (6 + 5 · 2/3) / 11.
    assert voc_ap(p, t, num_classes=1, use_07_metric=True) == pytest.approx([(6 + 10 / 3) / 11])


def test_second_detection_of_a_box_is_false():
    # hit, then a duplicate, then a hit: as above.
    p = [prediction((BOX, 0.9, 0), (BOX, 0.8, 0), (FAR, 0.7, 0))]
    t = [target((BOX, 0, 0), (FAR, 0, 0))]
    assert voc_ap(p, t, num_classes=1) == pytest.approx([5 / 6])


def test_detections_on_difficult_boxes_count_neither_way():
    p = [prediction((FAR, 0.9, 0), (FAR, 0.8, 0), (BOX, 0.7, 0))]
    assert voc_ap(p, [target((BOX, 0, 0), (FAR, 0, 1))], num_classes=1) == [1.0]
    # Without the flag of the far box: one hit, one duplicate, one hit.
    assert voc_ap(p, [target((BOX, 0, 0), (FAR, 0, 0))], num_classes=1) == pytest.approx([5 / 6])


def test_a_detection_only_looks_at_the_box_it_overlaps_most():
    # It overlaps a difficult box most, so it does not claim the other one, which it overlaps by 0.6 as well.
    detection = [0.0, 0.0, 10.0, 10.0]
    p = [prediction((detection, 0.9, 0))]
    t = [target(([0.0, 0.0, 10.0, 9.0], 0, 1), ([0.0, 0.0, 10.0, 6.0], 0, 0))]
    assert voc_ap(p, t, num_classes=1) == [0.0]


def test_overlap_must_exceed_the_threshold_strictly():
    # The box is half of the detection: IoU is ½ exactly.
    p, t = [prediction((BOX, 0.9, 0))], [target(([0.0, 0.0, 10.0, 5.0], 0, 0))]
    assert voc_ap(p, t, num_classes=1, iou_threshold=0.5) == [0.0]
    assert voc_ap(p, t, num_classes=1, iou_threshold=0.4999) == [1.0]


def test_equal_scores_keep_their_order():
    hit, miss = (BOX, 0.5, 0), (FAR, 0.5, 0)
    t = [target((BOX, 0, 0))]
    assert voc_ap([prediction(hit, miss)], t, num_classes=1) == [1.0]
    assert voc_ap([prediction(miss, hit)], t, num_classes=1) == [0.5]


def test_classes_without_countable_ground_truth_are_nan():
    p = [prediction((BOX, 0.9, 0), (BOX, 0.9, 1), (BOX, 0.9, 2))]
    t = [target((BOX, 0, 0), (BOX, 1, 1))]
    np.testing.assert_array_equal(voc_ap(p, t, num_classes=4), [1.0, np.nan, np.nan, np.nan])
    empty = voc_ap([], [], num_classes=2)
    assert np.isnan(empty).all() and empty.shape == (2,)
    assert voc_ap([prediction()], [target((BOX, 0, 0))], num_classes=1) == [0.0]


@pytest.mark.parametrize("use_07_metric", [False, True])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_against_the_slow_loop(seed, inclusive, use_07_metric):
    p, t = random_case(seed=seed)
    ours = voc_ap(
        p, t, num_classes=4, iou_threshold=IOU_THRESHOLDS, use_07_metric=use_07_metric, inclusive=inclusive
    )
    for row, threshold in zip(ours, IOU_THRESHOLDS):
        oracle = [slow_ap(p, t, k, threshold, use_07_metric, float(inclusive)) for k in range(4)]
        np.testing.assert_allclose(row, oracle, atol=1e-12)
        alone = voc_ap(
            p, t, num_classes=4, iou_threshold=threshold, use_07_metric=use_07_metric, inclusive=inclusive
        )
        np.testing.assert_array_equal(row, alone)


def test_pairs_in_parts_give_the_same(monkeypatch):
    p, t = random_case(seed=4)
    whole = voc_ap(p, t, num_classes=4)
    monkeypatch.setattr("scenekd.evaluation.matching_voc._PAIRS_AT_ONCE", 7)
    np.testing.assert_array_equal(voc_ap(p, t, num_classes=4), whole)


def test_continuous_boxes_are_the_devkits_inclusive_ones():
    # Loading a VOC file subtracts 1 from xmin and ymin: x2 − (x1 − 1) is the devkit's x2 − x1 + 1.
    p, t = random_case(seed=5)
    shift = np.array([1.0, 1.0, 0.0, 0.0])
    p_file, t_file = ([{**d, "boxes": d["boxes"] + shift} for d in side] for side in (p, t))
    ours = voc_ap(p, t, num_classes=4, iou_threshold=IOU_THRESHOLDS)
    in_file = voc_ap(p_file, t_file, num_classes=4, iou_threshold=IOU_THRESHOLDS, inclusive=True)
    np.testing.assert_allclose(ours, in_file, atol=1e-12)


def test_tensors_and_arrays_give_the_same():
    p, t = random_case()
    tensors = [[{k: torch.from_numpy(v) for k, v in d.items()} for d in side] for side in (p, t)]
    np.testing.assert_array_equal(voc_ap(*tensors, num_classes=4), voc_ap(p, t, num_classes=4))


GOOD = (prediction((BOX, 0.5, 0)), target((BOX, 0, 0)))


@pytest.mark.parametrize(
    ("p", "t", "kwargs"),
    [
        ([GOOD[0]], [], {}),
        ([prediction((BOX, np.nan, 0))], [GOOD[1]], {}),
        ([prediction(([0, 0, np.inf, 1], 0.5, 0))], [GOOD[1]], {}),
        ([prediction(([5, 0, 1, 1], 0.5, 0))], [GOOD[1]], {}),
        ([prediction((BOX, 0.5, 1))], [GOOD[1]], {}),
        ([GOOD[0]], [target((BOX, -1, 0))], {}),
        ([{**GOOD[0], "labels": np.zeros(2, int)}], [GOOD[1]], {}),
        ([{**GOOD[0], "scores": np.zeros(2)}], [GOOD[1]], {}),
        ([GOOD[0]], [{**GOOD[1], "difficult": np.zeros(2, bool)}], {}),
        ([GOOD[0]], [GOOD[1]], {"iou_threshold": 1.5}),
        ([GOOD[0]], [GOOD[1]], {"num_classes": 0}),
    ],
)
def test_refuses(p, t, kwargs):
    with pytest.raises(ValueError):
        voc_ap(p, t, **{"num_classes": 1, **kwargs})


def test_published_toy_set():
    """Seven images with known AP at four thresholds; boxes inclusive, + 1 on widths."""
    root = os.environ.get("SCENEKD_TEST_DATA")
    if not root:
        pytest.skip("SCENEKD_TEST_DATA is not set")
    folder = Path(root) / "evaluator_reference" / "voc_toy_7"

    def read(kind):
        for path in sorted((folder / kind).glob("*.txt")):
            rows = np.array([line.split()[1:] for line in path.read_text().splitlines()], float)
            boxes = rows[:, -4:].copy()
            boxes[:, 2:] += boxes[:, :2]
            labels = np.zeros(len(rows), int)
            yield {"boxes": boxes, "labels": labels, "scores": rows[:, 0]}

    p, t = list(read("dets")), [{"boxes": d["boxes"], "labels": d["labels"]} for d in read("gts")]
    kwargs = dict(num_classes=1, iou_threshold=[0.1, 0.3, 0.5, 0.75], inclusive=True)
    area = voc_ap(p, t, **kwargs)[:, 0]
    np.testing.assert_allclose(area, [0.3371980676, 0.2456866804, 0.0222222222, 0], atol=5e-11)
    eleven = voc_ap(p, t, use_07_metric=True, **kwargs)[:, 0]
    np.testing.assert_allclose(eleven, [0.3333333333, 0.2683982683, 0.0303030303, 0], atol=5e-11)


def make_records(case, images):
    records = DetectionRecords(["a", "b", "c", "d"])
    for i in images:
        records.add(f"{i:03d}", case[0][i], case[1][i])
    return records


def test_records_equal_one_call_and_merge():
    case = random_case()
    whole = make_records(case, range(30))
    summary = whole.summary(bootstrap=20)
    ap = 100 * voc_ap(*case, num_classes=4, iou_threshold=IOU_THRESHOLDS)
    assert [summary[f"AP-{name}"] for name in "abcd"] == pytest.approx(list(ap[0]))
    assert summary["mAP"] == summary["AP50"] == pytest.approx(ap[0].mean())
    assert summary["AP75"] == pytest.approx(ap[5].mean())
    assert summary["AP"] == pytest.approx(ap.mean())
    first, second = make_records(case, range(20)), make_records(case, range(29, 9, -1))
    first.merge(second.state())
    assert len(first) == 30
    assert first.summary(bootstrap=20) == summary
    first.add("000", prediction(), target())
    assert first.summary(bootstrap=20) == summary


@pytest.mark.parametrize("use_07_metric", [False, True])
def test_bootstrap_is_ap_over_resampled_images(use_07_metric):
    """The slow way: repeat the drawn images and score them again."""
    case = random_case(num_images=12, seed=3)
    records = DetectionRecords(["a", "b", "c", "d"], use_07_metric=use_07_metric)
    for i in range(12):
        records.add(f"{i:03d}", case[0][i], case[1][i])
    summary = records.summary(bootstrap=40, seed=7)
    rng = np.random.default_rng(7)
    values = []
    for drawn in rng.integers(0, 12, size=(40, 12)):
        again = [[side[i] for i in np.sort(drawn)] for side in case]
        values.append(100 * voc_ap(*again, num_classes=4, use_07_metric=use_07_metric))
    for key, column in (("mAP", np.nanmean(values, axis=1)), ("AP-a", np.array(values)[:, 0])):
        assert summary[f"{key}_interval"] == pytest.approx(list(np.nanquantile(column, [0.025, 0.975])))


def test_records_without_countable_ground_truth():
    records = DetectionRecords(["a"])
    with pytest.raises(ValueError, match="no image"):
        records.summary()
    records.add("x", prediction((BOX, 0.5, 0)), target())
    summary = records.summary(bootstrap=3)
    assert np.isnan([summary["mAP"], *summary["mAP_interval"]]).all()
