"""Detections that are hidden, judged by their context and scored again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from blindnet_parts import CLASSES, blind_config, dataset, picture
from tool_runner import ToolRunner

from blindnet.data import HidingMapper, prepare_data
from blindnet.detections import Found, read_detections
from blindnet.region_context import RegionContext
from blindnet.rescore import judge
from blindnet.rescore_choice import choose_rule
from scenekd import checkpoint
from scenekd.data.catalog import load_dataset
from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.evaluation.coco_results import SavedDetections, result_entries
from scenekd.models import build_model
from scenekd.predictor import Predictor

NODE = "MODEL.BLINDNET"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    cfg = blind_config(f"{NODE}.TRUNK_WIDTH", 4)
    return Predictor(build_model(cfg).eval(), cfg)


IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
BOXES = np.array([[5.0, 5, 25, 30], [40, 20, 70, 50], [8, 6, 28, 33], [45, 18, 72, 48], [30, 2, 40, 12]])
WEIGHTS = np.array([0.9, 0.8, 0.7, 0.6, 0.1])


def test_a_pass_for_each_region_is_the_network_itself(predictor) -> None:
    """Grouped with as many passes as regions, exact, and the network asked by hand say the same."""
    exact = RegionContext(predictor)([IMAGE], [BOXES], [WEIGHTS])[0]
    assert RegionContext(predictor, groups=5)([IMAGE], [BOXES], [WEIGHTS])[0] == pytest.approx(
        exact, abs=1e-5
    )
    shown = predictor.prepare(IMAGE)  # 64 × 64: x · 0.8, y · 64 / 60, rounded outward
    hidden = torch.zeros(1, 1, 64, 64)
    hidden[..., 5:32, 4:20] = 255
    with torch.inference_mode():
        scores = predictor.net(torch.cat([shown * (hidden == 0), hidden], dim=1))[0].class_scores
    assert exact[0] == pytest.approx(scores.softmax(0).numpy(), abs=1e-5)


def test_nothing_of_a_region_reaches_what_is_said_of_it(predictor) -> None:
    """Two passes for five regions: other pixels in a region leave its own answer as it is, and change others'."""
    context = RegionContext(predictor, groups=2)
    # Of the network's size: resizing would carry the region's pixels over its rim, where they are to be seen.
    same = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    other = same.copy()
    other[20:50, 34:60] = 255 - other[20:50, 34:60]
    boxes = np.array([[5.0, 5, 25, 30], [34, 20, 60, 50], [8, 6, 28, 33], [10, 40, 20, 60]])
    weights = np.array([0.9, 0.8, 0.7, 0.1])
    one, two = (context([image], [boxes], [weights])[0] for image in (same, other))
    assert np.array_equal(one[1], two[1]) and np.abs(one[0] - two[0]).max() > 1e-7


def test_regions_of_which_nothing_can_be_said(predictor) -> None:
    boxes = np.array([[100.0, 0, 120, 20], [0, 0, 80, 60], [10, 10, 20, 20]])  # outside, too large, usual
    for groups in (0, 2):
        context = RegionContext(predictor, groups=groups)
        none, some = context([IMAGE, IMAGE], [np.zeros((0, 4)), boxes], [np.zeros(0), np.ones(3)])
        assert none.shape == (0, 10) and np.isnan(some[:2]).all() and some[2].sum() == pytest.approx(1)
        assert np.isnan(context([IMAGE], [boxes[:2]], [np.ones(2)])[0]).all()


def test_networks_that_cannot_be_asked(predictor) -> None:
    def context(network: str, groups: int) -> RegionContext:
        cfg = blind_config(f"{NODE}.NETWORK", network, f"{NODE}.TRUNK_WIDTH", 4)
        return RegionContext(Predictor(build_model(cfg), cfg), groups=groups)

    found = context("mask_only", 0)([IMAGE], [BOXES], [WEIGHTS])[0]
    assert found.sum(axis=1) == pytest.approx(np.ones(5))
    for network, groups, message in (
        ("mask_only", 2, "shares its trunk"),
        ("layout_only", 0, "labels of what is visible"),
        ("context", -1, "at least 0"),
    ):
        with pytest.raises(UserError, match=message):
            context(network, groups)
    with pytest.raises(UserError, match="SYSTEM"):
        RegionContext(Predictor(torch.nn.Linear(1, 1), blind_config()))


