"""Configuration files: inheritance, overrides, and one clear line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fvcore.common.config import CfgNode as CN

from scenekd import config
from scenekd.config import (
    SYSTEMS,
    add_scenekd_config,
    apply_overrides,
    config_from_text,
    get_cfg,
    import_system,
    load_config,
)
from scenekd.errors import UserError

ROOT = Path(__file__).parents[1]
# configs/detectron2 holds native configs of that framework's; a study's table and presets are told by its own tests.
FILES = sorted(
    path
    for path in [*ROOT.glob("configs/_base_/*.yaml"), *ROOT.glob("projects/*/**/*.yaml")]
    if path.name != "rows.yaml" and path.parent.name not in ("presets", "pairs")
)


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_configs_load(path):
    """Every YAML of the repository names known keys with values of the right type."""
    cfg = load_config(path)
    assert cfg.is_frozen()
    assert cfg.SYSTEM in SYSTEMS


def test_base_chain(tmp_path):
    """The nearest file wins, key by key; a base is found relative to the file that names it."""
    solver = "SOLVER: {BASE_LR: 0.5, MAX_ITER: 7, STEPS: [3]}"
    _write(tmp_path, "a/b/grand.yaml", f"SEED: 1\n{solver}\nINPUT: {{SIZE: 64}}")
    _write(tmp_path, "a/parent.yaml", "_BASE_: b/grand.yaml\nSEED: 2\nSOLVER: {MAX_ITER: 8}")
    path = _write(tmp_path, "child.yaml", "_BASE_: a/parent.yaml\nSEED: 3")
    cfg = load_config(path)
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.INPUT.SIZE) == (3, 8, 0.5, 64)
    assert cfg.SOLVER.STEPS == (3,)
    assert get_cfg().SEED == 0  # the defaults of the next configuration are untouched


def test_base_list(tmp_path):
    """Of several bases the later wins."""
    _write(tmp_path, "x.yaml", "SEED: 1\nINPUT: {SIZE: 64}")
    _write(tmp_path, "y.yaml", "SEED: 2")
    cfg = load_config(_write(tmp_path, "z.yaml", "_BASE_: [x.yaml, y.yaml]\nOUTPUT_DIR: out"))
    assert (cfg.SEED, cfg.INPUT.SIZE, cfg.OUTPUT_DIR) == (2, 64, "out")


def test_overrides_keep_types(tmp_path):
    """Values take the type of their key, whatever the spelling; the last of two wins."""
    path = _write(tmp_path, "c.yaml", "SEED: 1")
    cfg = load_config(
        path,
        [
            *("SEED", "5", "SEED", "6"),
            *("SOLVER.BASE_LR", "1e-3", "SOLVER.GAMMA", "1"),
            *("DATASETS.TRAIN", "('voc_seg_train', 'voc_seg_val')", "SOLVER.STEPS", "[4, 5]"),
            *("INPUT.PHOTOMETRIC", "False", "OUTPUT_DIR", "/tmp/some where", "TEST.EXPECTED_RESULTS"),
            "[['bbox', 'AP50', 70, 1.5]]",
        ],
    )
    assert cfg.SEED == 6
    assert cfg.SOLVER.BASE_LR == 0.001
    assert isinstance(cfg.SOLVER.GAMMA, float)  # 1 stands for 1.0
    assert cfg.DATASETS.TRAIN == ("voc_seg_train", "voc_seg_val")
    assert cfg.SOLVER.STEPS == (4, 5)
    assert cfg.INPUT.PHOTOMETRIC is False
    assert cfg.OUTPUT_DIR == "/tmp/some where"
    assert cfg.TEST.EXPECTED_RESULTS == [["bbox", "AP50", 70, 1.5]]


def test_whole_numbers_and_exponents_in_yaml(tmp_path):
    """YAML reads 1e-4 as text and 4 as an int; both are floats where the key is one, and ints stay ints."""
    text = "SOLVER: {BASE_LR: 1e-4, MAX_ITER: 4}\nDISTILL: {SEGMENTATION: {TEMPERATURE: 4}}"
    cfg = load_config(_write(tmp_path, "c.yaml", text))
    assert cfg.SOLVER.BASE_LR == 0.0001
    assert isinstance(cfg.DISTILL.SEGMENTATION.TEMPERATURE, float)
    assert isinstance(cfg.SOLVER.MAX_ITER, int)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SOLVER: {BASE_LRR: 0.1}", "SOLVER.BASE_LRR"),
        ("NONSENSE: 1", "NONSENSE"),
        ("SOLVER: {1: 0.1}", "SOLVER.1"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER"),
        ("SOLVER: {MAX_ITER: 1.5}", "SOLVER.MAX_ITER"),
        ("SOLVER: {STEPS: 5}", "SOLVER.STEPS"),
        ("SOLVER: 5", "SOLVER"),
        ("SOLVER:", "SOLVER"),
        ("SEED:", "SEED"),
        ("SEED: {A: 1}", "SEED"),
        ("SEED: 2020-01-01", "SEED"),
        ("SEED: [1\nINPUT: ]:", "YAML"),
        ("", "YAML mapping|valid YAML"),
        ("- SEED", "YAML mapping"),
        ("just words", "YAML mapping"),
        ("SEED: !!python/object/apply:os.getcwd []", "YAML"),
        ("_BASE_: missing.yaml", "_BASE_.*missing.yaml"),
        ("_BASE_: bad.yaml", "_BASE_"),
    ],
)
def test_bad_files(tmp_path, text, words):
    """Each mistake: one line that names the file and the key."""
    path = _write(tmp_path, "bad.yaml", text)
    message = _refused(path)
    assert message.startswith(f"{path}: ")
    assert re.search(words, message), message


def test_binary_and_missing_files(tmp_path):
    """A file that is no text, a folder, and no file at all."""
    binary = tmp_path / "image.yaml"
    binary.write_bytes(b"\xff\xd8\xff\xe0\x00")
    assert str(binary) in _refused(binary)
    assert "no such config file" in _refused(tmp_path / "none.yaml")
    assert "no such config file" in _refused(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("SOLVER.NO_SUCH", "1"), "SOLVER.NO_SUCH"),
        (("SEED.X", "1"), "SEED.X"),
        (("SEED", "abc"), "SEED"),
        (("SEED", "1.5"), "SEED"),
        (("SEED", "None"), "SEED"),
        (("SOLVER", "1"), "SOLVER"),
        (("DATASETS.TRAIN", "voc_seg_train"), "DATASETS.TRAIN"),
        (("_BASE_", "x.yaml"), "_BASE_"),
        (("SEED", "-1"), "SEED is -1"),
        (("SOLVER.CHECKPOINT_PERIOD", "0"), "SOLVER.CHECKPOINT_PERIOD is 0; it must be at least 1"),
        (("SEED",), "'SEED' stands alone"),
        (("SEED", "1", "OUTPUT_DIR"), "'OUTPUT_DIR' stands alone"),
    ],
)
def test_bad_overrides(tmp_path, overrides, words):
    """An override that cannot be: one line that names the key."""
    assert words in _refused(_write(tmp_path, "c.yaml", "SEED: 1"), *overrides)


def test_a_bad_override_names_its_own_key(tmp_path):
    """Good pairs before it do not hide the key that is wrong."""
    message = _refused(_write(tmp_path, "c.yaml", "SEED: 1"), "SEED", "2", "SOLVER.MAX_ITER", "x")
    assert "SOLVER.MAX_ITER" in message
    assert "SEED" not in message


def test_systems_are_a_closed_list(tmp_path, monkeypatch):
    """A config cannot name a module to import; a system of the list whose package is not there says so."""
    imported = []
    monkeypatch.setattr(config.importlib, "import_module", imported.append)
    for name in ("os", "scenekd.engines", "", "KD_MTL"):
        message = _refused(_write(tmp_path, "c.yaml", f"SYSTEM: '{name}'"))
        assert "SYSTEM" in message
        assert "kd_mtl, fcn_kd, blindnet, envise" in message
    assert imported == []


def test_system_without_its_package(tmp_path, monkeypatch):
    """A missing package is told apart from one that is there but lacks a module of its own."""

    def missing(name):
        def load(system):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return load

    monkeypatch.setattr(config.importlib, "import_module", missing("fcn_kd"))
    message = _refused(_write(tmp_path, "c.yaml", "SYSTEM: fcn_kd"))
    assert message == "SYSTEM: fcn_kd is not part of this release of SceneKD"
    monkeypatch.setattr(config.importlib, "import_module", missing("timm"))
    with pytest.raises(ModuleNotFoundError, match="timm"):
        import_system("fcn_kd")


def test_add_scenekd_config_keeps_what_is_there():
    """On a configuration like detectron2's: its values stay, ours come beside them, nodes are not shared."""
    cfg = CN()
    cfg.SEED = -1
    cfg.DATASETS = CN({"TRAIN": ("coco_2017_train",), "TEST": (), "PROPOSAL_FILES_TRAIN": ()})
    cfg.INPUT = CN({"FORMAT": "BGR", "MIN_SIZE_TRAIN": (800,), "SIZE": 77})
    cfg.MODEL = CN({"DEVICE": "cuda", "META_ARCHITECTURE": "GeneralizedRCNN"})
    before = cfg.clone()
    add_scenekd_config(cfg)
    assert cfg.SEED == -1
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
    assert cfg.DATASETS.PROPOSAL_FILES_TRAIN == ()
    assert (cfg.INPUT.FORMAT, cfg.INPUT.SIZE) == ("BGR", 77)
    assert {name: cfg.MODEL[name] for name in before.MODEL} == before.MODEL
    assert cfg.DATASETS.ROOT == ""
    assert cfg.DISTILL.SEGMENTATION.TEMPERATURE == 1.0
    cfg.DISTILL.SEGMENTATION.TEMPERATURE = 4.0
    cfg.TEACHER.DETECTION.NAME = "x"
    assert cfg.TEACHER.SEGMENTATION.NAME == ""
    assert get_cfg().DISTILL.SEGMENTATION.TEMPERATURE == 1.0
    again = cfg.clone()
    add_scenekd_config(again)
    assert again == cfg


