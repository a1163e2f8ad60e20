"""Runs of fcn_kd with a teacher, under both engines: online and cached, resumed, with every kind of teacher."""

from __future__ import annotations

import pprint
from pathlib import Path

import pytest
import torch
from conftest import ENGINES
from fcn_parts import CLASSES, losses, read, save_teacher, taught_by, teacher_classes, write_config

from scenekd import checkpoint
from scenekd.engines.session import evaluate_once, train_once
from scenekd.errors import UserError
from scenekd.recorder import read_metrics
from scenekd.teachers.caching import cache_teacher
from scenekd.teachers.live_build import build_online

HINTON = {"TYPE": "hinton", "ALPHA": 0.5, "TEMPERATURE": 4.0}
MIXED = [
    {**HINTON, "WARMUP": 2},
    {"TYPE": "holistic", "WIDTH": 4, "SIZE": 16, "WEIGHT": 0.1},
    {"TYPE": "mgd", "STUDENT": "backbone.layer4", "TEACHER": "network.backbone.layer3", "SCHEDULE": "cosine"},
    {"TYPE": "cwd", "STUDENT": "backbone.layer3", "TEACHER": "network.backbone.layer4"},
]
NO_TEST = ("DATASETS.TEST", "()")
_POLICY = {"POLICY": "combined", "TARGET": "logits", "GT_WEIGHT": 1.0, "TEACHER_WEIGHT": 1.0}
BOTH_SOURCES = [word for key, value in _POLICY.items() for word in (f"DISTILL.SEGMENTATION.{key}", value)]


@pytest.fixture
def file(scenes, tmp_path) -> Path:
    return write_config(tmp_path, scenes)


@pytest.fixture
def teacher(file, tmp_path) -> Path:
    save_teacher(file, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.fixture
def config(file, teacher, tmp_path):
    """``config(folder, *overrides)``: six steps with the teacher at hand."""
    return lambda folder, *more: read(file, "OUTPUT_DIR", tmp_path / folder, *taught_by(teacher), *more)


def _train(cfg, engine=ENGINES[0], resume=False):
    return train_once(0, 0, 1, cfg, engine, resume)


def _weights(cfg, name=checkpoint.MODEL_FINAL):
    return checkpoint.read(f"{cfg.OUTPUT_DIR}/{name}")["model"]


def _steps(cfg):
    lines = [line for line in read_metrics(f"{cfg.OUTPUT_DIR}/metrics.json") if "total_loss" in line]
    return [{name: value for name, value in line.items() if "time" not in name} for line in lines]


def _equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


# Plain training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["online", "cached"])
def test_alpha_zero_is_plain_training_to_the_bit(config, source):
    """Five steps beside a teacher at α = 0, and five without one."""
    five = ("SOLVER.MAX_ITER", 5, *NO_TEST)
    distilled = config("kd", *losses({**HINTON, "ALPHA": 0.0}, source=source), *five, *BOTH_SOURCES)
    plain = config("plain", *losses(source="none"), *five)
    if source == "cached":
        cache_teacher(distilled, "segmentation")
    for cfg in (distilled, plain):
        _train(cfg)
    assert _equal(_weights(distilled), _weights(plain))
    assert [s["loss_hinton"] for s in _steps(distilled)] == [s["loss_ce"] for s in _steps(plain)]


# Engines ------------------------------------------------------------------------------------------------------------


@pytest.mark.detectron2
@pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed")
def test_engines_agree(config):
    """The same losses to 1e-5 and weights to 1e-4 after six steps, adaptors and critic among them."""
    runs = [config(engine, *losses(*MIXED), *NO_TEST) for engine in ENGINES]
    for cfg, engine in zip(runs, ENGINES):
        _train(cfg, engine)
    first, second = map(_steps, runs)
    assert len(first) == len(second) == 6
    names = {"loss_hinton", "loss_holistic", "loss_mgd", "loss_cwd", "lr"}
    assert names < first[0].keys()
    for a, b in zip(first, second):
        assert {n: a[n] for n in names} == pytest.approx({n: b[n] for n in names}, abs=1e-5)
    for name in (checkpoint.MODEL_FINAL, checkpoint.LAST):
        one, other = (_weights(cfg, name) for cfg in runs)
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], atol=1e-4, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_resume_is_bit_equal(engine, config, train_until):
    """Adaptors, critic, schedules and averaged weights go on as if nothing had been; ``--eval-only --resume`` scores
    what the finished run scored, and model_final.pth holds the student alone."""
    more = (*losses(*MIXED), "SOLVER.EMA.ENABLED", True)
    whole = config("whole", *more)
    results = _train(whole, engine)
    cut = config("cut", *more)
    train_until(cut, engine, 4)
    assert checkpoint.read(f"{cut.OUTPUT_DIR}/{checkpoint.LAST}")["iteration"] == 3
    _train(cut, engine, resume=True)
    assert _equal(_weights(whole), _weights(cut))
    assert _equal(_weights(whole, checkpoint.LAST), _weights(cut, checkpoint.LAST))
    assert _steps(whole) == _steps(cut)
    again = evaluate_once(0, 0, 1, whole, engine, resume=True)
    assert again["sem_seg"] == pytest.approx(results["sem_seg"], rel=0, abs=0, nan_ok=True)
    kept = {name.split(".")[0] for name in _weights(whole)}
    assert kept == {"network"}
    parts = {name.split(".")[3] for name in _weights(whole, checkpoint.LAST) if name.startswith("distiller.")}
    assert parts == {"loss_holistic", "loss_mgd", "loss_cwd"}