def test_detections_of_other_classes(predictor) -> None:
    few = Dataset("few", CLASSES[:3], [picture("one", [(0, (5, 5, 20, 20))])])
    found = Found(few, "x.json", [], SavedDetections({"one": []}, ("bbox",)))
    with pytest.raises(UserError, match="few: has 3 classes, the network 10"):
        judge(found, RegionContext(predictor), predictor.cfg)


def test_a_training_picture_with_more_hidden() -> None:
    """The fourth channel tells the hole (255) from what else is hidden (128), and all of it is filled; the network's
    head pools over the hole alone."""
    data = dataset(picture("one", [(0, (5, 5, 20, 20)), (1, (40, 40, 60, 60))]))
    cfg = blind_config(f"{NODE}.MASK.ALSO", 3, "INPUT.FLIP_PROB", 0.0)
    mapper = HidingMapper(prepare_data(data, cfg, train=True), cfg, train=True)
    levels = set()
    for draw in range(12):
        image, target = mapper(draw)
        channel = image[3].numpy()
        levels |= set(np.unique(channel).tolist())
        assert (image[:3].numpy()[:, channel > 0] == 0).all()
        side = (channel == 255).sum()
        assert side in (225, 400) and not target.visible[target.hidden]
    assert levels == {0, 128, 255}
    inputs = build_model(cfg).inputs(image[None].float())
    assert torch.equal(inputs.hole[0, 0].bool(), image[3] == 255)
    assert torch.equal(inputs.hidden[0, 0].bool(), image[3] > 0)


@pytest.fixture
def tool(monkeypatch, plain_dumps) -> ToolRunner:
    return ToolRunner("rescore", monkeypatch)