@pytest.mark.parametrize("path", FILES[:1] + FILES[-1:], ids=lambda p: p.name)
def test_dump_round_trip(path):
    """What a checkpoint keeps as text is the same configuration, types included."""
    cfg = load_config(path, ["SOLVER.BASE_LR", "1e-05", "OUTPUT_DIR", "a: b # c", "SOLVER.STEPS", "()"])
    again = config_from_text(cfg.dump())
    assert again == cfg
    assert again.dump() == cfg.dump()
    assert again.is_frozen()
    other = config_from_text(cfg.dump(), ["SEED", "9"])
    assert other.SEED == 9
    assert cfg.SEED == 0


@pytest.mark.parametrize("text", ["a: [", "5", "", "NO_KEY: 1", "SEED: 2020-01-01"])
def test_bad_text_names_its_source(text):
    """Text from a damaged checkpoint: one line with the checkpoint's name."""
    with pytest.raises(UserError, match="^model.pth: ") as caught:
        config_from_text(text, source="model.pth")
    assert "\n" not in str(caught.value)


def test_apply_overrides_in_place():
    """``apply_overrides`` changes the configuration it is given, and only there."""
    cfg = get_cfg()
    apply_overrides(cfg, ["SEED", "4"])
    assert cfg.SEED == 4