def test_adaptors_and_critics_learn(config, train_until):
    """Each of their weights moves between two checkpoints of one run; but for query and key of the critic's attention,
    which is 1 whatever they are on so small a map."""
    cfg = config("run", *losses(*MIXED), *NO_TEST)
    train_until(cfg, ENGINES[0], 4)
    before = _weights(cfg, checkpoint.LAST)
    _train(cfg, resume=True)
    after = _weights(cfg, checkpoint.LAST)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    weights = {name for name in after if name.startswith("distiller.") and name.endswith(".weight")}
    weights -= {name for name in weights if name.endswith(("query.weight", "key.weight"))}
    assert len(weights) > 5 and weights <= moved


def test_a_student_s_weights_begin_a_distillation(config, caplog):
    """model_final.pth has no adaptors; they begin anew, and nothing is missed."""
    first = config("first", *losses(source="none"), *NO_TEST, "SOLVER.MAX_ITER", 1)
    _train(first)
    weights = f"{first.OUTPUT_DIR}/{checkpoint.MODEL_FINAL}"
    cfg = config("next", *losses(*MIXED), *NO_TEST, "SOLVER.MAX_ITER", 1, "MODEL.WEIGHTS", weights)
    _train(cfg)
    assert "tensors loaded" not in Path(cfg.OUTPUT_DIR, "log.txt").read_text()


# Cached -------------------------------------------------------------------------------------------------------------


def test_a_cached_teacher_says_the_same(config, file, teacher):
    """On images that are only resized, to the teacher's own size: the loss of the first steps differs by what the
    cache rounds, and by float32 (a hundredth)."""
    size = (
        "INPUT.SIZE",
        48,
        "INPUT.SHORT_SIDE",
        "()",
        "INPUT.FLIP_PROB",
        0.0,
        "INPUT.BLUR_PROB",
        0.0,
        *NO_TEST,
    )
    more = (*size, "SOLVER.MAX_ITER", 3, "DATASETS.KEEP_SEM_SEG", 0.5)
    online = config("online", *losses({**HINTON, "ALPHA": 1.0}), *more)
    cached = config("cached", *losses({**HINTON, "ALPHA": 1.0}, source="cached"), *more, *BOTH_SOURCES)
    cache_teacher(cached, "segmentation")
    for cfg in (online, cached):
        _train(cfg)
    first, second = ([step["loss_hinton"] for step in _steps(cfg)] for cfg in (online, cached))
    assert len(first) == 3 and min(first) > 0.1
    assert second == pytest.approx(first, rel=1e-2)


def test_the_cache_lacks_an_image(config):
    more = ("DISTILL.SEGMENTATION.TARGET", "logits", "DISTILL.SEGMENTATION.POLICY", "teacher", *NO_TEST)
    cfg = config("run", *losses(HINTON, source="cached"), *more)
    with pytest.raises(UserError, match=r"teacher_cache/segmentation.*tools/cache_teacher.py"):
        _train(cfg)


# Every kind of teacher, schedule and option -------------------------------------------------------------------------