class Setting:
    """A random network and detections near the objects of a few scenes."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        self.keys = (
            "DATASETS.ROOT",
            root,
            f"{NODE}.TRUNK_WIDTH",
            4,
            "TEST.BOOTSTRAP",
            20,
            "TEST.VISUALIZE",
            1,
        )
        self.weights = folder / "model.pth"
        cfg = blind_config(*self.keys)
        checkpoint.save_model(build_model(cfg), cfg.dump(), self.weights)
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            entries = []
            for record in load_dataset(f"voc_main_{split}", root=str(root), classes=CLASSES).records:
                boxes = np.repeat(record.boxes, 2, axis=0).astype(np.float64)
                labels = np.repeat(record.labels, 2)
                labels[1::2] = rng.integers(0, 10, len(record.labels))
                entries += result_entries(record.image_id, boxes, labels, rng.uniform(0.1, 0.9, len(labels)))
            (folder / f"{split}.json").write_text(json.dumps(entries))

    def arguments(self, *more: object, **changed: object) -> list[object]:
        options = {"detections": self.folder / "val.json", "fit": self.folder / "train.json"} | changed
        words: list[object] = ["--weights", self.weights, "--output", self.folder / "out"]
        words += ["--fit-dataset", options.pop("fit_dataset", "voc_main_train"), "--dataset", "voc_main_val"]
        for name, value in options.items():
            words += [f"--{name}", value]
        return [*words, *self.keys, *more]


@pytest.fixture
def setting(scenes, tmp_path) -> Setting:
    return Setting(scenes, tmp_path)


def test_the_tool(setting, tool, capsys) -> None:
    assert tool(*setting.arguments(f"{NODE}.RESCORE.SURE", 0.1)) == 0
    out = setting.folder / "out"
    results = json.loads((out / "results.json").read_text())
    for task, key in (("bbox", "AP50"), ("coco", "AP")):
        before, after, gain = (results[f"{task}{part}"] for part in ("_before", "", "_gain"))
        assert after[key] - before[key] == pytest.approx(gain[key])
        assert gain[f"{key}_interval"][0] <= gain[f"{key}_interval"][1]
    before = json.loads((setting.folder / "val.json").read_text())
    after = json.loads((out / "detections.json").read_text())
    assert [{**entry, "score": 0} for entry in before] == [{**entry, "score": 0} for entry in after]
    assert results["rescore"]["detections"] == len(before)
    rule = json.loads((out / "rule.json").read_text())
    assert rule["fitted_on"][2] == 12 and rule["classes"] == list(CLASSES)
    page = (out / "rescore.html").read_text()
    assert "Average precision" in page and "AP at IoU .5" in page
    assert "AP50" in capsys.readouterr().out
    # The rule of before, and the exact way, which here says nearly the same.
    again = ["--weights", setting.weights, "--detections", setting.folder / "val.json"]
    again += ["--rule", out / "rule.json", "--dataset", "voc_main_val", "--output", setting.folder / "again"]
    assert tool(*again, *setting.keys, f"{NODE}.RESCORE.GROUPS", 0) == 0
    exact = json.loads((setting.folder / "again" / "detections.json").read_text())
    assert [e["score"] for e in exact] == pytest.approx([e["score"] for e in after], abs=0.2)


def test_a_prior_as_context_changes_nothing(setting, tool) -> None:
    """A network that says the same of every hole: detections and AP stay as they are."""
    cfg = blind_config(*setting.keys, f"{NODE}.NETWORK", "class_prior")
    net = build_model(cfg)
    net.network.observe_shares(torch.arange(1, 11) / 55)
    checkpoint.save_model(net, cfg.dump(), setting.weights)
    assert (
        tool(*setting.arguments(f"{NODE}.RESCORE.GROUPS", 0, f"{NODE}.RESCORE.TERMS", ("size", "rank"))) == 0
    )
    out = setting.folder / "out"
    assert json.loads((out / "detections.json").read_text()) == json.loads(
        (setting.folder / "val.json").read_text()
    )
    results = json.loads((out / "results.json").read_text())
    assert results["bbox"] == results["bbox_before"] and results["coco"] == results["coco_before"]
    assert results["bbox_gain"]["AP50_interval"] == [0, 0] == results["coco_gain"]["AP_interval"]


def test_the_least_score_is_chosen_on_held_out_images(setting, tool, capsys) -> None:
    """One of those with the highest gain; detections below keep their scores, also by the rule of the file. No rule can
    be fitted on detections of .99 or more, for there are none."""
    words = (f"{NODE}.RESCORE.MIN_SCORES", (0.1, 0.3, 0.6, 0.99))
    assert tool(*setting.arguments(*words)) == 0
    out = setting.folder / "out"
    rule = json.loads((out / "rule.json").read_text())
    assert [least for least, _ in rule["tried"]] == [0.6, 0.3, 0.1]
    gains = dict(rule["tried"])
    assert gains[rule["min_score"]] == max(gains.values())
    capsys.readouterr()
    before, after = (
        json.loads(path.read_text()) for path in (setting.folder / "val.json", out / "detections.json")
    )
    low = [i for i, entry in enumerate(before) if entry["score"] < rule["min_score"]]
    assert all(before[i] == after[i] for i in low)
    assert "gained most AP" in (out / "rescore.html").read_text()
    again = [
        "--weights",
        setting.weights,
        "--detections",
        setting.folder / "val.json",
        "--dataset",
        "voc_main_val",
    ]
    again += ["--rule", out / "rule.json", "--output", setting.folder / "again"]
    assert tool(*again, *setting.keys) == 0
    assert json.loads((setting.folder / "again" / "detections.json").read_text()) == after
    for bad in ((0.1, 2.0), ("a",)):
        assert tool(*setting.arguments(f"{NODE}.RESCORE.MIN_SCORES", bad)) == 2
        assert "RESCORE.MIN_SCORES: " in capsys.readouterr().err


class _Truth:
    """A context that knows the object in every box of a data set."""

    pictures_at_once = 4

    def __init__(self, dataset: Dataset) -> None:
        self._classes = {
            tuple(box.tolist()): int(label)
            for record in dataset.records
            for box, label in zip(record.boxes, record.labels)
        }

    def __call__(self, images, boxes, weights):
        return [
            np.eye(10)[[self._classes[tuple(box.tolist())] for box in own]].reshape(-1, 10) for own in boxes
        ]


def test_a_context_that_knows_is_asked_about_all(setting) -> None:
    """Half of the detections have the wrong class: from .1 on they are told apart, from .6 on only those above it; and
    what is scored on held-out images is scored by a rule that has not seen them."""
    cfg = blind_config(*setting.keys, f"{NODE}.RESCORE.MIN_SCORES", (0.1, 0.6))
    held_out = load_dataset("voc_main_train", root=str(cfg.DATASETS.ROOT), classes=CLASSES)
    found = read_detections(str(setting.folder / "train.json"), held_out, cfg, setting.folder)
    rule = choose_rule(found, _Truth(held_out), cfg)
    gains = dict(rule.tried)
    assert rule.min_score == 0.1 and gains[0.1] > gains[0.6] > 0 and rule.weights[0] > 0


def test_a_context_that_says_nothing_gains_nothing_on_held_out_images(setting, tool) -> None:
    """So all candidates are equal, and the highest is taken, which costs least."""
    cfg = blind_config(*setting.keys, f"{NODE}.NETWORK", "class_prior")
    net = build_model(cfg)
    net.network.observe_shares(torch.arange(1, 11) / 55)
    checkpoint.save_model(net, cfg.dump(), setting.weights)
    keys = (f"{NODE}.RESCORE.GROUPS", 0, f"{NODE}.RESCORE.MIN_SCORES", (0.1, 0.5))
    assert tool(*setting.arguments(*keys)) == 0
    rule = json.loads((setting.folder / "out" / "rule.json").read_text())
    assert rule["tried"] == [[0.5, 0.0], [0.1, 0.0]] and rule["min_score"] == 0.5


def test_no_detection_at_all(setting, tool, capsys) -> None:
    (setting.folder / "none.json").write_text("[]")
    assert tool(*setting.arguments(detections=setting.folder / "none.json")) == 0
    assert "0 detections" in capsys.readouterr().out
    assert json.loads((setting.folder / "out" / "detections.json").read_text()) == []
    assert tool(*setting.arguments(fit=setting.folder / "none.json")) == 2
    assert "0 of 0 detections are right" in capsys.readouterr().err


def test_a_user_is_told_in_one_line(setting, tool, capsys) -> None:
    def told(*more: object, **changed: object) -> str:
        assert tool(*setting.arguments(*more, **changed)) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1
        return text

    entries = json.loads((setting.folder / "val.json").read_text())
    for change, message in (
        ({"category_id": 99}, "entry 0: category_id 99 is none of the 10 ids"),
        ({"image_id": "moon"}, "entry 0: image_id 'moon' is not in"),
        ({"score": 3.0}, "a score of 3"),
    ):
        bad = setting.folder / "bad.json"
        bad.write_text(json.dumps([{**entries[0], **change}, *entries[1:]]))
        assert message in told(detections=bad)
    assert "no such file" in told(detections=setting.folder / "nowhere.json")
    assert "of its images are in" in told(fit_dataset="voc_main_val")
    assert "weights of another network" in told("DATASETS.CLASSES", CLASSES[:9])
    assert "--fit-dataset NAME" in told(fit_dataset="")


def test_a_missing_image(setting, tool, capsys, tmp_path, scenes) -> None:
    root = tmp_path / "copy"
    shutil.copytree(scenes, root)
    first = json.loads((setting.folder / "val.json").read_text())[0]["image_id"]
    (root / "JPEGImages" / f"{first}.jpg").unlink()
    assert tool(*setting.arguments("DATASETS.ROOT", root)) == 2
    assert f"{first}.jpg: missing, though a list names it" in capsys.readouterr().err


def test_a_checkpoint_is_asked(setting, tool, tiny_config, tmp_path) -> None:
    """A random student of kd_mtl, whose boxes are scored again."""
    student, detector = tiny_config("student"), tmp_path / "student.pth"
    checkpoint.save_model(build_model(student, pretrained=False), student.dump(), detector)
    assert tool(*setting.arguments(detections=detector)) == 0
    asked = json.loads((setting.folder / "out" / "detector_voc_main_val.json").read_text())
    assert asked == [
        {**entry, "score": old["score"]}
        for entry, old in zip(json.loads((setting.folder / "out" / "detections.json").read_text()), asked)
    ]
