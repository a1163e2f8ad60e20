"""Several detection teachers as one store: calibrated, concatenated, merged as they are read."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tool_runner import ToolRunner

from scenekd import checkpoint
from scenekd.config import load_config
from scenekd.errors import UserError
from scenekd.models import build_model
from scenekd.teachers import asking
from scenekd.teachers.asking import build_networks
from scenekd.teachers.build import build_teacher, check_teacher_overlap, open_saved, open_store
from scenekd.teachers.cache import CacheStore
from scenekd.teachers.caching import cache_teachers
from scenekd.teachers.merged import MergedStore, calibrate
from scenekd.teachers.more import asked_teachers, each_teacher
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


@pytest.mark.parametrize(
    "text, name, weights",
    [
        ("('torchvision://ssd300_vgg16?weights=random',)", "ssd300_vgg16", "random"),
        ("torchvision://ssd300_vgg16/COCO_V1", "ssd300_vgg16", "COCO_V1"),  # alone, it is a list of one
        ("({'URI': 'torchvision://ssd300_vgg16', 'WEIGHTS': 'w.pth'},)", "ssd300_vgg16", "w.pth"),
    ],
)
def test_an_entry_may_be_a_uri(text, name, weights, tiny_config, tmp_path):
    """On the command line and in a file; its cache lies beside the first teacher's."""
    (tmp_path / "more.yaml").write_text(
        f"TEACHER: {{DETECTION: {{MORE: {yaml_list(text)}, CACHE: caches/a}}}}"
    )
    for cfg, caches in (
        (tiny_config("run", "TEACHER.DETECTION.MORE", text), tmp_path / "run" / "teacher_cache"),
        (load_config(tmp_path / "more.yaml"), Path("caches")),
    ):
        first, second = each_teacher(cfg, "detection")
        assert first.cfg is cfg and second.key == "TEACHER.DETECTION.MORE[0]"
        assert ("torchvision", name, weights) == (second.node.TYPE, second.node.NAME, second.node.WEIGHTS)
        assert Path(second.node.CACHE) == caches / "detection-torchvision-ssd300_vgg16"


def yaml_list(text):
    """A value of the command line as YAML has it."""
    return text.replace("(", "[").replace(",)", "]")


def test_names_of_caches_tell_paths_apart(tiny_config):
    entries = "('scenekd://a/model_final.pth', 'scenekd://b/model_final.pth', 'detectron2://c/my r.yaml')"
    found = each_teacher(tiny_config("run", "TEACHER.DETECTION.MORE", entries), "detection")[1:]
    assert [Path(one.node.CACHE).name for one in found] == [
        "detection-scenekd-a-model_final",
        "detection-scenekd-b-model_final",
        "detection-detectron2-c-my_r",
    ]


