"""The thesis's tutor files and folders of saved outputs: read, written, and refused where they are
hostile."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from scenekd.data.voc import VOC_CLASSES
from scenekd.errors import BadRecordError, UserError
from scenekd.sample import SoftSegmentation
from scenekd.teachers.folder import FolderStore, read_top_classes
from scenekd.teachers.label_map import build_class_map
from scenekd.teachers.protocol import Detections, TeacherInfo
from scenekd.teachers.thesis_files import read_detections, read_scores, write_detections, write_scores

DATA = Path(os.environ.get("SCENEKD_TEST_DATA", "/nonexistent"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="SCENEKD_TEST_DATA names no folder")
IDENTITY = build_class_map(VOC_CLASSES, VOC_CLASSES)

OBJECT = (
    "<object><name>{name}</name><class_index>{index}</class_index><bndbox><xmin>{xmin}</xmin><ymin>2.5</ymin>"
    "<xmax>30.25</xmax><ymax>40</ymax></bndbox><confidence>{confidence}</confidence></object>"
)


def document(**changes):
    fields = {"name": "cat", "index": "8", "xmin": "1.5", "confidence": "0.75"} | changes
    return "<annotation><filename>a.jpg</filename>" + OBJECT.format(**fields) + "</annotation>"


def test_object_is_read(tmp_path):
    (tmp_path / "a.xml").write_text(document())
    boxes, labels, scores = read_detections(tmp_path / "a.xml", VOC_CLASSES)
    assert boxes.tolist() == [[1.5, 2.5, 30.25, 40.0]]
    assert labels.tolist() == [7] and scores.tolist() == [0.75]  # cat is class_index 8, label 7


@needs_data
def test_published_example(tmp_path):
    """102 objects; the first in the file is an aeroplane of 1.7e-5."""
    path = DATA / "thesis_tutor" / "2011_003244.xml"
    detections = read_detections(path, VOC_CLASSES)
    assert len(detections.boxes) == 102 and set(detections.labels) == set(range(20))
    assert (np.diff(detections.scores) <= 0).all()
    place = np.flatnonzero(detections.scores == np.float32(1.734371e-05))
    assert detections.labels[place].tolist() == [0]
    np.testing.assert_array_equal(
        detections.boxes[place], np.float32([[41.78563, 82.763824, 392.43182, 347.12283]])
    )
    write_detections(tmp_path / "b.xml", detections, VOC_CLASSES, filename="2011_003244.jpg")
    for got, want in zip(read_detections(tmp_path / "b.xml", VOC_CLASSES), detections):
        np.testing.assert_array_equal(got, want)


def test_empty_file_has_no_boxes(tmp_path):
    write_detections(tmp_path / "a.xml", Detections.build([], [], []), VOC_CLASSES, filename="a.jpg")
    assert read_detections(tmp_path / "a.xml", VOC_CLASSES).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "Document is empty"),
        (document()[:-20], "well-formed"),
        (document(index="21"), "outside 1…20"),
        (document(index="0"), "outside 1…20"),
        (document(index="9"), "class_index 9 is chair, not cat"),
        (document(index="x"), "invalid literal"),
        (document(xmin="31"), "bad box"),
        (document(xmin="nan"), "bad box"),
        (document(confidence="1.5"), "outside 0…1"),
        (document(confidence=""), "lacks confidence"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
    ],
)
def test_bad_xml_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(BadRecordError, match=f"a.xml: no valid tutor file: .*({message})"):
        read_detections(path, VOC_CLASSES)


def test_scores_are_read_as_a_view_of_the_file(tmp_path):
    values = np.zeros((21, 6, 8), np.float32)
    values[8, 2:4, 3:5] = 0.875
    write_scores(tmp_path / "a.npy", SoftSegmentation(values, "scores"))
    assert np.load(tmp_path / "a.npy").shape == (6, 8, 21)
    soft = read_scores(tmp_path / "a.npy", 20)
    assert soft.form == "scores" and isinstance(soft.values, np.memmap)
    np.testing.assert_array_equal(soft.values, values)


class Hostile:
    """Unpickling it would make a file."""

    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_pickled_npy_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([Hostile()], object), allow_pickle=True)
    Path("b.npy").write_bytes(pickle.dumps(Hostile()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(BadRecordError, match="no valid tutor file"):
            read_scores(name, 20)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "array", [np.zeros((4, 5, 20), np.float32), np.zeros((4, 5, 21)), np.zeros((4, 5), np.float32)]
)
def test_npy_of_another_kind_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadRecordError, match="float32 array|shape"):
        read_scores(tmp_path / "a.npy", 20)


def test_cut_npy_is_refused(tmp_path):
    write_scores(tmp_path / "a.npy", SoftSegmentation(np.zeros((21, 6, 8), np.float32), "scores"))
    data = (tmp_path / "a.npy").read_bytes()
    for size in (0, 5, 100, len(data) - 1):
        (tmp_path / "a.npy").write_bytes(data[:size])
        with pytest.raises(BadRecordError, match="no valid tutor file"):
            read_scores(tmp_path / "a.npy", 20)


def save_top(path, **changes):
    """One cell: classes 3, 0, 5, 1 with log-probabilities −0.5, −1.5, −3, −4."""
    arrays = {
        "classes": np.array([3, 0, 5, 1], np.uint8).reshape(4, 1, 1),
        "logits": np.array([-0.5, -1.5, -3, -4], np.float16).reshape(4, 1, 1),
        "logsumexp": np.zeros((1, 1), np.float16),
    }
    np.savez_compressed(path, **(arrays | changes))


def test_top_classes_are_spread_over_the_others(tmp_path):
    save_top(tmp_path / "a.npz")
    p = softmax(read_top_classes(tmp_path / "a.npz", 20).values[:, 0, 0].astype(np.float64))
    top = np.exp([-0.5, -1.5, -3, -4])
    np.testing.assert_allclose(p[[3, 0, 5, 1]], top, rtol=1e-5)
    # What is left to 1 is shared evenly by the other 17 classes.
    np.testing.assert_allclose(np.delete(p, [3, 0, 5, 1]), (1 - top.sum()) / 17, rtol=1e-5)


@needs_data
def test_real_folder():
    """Against the definition, written out for a cell at a time."""
    folder = DATA / "voc_pool_320" / "TeacherSegmentation"
    info = TeacherInfo("folder", "espnetv2")
    store = FolderStore(folder, "segmentation", IDENTITY, info)
    assert len(store) == 3243 and store.info["form"] == "logits"
    image_id = store.image_ids[100]
    soft = store.get_segmentation(image_id)
    assert soft.values.shape == (21, 64, 64)
    with np.load(folder / f"{image_id}.npz") as saved:
        arrays = {name: saved[name].astype(np.float64) for name in saved.files}
    rng = np.random.default_rng(0)
    for i, j in rng.integers(0, 64, (50, 2)):
        expected = np.full(21, np.nan)
        p = np.exp(arrays["logits"][:, i, j] - arrays["logsumexp"][i, j])
        expected[arrays["classes"][:, i, j].astype(int)] = p
        expected[np.isnan(expected)] = (1 - p.sum()) / 17
        got = softmax(soft.values[:, i, j].astype(np.float64))
        np.testing.assert_allclose(got, expected, atol=2e-6)
    with pytest.raises(ValueError, match="no boxes"):
        store.get_detections(image_id)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": np.full((4, 1, 1), 21, np.uint8)}, "below 21"),
        ({"logits": np.zeros((3, 1, 1), np.float16)}, "do not fit together"),
        ({"logits": np.full((4, 1, 1), np.nan, np.float16)}, "finite"),
        ({"logits": np.array([Hostile()] * 4, object).reshape(4, 1, 1)}, "no plain array"),
        ({"logits": np.zeros((4, 1 << 14, 1 << 10), np.float16)}, "too large"),
    ],
)
def test_bad_npz_is_one_clear_error(tmp_path, changes, message):
    save_top(tmp_path / "a.npz", **changes)
    with pytest.raises(BadRecordError, match=f"a.npz: no valid saved output: .*{message}"):
        read_top_classes(tmp_path / "a.npz", 20)


def test_npz_whose_header_claims_more_than_it_holds(tmp_path):
    save_top(tmp_path / "a.npz")
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f2", "fortran_order": False, "shape": (4, 1 << 20, 1 << 20)}
    )
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as hostile, zipfile.ZipFile(tmp_path / "a.npz") as good:
        for name in good.namelist():
            hostile.writestr(name, stream.getvalue() if name == "logits.npy" else good.read(name))
    with pytest.raises(BadRecordError, match="b.npz: no valid saved output"):
        read_top_classes(tmp_path / "b.npz", 20)
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(BadRecordError, match="c.npz: no valid saved output"):
        read_top_classes(tmp_path / "c.npz", 20)


def test_folder_of_thesis_files(tmp_path):
    (tmp_path / "im1.xml").write_text(document())
    write_scores(tmp_path / "im1.npy", SoftSegmentation(np.zeros((21, 6, 8), np.float32), "scores"))
    boxes = FolderStore(tmp_path, "detection", IDENTITY, TeacherInfo("thesis", "tutor"))
    dense = FolderStore(tmp_path, "segmentation", IDENTITY, TeacherInfo("thesis", "tutor"))
    assert boxes.get_detections("im1").labels.tolist() == [7]
    assert dense.get_segmentation("im1").values.shape == (21, 6, 8) and dense.info["form"] == "scores"
    assert "im1" in boxes and "../im1" not in boxes
    with pytest.raises(UserError, match="no saved output of image ../im1"):
        dense.get_segmentation("../im1")
    with pytest.raises(UserError, match="no such folder"):
        FolderStore(tmp_path / "x", "detection", IDENTITY, TeacherInfo("thesis", "tutor"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no .npz or .npy file"):
        FolderStore(tmp_path / "empty", "segmentation", IDENTITY, TeacherInfo("thesis", "tutor"))