def _mmseg(folder: Path) -> tuple[object, ...]:
    """A small segmentor in a config of MMSegmentation's form, with its own mean and deviation."""
    norm = {"type": "BN"}
    decode = {
        "type": "FCNHead",
        "in_channels": 64,
        "in_index": 3,
        "channels": 8,
        "num_convs": 1,
        "num_classes": 1 + len(CLASSES),
        "norm_cfg": norm,
    }
    model = {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [10.0, 20.0, 30.0],
            "std": [50.0, 60.0, 70.0],
            "bgr_to_rgb": True,
        },
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_cfg": norm},
        "decode_head": decode,
        "test_cfg": {"mode": "whole"},
    }
    file = folder / "theirs.py"
    file.write_text(f"default_scope = 'mmseg'\nmodel = {pprint.pformat(model)}\n")
    names = ("background", *teacher_classes())
    return ("TEACHER.SEGMENTATION", f"mmseg://{file}?weights=random", "TEACHER.SEGMENTATION.CLASSES", names)


def _torchvision(folder: Path) -> tuple[object, ...]:
    uri = "torchvision://lraspp_mobilenet_v3_large/random"
    return ("TEACHER.SEGMENTATION", uri, "TEACHER.SEGMENTATION.CLASSES", teacher_classes())


@pytest.mark.parametrize(
    ("kind", "layer", "options", "rates"),
    [
        # the default schedule is stepped, and has no step here
        (_torchvision, "backbone.16", ("SOLVER.AMP.ENABLED", True), [1.0, 1.0, 1.0]),
        (_torchvision, "backbone.16", ("SOLVER.STEPS", (1,)), [1.0, 0.1, 0.1]),
        # (1 − i / 3)^0.9
        (
            _mmseg,
            "backbone.layer4",
            ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.EMA.ENABLED", True),
            None,
        ),
    ],
    ids=["torchvision-amp", "torchvision-step", "mmseg-poly-ema"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_teachers_of_the_zoos(engine, kind, layer, options, rates, config, tmp_path):
    """Their logits, and their layers by the module paths of their own networks."""
    cwd = {"TYPE": "cwd", "STUDENT": "backbone.layer4", "TEACHER": layer}
    more = (*losses(HINTON, cwd), *kind(tmp_path), *options, "SOLVER.MAX_ITER", 3, *NO_TEST)
    cfg = config("run", *more)
    _train(cfg, engine)
    steps = _steps(cfg)
    rates = rates or [(1 - i / 3) ** 0.9 for i in range(3)]
    assert [step["lr"] for step in steps] == pytest.approx([1e-3 * rate for rate in rates])
    assert all(step["loss_cwd"] > 0 and step["loss_hinton"] > 0 for step in steps)
    assert "float32" in Path(cfg.OUTPUT_DIR, "log.txt").read_text() or not cfg.SOLVER.AMP.ENABLED


@torch.no_grad()
def test_a_config_that_mmsegmentation_ships(config):
    """By its name; its classes are those of its data set, of which two are the student's, and none is background: the
    others become it."""
    uri = "mmseg://fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024?weights=random"
    more = ("TEACHER.SEGMENTATION", uri, "TEACHER.SEGMENTATION.ALLOW_UNMAPPED", True, *NO_TEST)
    teacher = build_online(config("run", *losses(HINTON), *more))
    said = teacher.logits(torch.rand(1, 3, 64, 64) * 255)
    assert said.shape == (1, 11, 64, 64)
    share = said.softmax(1).mean((0, 2, 3))
    known = [0, *(1 + CLASSES.index(name) for name in ("person", "car"))]
    assert share[known].min() > 1e-6 and share[known].sum() > 1 - 1e-6 and share[0] == share.max()


def test_a_teacher_that_saw_test_images_is_refused(config, file, tmp_path):
    """Its checkpoint tells what it was trained on."""
    save_teacher(file, tmp_path / "cheat.pth", "DATASETS.TRAIN", ("voc_seg_val",), "DATASETS.TEST", "()")
    cfg = config("run", *losses(HINTON), *taught_by(tmp_path / "cheat.pth"))
    with pytest.raises(
        UserError, match="TEACHER.SEGMENTATION: trained on voc_seg_val, which shares 6 images of DATA"
    ):
        _train(cfg)
    cfg = config("run", *losses(HINTON), "TEACHER.SEGMENTATION.TRAINED_ON", ("voc_seg_val",))
    with pytest.raises(UserError, match="TEACHER.SEGMENTATION: trained on voc_seg_val"):
        _train(cfg)
