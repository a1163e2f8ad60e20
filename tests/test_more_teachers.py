"""Several detection teachers as one store: calibrated, concatenated, merged as they are read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from scenekd.errors import UserError
from scenekd.teachers.build import build_teacher, check_teacher_overlap, open_saved, open_store
from scenekd.teachers.merged import MergedStore, calibrate
from scenekd.teachers.more import each_teacher
from scenekd.teachers.protocol import Detections
from scenekd.teachers.thesis_files import write_detections

A, B, FAR = [0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30]


class Store:
    """Boxes of one teacher in memory."""

    classes = ("cat", "dog")

    def __init__(self, name, rows, vectors=None, ids=("x",), trained_on=()):
        self.rows, self.vectors, self.ids = rows, vectors, ids
        self.info = {"name": name, "trained_on": list(trained_on), "form": ""}

    def __contains__(self, image_id):
        return image_id in self.ids

    def get_detections(self, image_id):
        if image_id not in self.ids:
            raise UserError(f"{self.info['name']}: holds nothing for image {image_id}")
        return Detections.build(*zip(*self.rows), self.vectors)


def two(**options):
    one = Store("one", [(A, 0, 0.8), (FAR, 1, 0.6)], ids=("x", "y"), trained_on=("s", "t"))
    return MergedStore([one, Store("two", [(B, 0, 0.5)], trained_on=("t",))], [1, 0.8], **options)


def test_boxes_of_both_teachers_side_by_side():
    found = two().get_detections("x")
    np.testing.assert_array_equal(found.boxes, np.float32([A, FAR, B]))
    np.testing.assert_allclose(found.scores, [0.8, 0.6, 0.4], rtol=1e-6)  # .5 · .8
    # A and B are each other's duplicates, IoU .6; nothing supports FAR but its score.
    np.testing.assert_allclose(found.quality, [0.6, 0.6, 0.6], rtol=1e-6)
    assert found.class_probabilities is None


def test_merging():
    np.testing.assert_array_equal(two(merge="nms").get_detections("x").boxes, np.float32([A, FAR]))
    # .4 · (1 − .6) = .16; .4 · exp(−.36 / .5) = .1947
    linear = two(merge="soft_nms_linear").get_detections("x")
    np.testing.assert_allclose(linear.scores, [0.8, 0.6, 0.16], rtol=1e-5)
    soft = two(merge="soft_nms").get_detections("x")
    np.testing.assert_allclose(soft.scores, [0.8, 0.6, 0.4 * np.exp(-0.72)], rtol=1e-5)
    # y2 = (.8 · 10 + .4 · 6) / 1.2 = 26/3 and the mean score .6; FAR was seen by one of two.
    fused = two(merge="wbf").get_detections("x")
    np.testing.assert_allclose(fused.boxes, [[0, 0, 10, 26 / 3], FAR], rtol=1e-6)
    np.testing.assert_allclose(fused.scores, [0.6, 0.3], rtol=1e-6)
    # Both members support the fused box: IoU 26/30 with A and 18/26 with B.
    np.testing.assert_allclose(fused.quality, [(26 / 30 + 18 / 26) / 2, 0.3], rtol=1e-6)


def test_an_image_that_one_teacher_has_not_seen():
    """It is not halved for what the other never looked at."""
    store = two(merge="wbf")
    assert "x" in store and "y" in store and "z" not in store
    np.testing.assert_allclose(store.get_detections("y").scores, [0.8, 0.6], rtol=1e-6)
    with pytest.raises(UserError, match="one: holds nothing for image z"):
        store.get_detections("z")


def test_distributions_are_merged_like_boxes():
    vectors = [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]]
    stores = [Store("one", [(A, 0, 0.8), (FAR, 1, 0.6)], vectors), Store("two", [(B, 0, 0.4)])]
    # Teacher two tells none: .4 for its class, the rest background.
    found = MergedStore(stores, [1, 1], merge="wbf").get_detections("x")
    expected = (0.8 * np.array(vectors[0]) + 0.4 * np.array([0.4, 0, 0.6])) / 1.2
    np.testing.assert_allclose(found.class_probabilities, [expected, vectors[1]], rtol=1e-6)


def test_calibration():
    found = Detections.build([A, B], [0, 1], [0.8, 0.5], [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3]])
    half = calibrate(found, 0.5)
    np.testing.assert_allclose(half.class_probabilities, [[0.4, 0.05, 0.55], [0.1, 0.25, 0.65]], rtol=1e-6)
    np.testing.assert_allclose(half.scores, [0.4, 0.25])
    double = calibrate(found, 2)  # 1.6 + .2 and .4 + 1.0 are scaled to 1
    np.testing.assert_allclose(double.scores, [1, 1])
    np.testing.assert_allclose(
        double.class_probabilities, [[1.6 / 1.8, 0.2 / 1.8, 0], [0.4 / 1.4, 1 / 1.4, 0]], rtol=1e-6
    )
    assert calibrate(found, 1) is found


def test_info_names_all_teachers():
    store = two()
    assert store.info["name"] == "one + two" and store.info["trained_on"] == ["s", "t"]
    assert len(pickle.loads(pickle.dumps(store)).get_detections("x").boxes) == 3  # as a worker receives it


@pytest.mark.parametrize(
    "options, message",
    [
        ({"merge": "magic"}, "MERGE: 'magic' is none of none, nms"),
        ({"iou_threshold": 0.0}, "MERGE_IOU must be in"),
        ({"sigma": 0.0}, "MERGE_SIGMA positive"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        two(**options)


@pytest.fixture
def folders(tmp_path):
    """Saved boxes of two teachers, the second of two of our classes only."""
    ours = ("person", "tree")
    for name, rows, classes in (
        ("first", [(A, 0, 0.8)], ours),
        ("second", [(B, 1, 0.5), (FAR, 0, 0.4)], ("wood", "person")),
    ):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "im.xml"
        write_detections(path, Detections.build(*zip(*rows)), classes, filename="im.jpg")
    return tmp_path


def first(folders):
    return "TEACHER.DETECTION.TYPE", "thesis", "TEACHER.DETECTION.WEIGHTS", folders / "first"


def second(folders, **more):
    return {
        "TYPE": "thesis",
        "WEIGHTS": str(folders / "second"),
        "CLASSES": ["wood", "person"],
        "CLASS_MAP": [["wood", "tree"]],
        "ALLOW_UNMAPPED": True,
    } | more


def test_each_teacher_has_a_class_map_of_its_own(folders, tiny_config):
    alone = open_store(tiny_config("run", *first(folders)), "detection")
    assert not isinstance(alone, MergedStore)
    entries = (second(folders, SCORE_FACTOR=1, TRAINED_ON=["voc_seg_train"]),)
    cfg = tiny_config("run", *first(folders), "TEACHER.DETECTION.MORE", str(entries))
    store = open_store(cfg, "detection")
    found = store.get_detections("im")
    # The second's wood is our tree (label 1), its person ours (label 0).
    np.testing.assert_array_equal(found.boxes, np.float32([A, B, FAR]))
    assert found.labels.tolist() == [0, 0, 1]
    assert store.info["name"] == "first + second"
    assert "shares 0 images of DATASETS.TEST and 12 images" in check_teacher_overlap(cfg)[0]
    assert not isinstance(open_saved(cfg, "detection"), MergedStore)
    fused = tiny_config(
        "run", *first(folders), "TEACHER.DETECTION.MORE", str(entries), "TEACHER.DETECTION.MERGE", "wbf"
    )
    assert len(open_store(fused, "detection").get_detections("im").boxes) == 2
    seen = (second(folders, TRAINED_ON=["voc_seg_val"]),)
    with pytest.raises(UserError, match="shares 6 images of DATASETS.TEST"):
        check_teacher_overlap(tiny_config("run", *first(folders), "TEACHER.DETECTION.MORE", str(seen)))


def test_one_teachers_boxes_are_merged_and_calibrated_too(folders, tiny_config):
    cfg = tiny_config("run", *first(folders), "TEACHER.DETECTION.SCORE_FACTOR", "0.5")
    assert open_store(cfg, "detection").get_detections("im").scores.tolist() == pytest.approx([0.4])


@pytest.mark.parametrize(
    "entry, message",
    [
        ("cache2", r"MORE\[0\]: 'cache2' is no mapping of keys"),
        ("torchvison://x", r"MORE\[0\]: unknown scheme in 'torchvison://x'; choose one of torchvision://"),
        ({"URI": "x"}, r"MORE\[0\].URI: 'x' has not the form SCHEME://NAME"),
        ({"URI": "mmsegm://x"}, r"MORE\[0\].URI: unknown scheme .* choose one of mmseg://"),
        ({"URI": "mmseg://x", "NAME": "y"}, r"MORE\[0\]: URI says NAME already"),
        ({"TYPE": "torchvison"}, r"MORE\[0\].TYPE: 'torchvison' is no teacher; choose torchvision"),
        ({"FOLDER": "x"}, r"MORE\[0\]: 'FOLDER' is no key of a further teacher"),
        ({"CACHE": "x", "MERGE": "wbf"}, "'MERGE' is no key of a further teacher"),
        ({"CACHE": 3}, r"MORE\[0\].CACHE: 3 is not of type str"),
        ({"SCORE_FACTOR": 0.5}, "set its CACHE, or TYPE and WEIGHTS"),
    ],
)
def test_entries_that_are_none(entry, message, tiny_config):
    cfg = tiny_config("run", "TEACHER.DETECTION.MORE", str((entry,)))
    with pytest.raises(UserError, match=message):
        each_teacher(cfg, "detection")


def test_a_cache_that_is_missing_is_told_from_the_first(folders, tiny_config):
    more = str(({"CACHE": str(folders / "none")},))
    cfg = tiny_config("run", *first(folders), "TEACHER.DETECTION.MORE", more)
    with pytest.raises(UserError, match=r"MORE\[0\], cached by .* of its own: .*none: no teacher cache here"):
        open_store(cfg, "detection")


def test_suppression_that_cannot_be_set(tiny_config, monkeypatch):
    class Other:
        tasks = ("detection",)

    monkeypatch.setattr("scenekd.teachers.zoo_torchvision.build_torchvision", lambda *a, **k: Other())
    kind = ("TEACHER.DETECTION.TYPE", "torchvision", "TEACHER.DETECTION.NMS_THRESHOLD")
    with pytest.raises(UserError, match="NMS_THRESHOLD: Other does not let it be set"):
        build_teacher(tiny_config("run", *kind, "0.9"), "detection")
    with pytest.raises(UserError, match="1.5 is no overlap"):
        build_teacher(tiny_config("run", *kind, "1.5"), "detection")
