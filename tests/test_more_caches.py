"""Further detection teachers by URI, and the caches of all in one call of the tool."""

from __future__ import annotations

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
from scenekd.teachers.build import open_store
from scenekd.teachers.cache import CacheStore
from scenekd.teachers.caching import cache_teachers
from scenekd.teachers.more import asked_teachers, each_teacher


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