def test_the_tool_makes_all_caches_in_one_pass(tiny_config, tmp_path, monkeypatch, capsys):
    """Those of two further networks; an entry that was cached elsewhere is left alone. Verified and scored, too."""
    for name in ("a", "b"):
        cfg = tiny_config(name, "SEED", ord(name))
        torch.manual_seed(ord(name))
        (tmp_path / name).mkdir()
        checkpoint.save_model(
            build_model(cfg, pretrained=False), cfg.dump(), tmp_path / name / "model_final.pth"
        )
    a, b = (f"scenekd://{tmp_path / name / 'model_final.pth'}" for name in "ab")
    elsewhere = {"CACHE": str(tmp_path / "elsewhere")}
    tool = ToolRunner("cache_teacher", monkeypatch)
    common = ("--config-file", tmp_path / "tiny.yaml", "--task", "detection", "OUTPUT_DIR", tmp_path / "run")
    assert tool(*common, "TEACHER.DETECTION", b, "TEACHER.DETECTION.CACHE", elsewhere["CACHE"]) == 0
    more = str((b, {"URI": a, "MAX_BOXES": 3, "CACHE": str(tmp_path / "few")}, elsewhere))
    pairs = ("TEACHER.DETECTION", a, "TEACHER.DETECTION.MORE", more)
    read, read_image = [], asking.read_image
    monkeypatch.setattr(asking, "read_image", lambda record: read.append(record) or read_image(record))
    capsys.readouterr()
    assert tool(*common, *pairs) == 0
    out = capsys.readouterr().out
    caches = tmp_path / "run" / "teacher_cache"
    folders = [caches / "detection", caches / "detection-scenekd-b-model_final", tmp_path / "few"]
    lines = [line for line in out.splitlines() if line.startswith("detection: 12 images asked, 0 found")]
    assert [str(folder) in line for folder, line in zip(folders, lines, strict=True)] == [True] * 3
    assert len(read) == 12  # each image once, for three networks
    cfg = tiny_config("run", *pairs)
    store = open_store(cfg, "detection")
    stores = [CacheStore(folder) for folder in (*folders, elsewhere["CACHE"])]
    image_id = stores[0].image_ids[0]
    alone = [store.get_detections(image_id) for store in stores]
    assert len(alone[2].boxes) == 3 and not np.array_equal(alone[0].scores, alone[1].scores)
    np.testing.assert_array_equal(alone[1].scores, alone[3].scores)  # the same network, asked apart
    assert len(store.get_detections(image_id).boxes) == sum(len(found.boxes) for found in alone)

    assert tool(*common, *pairs, "--verify") == 0
    assert capsys.readouterr().out.count("detection: 12 records") == 4
    assert (
        tool(*common, *pairs, "--score", "--task", "both") == 0
    )  # the caches are there; each is scored alone, too
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[-6:]]
    assert rows == ["task", *["detection"] * 5]


def test_two_teachers_and_one_cache(tiny_config):
    """Two that differ clash; the same network under both keys has one cache, made once."""
    uris = "('scenekd://x/a.pth', 'detectron2://x/y.yaml', 'mmseg://a.py', 'torchvision://ssd300_vgg16')"
    clash = (
        "({'URI': 'torchvision://ssd300_vgg16', 'CACHE': 'c'}, {'URI': 'scenekd://a.pth', 'CACHE': './c'})"
    )
    with pytest.raises(
        UserError, match=r"MORE\[1\]: TEACHER.DETECTION.MORE\[0\] has its cache in c too; give"
    ):
        each_teacher(tiny_config("run", "TEACHER.DETECTION.MORE", clash), "detection")
    assert len(each_teacher(tiny_config("run", "TEACHER.DETECTION.MORE", uris), "detection")) == 5
    with pytest.raises(UserError, match=r"MORE\[1\]: .*MORE\[0\] has its cache in .*-y-model too"):
        twice = "('scenekd://x/y/model.pth', 'scenekd://z/y/model.pth')"
        each_teacher(tiny_config("run", "TEACHER.DETECTION.MORE", twice), "detection")
    same = ("TEACHER.DETECTION", "scenekd://a.pth", "TEACHER.DETECTION.CACHE", "c")
    cfg = tiny_config("run", *same, "TEACHER.DETECTION.MORE", "({'URI': 'scenekd://a.pth', 'CACHE': 'c'},)")
    assert [one.key for one in asked_teachers(cfg, ["detection"])] == ["TEACHER.DETECTION"]


def test_errors_name_the_further_teacher(tiny_config):
    """Of a network that cannot be built, and of classes without a counterpart."""
    for uri, message in (
        ("torchvision://ssd300_vgg1", r"^TEACHER.DETECTION.MORE\[0\].NAME: "),
        ("folder://", r"^TEACHER.DETECTION.MORE\[0\]: 'folder://' names nothing"),
    ):
        cfg = tiny_config("run", "TEACHER.DETECTION.MORE", str((uri,)))
        with pytest.raises(UserError, match=message):
            build_networks(asked_teachers(cfg, ["detection"]))
    cfg = tiny_config("run", "TEACHER.DETECTION.MORE", "torchvision://ssd300_vgg16?weights=random")
    with pytest.raises(
        UserError, match=r"MORE\[0\].CLASS_MAP: .* or set TEACHER.DETECTION.MORE\[0\].ALLOW_UNM"
    ):
        cache_teachers(cfg, ["detection"])
