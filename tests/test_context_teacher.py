"""Scene context in a detection teacher's class probabilities: the rules, and the cache that holds them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from blindnet_parts import CLASSES, blind_config
from conftest import ENGINES

from scenekd import checkpoint
from scenekd.config import get_cfg
from scenekd.data.catalog import load_datasets
from scenekd.data.images import read_image
from scenekd.engines.session import train_once
from scenekd.errors import UserError
from scenekd.models import build_model
from scenekd.recorder import read_metrics
from scenekd.teachers.build import build_teacher, open_store
from scenekd.teachers.cache import CacheStore
from scenekd.teachers.caching import cache_teacher
from scenekd.teachers.codec import decode_detections, encode_detections
from scenekd.teachers.context import ContextModel, ContextRule, build_context, context_note, mix_context
from scenekd.teachers.protocol import Detections

KEY = "TEACHER.CONTEXT"
# Two boxes of three classes, background last: o = 0.6 and 0.5 of object.
VECTORS = np.float32([[0.3, 0.2, 0.1, 0.4], [0.5, 0.0, 0.0, 0.5]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("context")


@pytest.fixture(scope="module")
def context(folder):
    """A checkpoint of a masked-context classifier of random weights."""
    cfg = blind_config("MODEL.BLINDNET.TRUNK_WIDTH", 4)
    checkpoint.save_model(build_model(cfg), cfg.dump(), folder / "context.pth")
    return folder / "context.pth"


@pytest.fixture
def teacher(tiny_config, tmp_path):
    """Overrides for a detection teacher of ours, and a student of its distributions."""
    cfg = tiny_config("teacher")
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), tmp_path / "teacher.pth")
    detection = {"TYPE": "scenekd", "WEIGHTS": tmp_path / "teacher.pth", "MAX_BOXES": 10}
    pairs = [word for key, value in detection.items() for word in (f"TEACHER.DETECTION.{key}", value)]
    return [*pairs, "DISTILL.DETECTION.CLASS_TARGET", "vector", "DISTILL.DETECTION.POLICY", "teacher"]


def test_uniform_context_changes_nothing_by_product() -> None:
    uniform = np.full((2, 3), 1 / 3, np.float32)
    for weight in (0.0, 0.5, 2.0):
        np.testing.assert_allclose(mix_context(VECTORS, uniform, weight, "product"), VECTORS, rtol=1e-6)
    # By mixture all classes come nearer: half of (0.3, 0.2, 0.1), half of 0.6 · (1, 1, 1) / 3.
    moved = mix_context(VECTORS, uniform, 0.5, "mixture")
    np.testing.assert_allclose(moved[0], [0.25, 0.2, 0.15, 0.4], rtol=1e-6)


def test_one_hot_context_moves_the_target() -> None:
    one_hot = np.float32([[0, 1, 0], [0, 1, 0]])
    # Product: every other class is ruled out, so the one has all of o = 0.6; the second box rules it out itself, shares
    # no class with its context, and stays.
    product = mix_context(VECTORS, one_hot, 0.5, "product")
    np.testing.assert_allclose(product, [[0, 0.6, 0, 0.4], VECTORS[1]], rtol=1e-6)
    # Mixture by w = 0.25: 0.75 of each class, and 0.25 · o to the one.
    mixture = mix_context(VECTORS, one_hot, 0.25, "mixture")
    expected = [[0.225, 0.15 + 0.15, 0.075, 0.4], [0.375, 0.125, 0, 0.5]]
    np.testing.assert_allclose(mixture, expected, rtol=1e-6)


def test_product_in_closed_form() -> None:
    # √c = (1, 2, 3) up to a factor: 0.3 · 1, 0.2 · 2, 0.1 · 3 are 0.3, 0.4, 0.3, and sum to 0.6 times 0.6.
    context = np.float32([[1, 4, 9]]) / 14
    found = mix_context(VECTORS[:1], context, 0.5, "product")
    np.testing.assert_allclose(found, [[0.18, 0.24, 0.18, 0.4]], rtol=1e-6)


@pytest.mark.parametrize("rule", ["product", "mixture"])
def test_what_context_cannot_tell_stays(rule) -> None:
    background = np.float32([[0, 0, 0, 1]])
    certain = np.float32([[0, 0, 1]])
    np.testing.assert_array_equal(mix_context(background, certain, 1.0, rule), background)
    unknown = np.full((2, 3), np.nan, np.float32)
    np.testing.assert_array_equal(mix_context(VECTORS, unknown, 1.0, rule), VECTORS)
    rng = np.random.default_rng(0)
    some, other = rng.dirichlet(np.ones(4), 20).astype(np.float32), rng.dirichlet(np.ones(3), 20)
    mixed = mix_context(some, other, 0.7, rule)
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(mixed[:, -1], some[:, -1])
    np.testing.assert_allclose(mix_context(some, other, 0.0, rule), some, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ((VECTORS, np.ones((2, 4)), 0.5, "product"), "do not fit"),
        ((VECTORS, np.ones((2, 3)), 0.5, "sum"), "RULE must be"),
        ((VECTORS, np.ones((2, 3)), 1.5, "mixture"), "WEIGHT must be"),
        ((VECTORS, np.ones((2, 3)), -0.1, "product"), "WEIGHT must be"),
    ],
)
def test_bad_arguments(arguments, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        mix_context(*arguments)


def test_each_box_is_hidden_in_turn(context) -> None:
    """Against the network on a picture with the hole cut here; a box over most of the picture is not asked about."""
    model = ContextModel(str(context), CLASSES, ContextRule("product", 0.5, 0.5))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    boxes = np.float32([[8, 8, 24, 40], [0, 0, 64, 64], [30, 30, 40, 40]])
    told = model.probabilities(image, boxes)
    assert np.isnan(told[1]).all()
    for i in (0, 2):
        x1, y1, x2, y2 = boxes[i].astype(int)
        pixels = np.concatenate([image, np.zeros((64, 64, 1), np.uint8)], axis=2)
        pixels[y1:y2, x1:x2] = 0, 0, 0, 255
        with torch.no_grad():
            scores = model.net(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), None)[0].class_scores
        np.testing.assert_allclose(told[i], scores.softmax(0).numpy(), rtol=1e-5)
    assert model.probabilities(image, boxes[:0]).shape == (0, 10)
    # What it does not know of ours, or we of its, and their order.
    fewer = ContextModel(str(context), ("kite", "car"), model.rule).probabilities(image, boxes[:1])
    pair = told[0, [9, 3]]
    np.testing.assert_allclose(fewer[0], pair / pair.sum(), rtol=1e-5)
    with pytest.raises(UserError, match="does not know zebra; train it on them"):
        ContextModel(str(context), ("kite", "zebra"), model.rule)


def test_sure_boxes_keep_their_word(context) -> None:
    model = ContextModel(str(context), CLASSES, ContextRule("mixture", 1.0, 0.5))
    image = np.zeros((64, 64, 3), np.uint8)
    found = Detections.build(np.float32([[8, 8, 24, 40]] * 2), [3, 4], [0.5, 0.25])
    mixed = model.mix(image, found)
    # Built of the scores, as no distribution was told: a rest of background.
    assert mixed.class_probabilities[0].tolist() == [0, 0, 0, 0.5, 0.25, 0, 0, 0, 0, 0, 0.25]
    told = model.probabilities(image, found.boxes[1:])
    # Of the unsure box 0.75 are object, the other box's 0.5 among them; all of it is the context's now.
    np.testing.assert_allclose(mixed.class_probabilities[1], [*(0.75 * told[0]), 0.25], rtol=1e-5)
    for name in ("boxes", "labels", "scores"):
        assert np.array_equal(getattr(mixed, name), getattr(found, name))


def test_cache_holds_the_context_and_its_identity(tiny_config, teacher, context, tmp_path) -> None:
    plain = CacheStore(cache_teacher(tiny_config("plain", *teacher), "detection").folder)
    assert "context" not in plain.info
    on = [f"{KEY}.WEIGHTS", context, f"{KEY}.MAX_SCORE", 1.0, f"{KEY}.RULE", "mixture"]
    cfg = tiny_config("mixed", *teacher, *on)
    mixed = CacheStore(cache_teacher(cfg, "detection").folder)
    note = mixed.info["context"]
    assert note == context_note(cfg)["context"] and len(note["file_sha256"]) == 64
    assert note | {"file_sha256": ""} == {
        "rule": "mixture",
        "weight": 0.5,
        "max_score": 1.0,
        "file_sha256": "",
    }
    assert mixed.manifest.identity != plain.manifest.identity
    network, model = build_teacher(cfg, "detection"), build_context(cfg)
    for record in load_datasets(cfg.DATASETS.TRAIN, cfg, train=False).records[:3]:
        before, after = (store.get_detections(record.image_id) for store in (plain, mixed))
        for ours, theirs in zip(before, after):
            np.testing.assert_array_equal(ours, theirs)
        image = read_image(record)
        wanted = model.mix(image, network.predict([image])[0].detections.keep(0.0, 10))
        kept = decode_detections(*encode_detections(wanted)).class_probabilities
        np.testing.assert_array_equal(after.class_probabilities, kept)
        assert not np.allclose(before.class_probabilities, kept, atol=1e-2)
    open_store(cfg, "detection")
    here = ["TEACHER.DETECTION.CACHE", mixed.folder]
    with pytest.raises(UserError, match="made with TEACHER.CONTEXT; run tools/cache_teacher.py"):
        open_store(tiny_config("x", *teacher, *here), "detection")
    with pytest.raises(UserError, match="made with another TEACHER.CONTEXT"):
        open_store(tiny_config("x", *teacher, *on, *here, f"{KEY}.WEIGHT", 0.25), "detection")
    with pytest.raises(UserError, match="made without TEACHER.CONTEXT"):
        open_store(tiny_config("x", *teacher, *on, "TEACHER.DETECTION.CACHE", plain.folder), "detection")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_student_learns_from_it(tiny_config, teacher, context, engine) -> None:
    cfg = tiny_config("run", *teacher, f"{KEY}.WEIGHTS", context, "SOLVER.MAX_ITER", 2, "TEST.VISUALIZE", 0)
    cache_teacher(cfg, "detection")
    train_once(0, 0, 1, cfg, engine)
    lines = read_metrics(f"{cfg.OUTPUT_DIR}/metrics.json")
    assert all(np.isfinite(line["loss_cls"]) for line in lines if "loss_cls" in line)


def test_off_by_default_and_refused_where_nothing_holds_it(tiny_config, teacher, context, tmp_path) -> None:
    assert ContextRule.from_config(get_cfg()) is None and context_note(get_cfg()) == {}
    on = [*teacher, f"{KEY}.WEIGHTS", context]
    for pairs, problem in (
        (("DISTILL.DETECTION.CLASS_TARGET", "hard"), "set DISTILL.DETECTION.CLASS_TARGET vector"),
        ((f"{KEY}.RULE", "sum"), f"{KEY}.RULE: 'sum' is none of product, mixture"),
        ((f"{KEY}.WEIGHT", 0.0), f"{KEY}.WEIGHT: 0.0; it must be above 0"),
        ((f"{KEY}.WEIGHT", 1.5, f"{KEY}.RULE", "mixture"), f"{KEY}.WEIGHT: 1.5; it must be above 0"),
        ((f"{KEY}.MAX_SCORE", 0.0), f"{KEY}.MAX_SCORE: 0.0 is no score"),
        ((f"{KEY}.WEIGHTS", tmp_path / "none.pth"), "none.pth: no such checkpoint"),
        ((f"{KEY}.WEIGHTS", tmp_path / "teacher.pth"), "does detection and segmentation, not hidden_object"),
    ):
        with pytest.raises(UserError, match=problem):
            cache_teacher(tiny_config("bad", *on, *pairs), "detection")
    saved = ("TEACHER.DETECTION.TYPE", "thesis", "TEACHER.DETECTION.WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="mixed in while a network is cached, and thesis holds saved outputs"):
        open_store(tiny_config("bad", *on, *saved), "detection")
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="bare.pth holds no configuration"):
        ContextModel(str(tmp_path / "bare.pth"), CLASSES, ContextRule("product", 0.5, 0.5))
    layout = blind_config("MODEL.BLINDNET.NETWORK", "layout_only")
    checkpoint.save_model(build_model(layout), layout.dump(), tmp_path / "layout.pth")
    with pytest.raises(UserError, match="wants to be told the other objects"):
        ContextModel(str(tmp_path / "layout.pth"), CLASSES, ContextRule("product", 0.5, 0.5))


def test_manifest_is_plain_json(tiny_config, teacher, context) -> None:
    cfg = tiny_config("plain", *teacher, f"{KEY}.WEIGHTS", context)
    assert json.loads(json.dumps(context_note(cfg))) == context_note(cfg)
