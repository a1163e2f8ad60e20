"""A teacher by its URI, on the command line, in YAML, and through ``_BASE_``."""

from __future__ import annotations

import pytest

from scenekd.config import config_from_text, load_config
from scenekd.engines.mmengine_data import own_config
from scenekd.errors import UserError
from scenekd.teachers.more import each_teacher
from scenekd.teachers.uri import nearest, node_from_uri


@pytest.mark.parametrize(
    "uri, node",
    [
        (
            "detectron2://COCO-Detection/faster_rcnn_R_101_FPN_3x",
            ("detectron2", "COCO-Detection/faster_rcnn_R_101_FPN_3x", ""),
        ),
        ("detectron2:///a/b.yaml?weights=/c/d.pkl", ("detectron2", "/a/b.yaml", "/c/d.pkl")),
        ("mmseg://configs/fcn/x.py", ("mmseg", "configs/fcn/x.py", "")),
        ("torchvision://fcn_resnet50", ("torchvision", "fcn_resnet50", "")),
        ("torchvision://fcn_resnet50/DEFAULT", ("torchvision", "fcn_resnet50", "DEFAULT")),
        ("torchvision://fcn_resnet50?weights=/w.pth", ("torchvision", "fcn_resnet50", "/w.pth")),
        ("scenekd://runs/a/model_final.pth", ("scenekd", "", "runs/a/model_final.pth")),
        ("folder:///data/soft", ("folder", "", "/data/soft")),
        ("", ("", "", "")),
    ],
)
def test_what_a_uri_says(uri, node):
    assert tuple(node_from_uri(uri, "TEACHER.DETECTION").values()) == node


@pytest.mark.parametrize(
    "uri, message",
    [
        (
            "detectron://x",
            "TEACHER.DETECTION: unknown scheme in 'detectron://x'; choose one of detectron2://",
        ),
        ("torchvison://x", "choose one of torchvision://"),
        ("maskrcnn_resnet50_fpn", "'maskrcnn_resnet50_fpn' has no scheme; write one of "),
        ("mmseg://", "'mmseg://' names nothing; write mmseg://NAME"),
    ],
)
def test_bad_uris_are_one_line(uri, message, tiny_config):
    with pytest.raises(UserError, match=message):
        tiny_config("run", "TEACHER.DETECTION", uri)
    with pytest.raises(UserError, match=message):
        config_from_text(f'TEACHER: {{DETECTION: "{uri}"}}')


def test_command_line(tiny_config):
    """The order of a node and of its keys does not matter; a URI says where the weights are, or that they are the
    zoo's, whatever stood there before."""
    for pairs in (
        ("TEACHER.DETECTION", "torchvision://ssd300_vgg16", "TEACHER.DETECTION.WEIGHTS", "random"),
        ("TEACHER.DETECTION.WEIGHTS", "random", "TEACHER.DETECTION", "torchvision://ssd300_vgg16"),
    ):
        node = tiny_config("run", *pairs, "TEACHER.DETECTION.MAX_BOXES", "7").TEACHER.DETECTION
        assert (node.TYPE, node.NAME, node.WEIGHTS) == ("torchvision", "ssd300_vgg16", "random")
        assert node.MAX_BOXES == 7 and node.CLASSES == ()
    with pytest.raises(UserError, match="Non-existent config key"):
        tiny_config("run", "TEACHER.DEPTH", "torchvision://x")


def test_yaml_and_its_base(tmp_path):
    """A string and a node merge key by key, whichever of the two files holds which."""
    (tmp_path / "node.yaml").write_text("TEACHER: {SEGMENTATION: {TYPE: folder, WEIGHTS: old, CACHE: c}}")
    (tmp_path / "uri.yaml").write_text('_BASE_: node.yaml\nTEACHER: {SEGMENTATION: "mmseg://a.py"}')
    (tmp_path / "top.yaml").write_text("_BASE_: uri.yaml\nTEACHER: {SEGMENTATION: {WEIGHTS: w.pth}}")
    node = load_config(tmp_path / "uri.yaml").TEACHER.SEGMENTATION
    assert (node.TYPE, node.NAME, node.WEIGHTS, node.CACHE) == ("mmseg", "a.py", "", "c")
    node = load_config(tmp_path / "top.yaml").TEACHER.SEGMENTATION
    assert (node.TYPE, node.NAME, node.WEIGHTS, node.CACHE) == ("mmseg", "a.py", "w.pth", "c")
    again = config_from_text(load_config(tmp_path / "top.yaml").dump()).TEACHER.SEGMENTATION
    assert again == node


def test_in_the_keywords_of_an_mmengine_config():
    node = own_config(TEACHER={"SEGMENTATION": "folder:///soft"}).TEACHER.SEGMENTATION
    assert (node.TYPE, node.WEIGHTS) == ("folder", "/soft")
    cfg = own_config(TEACHER={"DETECTION": {"TYPE": "folder", "WEIGHTS": "a", "MORE": "folder:///b"}})
    assert [one.node.WEIGHTS for one in each_teacher(cfg, "detection")] == ["a", "/b"]


def test_wrong_scheme_in_a_file_names_it(tmp_path):
    (tmp_path / "a.yaml").write_text('TEACHER: {SEGMENTATION: "mmsegm://a.py"}')
    with pytest.raises(
        UserError, match="a.yaml: TEACHER.SEGMENTATION: unknown scheme .*choose one of mmseg://"
    ):
        load_config(tmp_path / "a.yaml")


def test_nearest_names_come_first():
    assert nearest("fcn_resnet10", ["ssd300", "fcn_resnet50", "fcn_resnet101"], 2) == [
        "fcn_resnet101",
        "fcn_resnet50",
    ]
