"""Segmentation metrics against scikit-learn, torchmetrics and MMSegmentation, and by hand."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, jaccard_score
from sklearn.metrics import confusion_matrix as sklearn_matrix
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from scenekd.evaluation.semantic import SegmentationRecords, confusion_matrix, segmentation_scores


def random_maps(num_classes, ignore_index, shape=(40, 50), seed=0, dtype=np.int64):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, shape)
    pred = np.where(rng.random(shape) < 0.6, label, rng.integers(0, num_classes, shape))
    if ignore_index is not None:
        label = np.where(rng.random(shape) < 0.2, ignore_index, label)
    return pred.astype(dtype), label.astype(dtype)


@pytest.mark.parametrize("ignore_index", [None, 255, 0, 3, -1, -100, 1000])
@pytest.mark.parametrize("num_classes", [1, 5, 21])
def test_matrix_is_scikit_learns(num_classes, ignore_index):
    if ignore_index == 0 and num_classes == 1:
        return  # nothing would be left
    pred, label = random_maps(num_classes, ignore_index)
    keep = np.ones(label.shape, bool) if ignore_index is None else label != ignore_index
    oracle = sklearn_matrix(label[keep], pred[keep], labels=np.arange(num_classes))
    ours = confusion_matrix(pred, label, num_classes, ignore_index)
    assert ours.dtype == np.int64
    assert (ours == oracle).all()


@pytest.mark.parametrize("ignore_index", [None, 255, 2, -100])
def test_matrix_is_torchmetrics(ignore_index):
    pred, label = (torch.from_numpy(x) for x in random_maps(7, ignore_index))
    oracle = multiclass_confusion_matrix(pred, label, 7, ignore_index=ignore_index)
    assert (confusion_matrix(pred, label, 7, ignore_index) == oracle.numpy()).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_matrix_for_any_integer_type_and_more_than_256_classes(dtype):
    pred, label = random_maps(21, 255, dtype=dtype)
    wide = confusion_matrix(pred.astype(np.int64), label.astype(np.int64), 300)
    # Label 255 counts as a class where another index is ignored.
    assert (confusion_matrix(pred, label, 300, 299)[:21, :21] == wide[:21, :21]).all()
    assert confusion_matrix(pred, label, 300, None)[255].sum() == (label == 255).sum()
    assert (confusion_matrix(pred, label, 21) == wide[:21, :21]).all()
    assert (confusion_matrix(pred[:, ::2], label[:, ::2], 21).sum()) == (label[:, ::2] != 255).sum()


def test_matrix_of_a_large_image_is_counted_in_parts(monkeypatch):
    pred, label = random_maps(5, 255, dtype=np.uint8)
    whole = confusion_matrix(pred, label, 5)
    monkeypatch.setattr("scenekd.evaluation.semantic._PIXELS_AT_ONCE", 77)
    assert (confusion_matrix(pred, label, 5) == whole).all()


def test_matrix_is_indexed_label_then_prediction():
    # One pixel of class 0 taken for class 1.
    assert confusion_matrix(np.array([[1]]), np.array([[0]]), 2).tolist() == [[0, 1], [0, 0]]


def test_matrix_reads_nothing_where_the_label_is_ignored():
    assert confusion_matrix(np.array([255, 1], np.uint8), np.array([255, 1], np.uint8), 2)[1, 1] == 1
    assert confusion_matrix(np.array([-7, 1]), np.array([255, 1]), 2).sum() == 1
    assert confusion_matrix(np.zeros((0, 3), int), np.zeros((0, 3), int), 2).sum() == 0


@pytest.mark.parametrize(
    ("pred", "label"),
    [
        ([2], [0]),
        ([-1], [0]),
        ([255], [0]),
        ([300], [0]),
        ([0], [2]),
        ([0], [-1]),
        ([0, 0], [0]),
        ([0.0], [0]),
        ([0], [0.5]),
    ],
)
def test_matrix_refuses(pred, label):
    with pytest.raises(ValueError):
        confusion_matrix(np.array(pred), np.array(label), 2)


@pytest.mark.parametrize("ignore_index", [255, 0, 4])
def test_scores_against_scikit_learn_and_torchmetrics(ignore_index):
    pred, label = random_maps(6, ignore_index, seed=2)
    pred[pred == 5] = 1  # class 5 is labelled but never predicted
    records = SegmentationRecords([f"c{k}" for k in range(6)], ignore_index)
    for i in range(len(pred)):
        records.add(f"{i}", pred[i], label[i])
    summary = records.summary()
    keep = label != ignore_index
    present = np.unique(np.concatenate([label[keep], pred[keep]]))
    iou = jaccard_score(label[keep], pred[keep], labels=present, average=None)
    assert [summary[f"IoU-c{k}"] for k in present] == pytest.approx(list(100 * iou))
    assert summary["mIoU"] == pytest.approx(100 * iou.mean())
    share = np.array([np.mean(label[keep] == k) for k in present])
    assert summary["fwIoU"] == pytest.approx(100 * (iou * share).sum())
    assert summary["pACC"] == pytest.approx(100 * np.mean(pred[keep] == label[keep]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class predicted only where another is labelled
        assert summary["mACC"] == pytest.approx(100 * balanced_accuracy_score(label[keep], pred[keep]))
    tensors = torch.from_numpy(pred), torch.from_numpy(label)
    if ignore_index == 255:
        oracle = multiclass_jaccard_index(*tensors, 6, average="none", ignore_index=255).numpy()
        assert [summary[f"IoU-c{k}"] for k in range(6)] == pytest.approx(list(100 * oracle), abs=1e-4)
    micro = multiclass_accuracy(*tensors, 6, average="micro", ignore_index=ignore_index)
    assert summary["pACC"] == pytest.approx(100 * float(micro), abs=1e-4)


def test_means_by_hand():
    # Class 0: 2 of 3 right, one taken for class 1 → IoU 2/3. Class 1: 1 right of 1, one extra → 1/2.
    # Class 2: in the predictions of class-3 pixels only → IoU 0, no accuracy. Class 3 → IoU 0, accuracy 0.
    # Class 4: nowhere → NaN, in no mean.
    label = np.array([0, 0, 0, 1, 3])
    pred = np.array([0, 0, 1, 1, 2])
    matrix = confusion_matrix(pred, label, 5)
    scores = segmentation_scores(matrix.diagonal(), matrix.sum(1), matrix.sum(0))
    np.testing.assert_allclose(scores["iou"], [2 / 3, 1 / 2, 0, 0, np.nan])
    np.testing.assert_allclose(scores["accuracy"], [2 / 3, 1, np.nan, 0, np.nan])
    assert scores["mIoU"] == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert scores["mACC"] == pytest.approx((2 / 3 + 1) / 3)
    assert scores["fwIoU"] == pytest.approx(3 / 5 * 2 / 3 + 1 / 5 * 1 / 2)
    assert scores["pACC"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("ignore_index", [255, 3])
def test_against_mmsegmentation(ignore_index):
    metric = pytest.importorskip("mmseg.evaluation.metrics").IoUMetric
    areas, records = [], SegmentationRecords([str(k) for k in range(8)], ignore_index)
    for seed in range(5):
        pred, label = random_maps(8, ignore_index, seed=seed)
        records.add(str(seed), pred, label)
        areas.append(
            metric.intersect_and_union(torch.from_numpy(pred), torch.from_numpy(label), 8, ignore_index)
        )
    oracle = metric.total_area_to_metrics(*(sum(a) for a in zip(*areas)), ["mIoU"])
    summary = records.summary()
    assert summary["pACC"] == pytest.approx(100 * float(oracle["aAcc"]), abs=1e-4)
    ours = np.array([[summary[f"IoU-{k}"], summary[f"ACC-{k}"]] for k in range(8)])
    np.testing.assert_allclose(ours[:, 0], 100 * np.asarray(oracle["IoU"]), atol=1e-4)
    np.testing.assert_allclose(ours[:, 1], 100 * np.asarray(oracle["Acc"]), atol=1e-4)


def make_records(images, seed=0):
    records = SegmentationRecords(["background", "a", "b"])
    for i in images:
        pred, label = random_maps(3, 255, shape=(8, 9), seed=seed + i)
        records.add(f"image{i}", pred, label)
    return records


def test_records_merge_to_the_same_numbers_and_drop_duplicates():
    whole = make_records(range(6))
    first, second = make_records([4, 0, 2]), make_records([5, 1, 3, 2, 0])
    first.merge(second.state())
    assert len(first) == 6
    assert (first.matrix() == whole.matrix()).all()
    assert first.summary(bootstrap=20) == whole.summary(bootstrap=20)
    before = whole.matrix()
    whole.add("image0", np.zeros((2, 2), int), np.zeros((2, 2), int))
    assert (whole.matrix() == before).all()


def test_bootstrap_intervals_are_those_of_resampled_images():
    records = make_records(range(12))
    summary = records.summary(bootstrap=200, seed=5)
    low, high = summary["mIoU_interval"]
    assert low < summary["mIoU"] < high
    # The slow way: sum the matrices of the drawn images.
    matrices = [make_records([i]).matrix() for i in sorted(range(12), key=lambda i: f"image{i}")]
    rng = np.random.default_rng(5)
    means = []
    for drawn in rng.integers(0, 12, size=(200, 12)):
        total = sum(matrices[i] for i in drawn)
        union = total.sum(0) + total.sum(1) - total.diagonal()
        means.append(100 * np.mean(total.diagonal() / union))
    assert [low, high] == pytest.approx(list(np.quantile(means, [0.025, 0.975])))


def test_records_without_images_say_so():
    with pytest.raises(ValueError, match="no image"):
        SegmentationRecords(["background"]).summary()
