"""Native configurations of MMEngine and detectron2, through the tools, on drawn scenes and a tiny network."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ENGINES
from PIL import Image
from tool_runner import edited, load_tool

from scenekd import checkpoint
from scenekd.engines.native import native_framework
from scenekd.errors import UserError
from scenekd.predictor import open_config

pytestmark = pytest.mark.usefixtures("plain_dumps")

ROOT = Path(__file__).parents[1]
CLASSES = ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")
NETWORK = {
    "trunk": "resnet18",
    "trunk_width": 8,
    "pretrained": "",
    "block_channels": (8, 16),
    "stream_channels": 16,
    "neck_channels": 8,
    "seg_channels": 8,
}
DETECTRON2 = [
    pytest.mark.detectron2,
    pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed"),
]
FRAMEWORKS = ["mmseg", pytest.param("detectron2", marks=DETECTRON2)]


def _tool(monkeypatch, name, *words):
    module = load_tool(name)
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    module.main()


def _mmseg_file(folder, root):
    """The shipped file, edited as a user would: data, size, network and length."""
    text = edited(
        (ROOT / "configs/mmseg/blitznet_voc.py").read_text(),
        {
            "size = 300": "size = 64",
            'dict(root="datasets/VOCdevkit")': f"dict(root={str(root)!r}, classes={CLASSES})",
            "voc2012_seg_train": "voc_seg_train",
            "voc2012_seg_val": "voc_seg_val",
            'num_classes=20,\n    trunk="resnet50",\n    pretrained="torchvision",': "num_classes=10, "
            + ", ".join(f"{k}={v!r}" for k, v in NETWORK.items())
            + ",",
            "num_workers=4, persistent_workers=True": "num_workers=0, persistent_workers=False",
            "batch_size=32": "batch_size=4",
            "max_iters=65000, val_interval=5000": "max_iters=3, val_interval=3",
            "interval=50, ": "interval=1, ",
        },
    )
    file = folder / "blitznet_voc.py"
    file.write_text(text)
    return file


def _detectron2_file(folder, root):
    text = edited(
        (ROOT / "configs/detectron2/blitznet_voc.yaml").read_text(),
        {
            "SIZE: 300": "SIZE: 64",
            'ROOT: "datasets/VOCdevkit"': f'ROOT: "{root}"\n  CLASSES: {CLASSES}\n  KEEP_SEM_SEG: 0.5',
            "voc2012_seg_train": "voc_seg_train",
            "voc2012_seg_val": "voc_seg_val",
            'TRUNK: "resnet50"\n    PRETRAINED: "torchvision"': "\n    ".join(
                f"{k.upper()}: {json.dumps(v) if isinstance(v, str) else v}" for k, v in NETWORK.items()
            ),
            "NUM_WORKERS: 4": "NUM_WORKERS: 0",
            "IMS_PER_BATCH: 32": "IMS_PER_BATCH: 4",
            "MAX_ITER: 65000": "MAX_ITER: 3",
            "EVAL_PERIOD: 5000": "EVAL_PERIOD: 3",
            "STEPS: (40000, 50000)": "STEPS: ()",
            "WARMUP_ITERS: 1000": "WARMUP_ITERS: 1",
            "CHECKPOINT_PERIOD: 5000": "CHECKPOINT_PERIOD: 2",
        },
    )
    file = folder / "blitznet_voc.yaml"
    file.write_text(text)
    return file


NAMES = {"mmseg": "mmengine", "detectron2": "detectron2"}
FILES = {"mmseg": _mmseg_file, "detectron2": _detectron2_file}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_native_config_trains_and_evaluates(framework, scenes, tmp_path, monkeypatch):
    """Training leaves results and a checkpoint of the bare network; tools/test.py gives the same numbers from it."""
    file, out = FILES[framework](tmp_path, scenes), tmp_path / "out"
    _tool(monkeypatch, "train_net", "--config-file", file, "--output-dir", out)
    trained = json.loads((out / "results.json").read_text())
    state = checkpoint.read(out / "model_final.pth")
    assert {"model", "state_dict", "format"} <= state.keys()
    assert "streams" in {name.split(".")[0] for name in state["model"]}
    assert 0 < trained["sem_seg"]["mIoU"] <= 100
    assert trained["bbox"].keys() & {"AP50"}
    _tool(monkeypatch, "test", file, out / "model_final.pth", "--out", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["sem_seg"]["mIoU"] == pytest.approx(trained["sem_seg"]["mIoU"], abs=1e-4)
    assert again["bbox"]["AP50"] == pytest.approx(trained["bbox"]["AP50"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_processes_train_one_network(framework, scenes, tmp_path, monkeypatch):
    """Over gloo; each image is evaluated once, with the checkpoint's weights: one process gives the same numbers.

    The checkpoint holds the framework's own configuration as text, which no SceneKD tool takes for one of ours.
    """
    file, out = FILES[framework](tmp_path, scenes), tmp_path / "out"
    _tool(monkeypatch, "train_net", "--config-file", file, "--output-dir", out, "--num-gpus", 2)
    both = json.loads((out / "results.json").read_text())
    weights = out / "model_final.pth"
    text = checkpoint.read(weights)["config"]
    assert text.startswith(f"# native configuration of {NAMES[framework]}\n") and "BlitzNet" in text
    with pytest.raises(UserError, match=f"model_final.pth: .*{NAMES[framework]}'s own"):
        open_config(weights)
    result, panels = tmp_path / "alone.json", tmp_path / "panels"
    _tool(monkeypatch, "test", file, weights, "--out", result, "--show-dir", panels)
    alone = json.loads(result.read_text())
    assert both["sem_seg"]["mIoU"] == pytest.approx(alone["sem_seg"]["mIoU"], abs=1e-4)
    assert both["bbox"]["AP50"] == pytest.approx(alone["bbox"]["AP50"], abs=1e-4)
    _check_panels(panels, scenes)


def _check_panels(folder, root):
    """One of every test image: ground truth and network, boxes and masks, as tiles on white."""
    ids = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    assert sorted(path.stem for path in folder.iterdir()) == sorted(ids)
    for path in folder.iterdir():
        pixels = np.array(Image.open(path))
        height, width = np.array(Image.open(root / "JPEGImages" / f"{path.stem}.jpg")).shape[:2]
        assert pixels.shape[0] > height and pixels.shape[1] > 2 * width
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


@DETECTRON2[0]
@DETECTRON2[1]
def test_checkpoints_serve_the_other_framework(scenes, tmp_path, monkeypatch):
    """What each framework wrote natively scores the same under the other and under SceneKD's own configuration.

    The networks see the same resized image, but for the decoder's and the resizers' rounding.
    """
    files = {name: make(tmp_path, scenes) for name, make in FILES.items()}
    own = tmp_path / "own.yaml"
    network = ", ".join(
        f"{k.upper()}: {json.dumps(str(v) if k == 'block_channels' else v)}" for k, v in NETWORK.items()
    )
    own.write_text(
        f"DATASETS: {{ROOT: {scenes}, CLASSES: {json.dumps(str(CLASSES))}, TEST: \"('voc_seg_val',)\"}}\n"
        f"INPUT: {{SIZE: 64}}\nMODEL: {{DEVICE: cpu, BLITZNET: {{{network}}}}}\n"
        "DATALOADER: {NUM_WORKERS: 0}\nTEST: {BOOTSTRAP: 0}\n"
    )
    for name, file in files.items():
        out = tmp_path / name
        _tool(monkeypatch, "train_net", "--config-file", file, "--output-dir", out)
        scores = {}
        for other, config in {**files, "own": own}.items():
            result = tmp_path / f"{name}-{other}.json"
            _tool(monkeypatch, "test", config, out / "model_final.pth", "--out", result)
            scores[other] = json.loads(result.read_text())["sem_seg"]["mIoU"]
        # detectron2's mean leaves out the classes that the ground truth lacks; the others count them where predicted
        assert scores["mmseg"] == pytest.approx(scores["own"], abs=0.3)
        assert scores["detectron2"] >= scores["own"] - 0.3


def test_resume_goes_on(scenes, tmp_path, monkeypatch):
    """--resume finds MMEngine's last checkpoint."""
    file, out = _mmseg_file(tmp_path, scenes), tmp_path / "out"
    words = ("--config-file", file, "--output-dir", out, "default_hooks.checkpoint.interval", 2)
    _tool(monkeypatch, "train_net", *words)
    _tool(monkeypatch, "train_net", *words, "--resume", "train_cfg.max_iters", 5)
    logs = sorted(out.glob("*/vis_data/scalars.json"))
    steps = [json.loads(line).get("iter") for line in logs[-1].read_text().splitlines() if '"loss"' in line]
    assert steps[0] in (3, 4) and steps[-1] == 5


def test_which_files_are_native(tmp_path):
    """By the suffix and by MODEL.META_ARCHITECTURE; our own YAML files are not."""
    assert native_framework(ROOT / "configs/mmseg/blitznet_voc.py") == "mmengine"
    assert native_framework(ROOT / "projects/kd_mtl/blitznet_kd.yaml") is None
    assert native_framework(tmp_path / "missing.yaml") is None
    yaml = ROOT / "configs/detectron2/blitznet_voc.yaml"
    if "detectron2" in ENGINES:
        assert native_framework(yaml) == "detectron2"
    else:
        with pytest.raises(UserError, match="detectron2 is not installed"):
            native_framework(yaml)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "names no model"),
        ("x = (", "broken.py"),
        (
            "custom_imports = dict(imports=['scenekd.engines.mmengine'])\nmodel = dict(type='BlitzNet')",
            "train_cfg",
        ),
    ],
)
def test_broken_native_files(text, message, tmp_path, monkeypatch):
    """One line that names the file."""
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        _tool(monkeypatch, "train_net", "--config-file", file)


@pytest.mark.detectron2
@pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed")
def test_weights_of_detectron2s_zoo_run_no_code(tmp_path):
    from torch import nn

    from scenekd.engines.detectron2_native import NativeCheckpointer

    class Hostile:
        def __reduce__(self):
            return print, ("run",)

    net = nn.Linear(2, 1)
    arrays = {"weight": np.full((1, 2), 3, np.float32), "bias": np.full(1, 4, np.float32)}
    good, bad = tmp_path / "good.pkl", tmp_path / "bad.pkl"
    good.write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo", "matching_heuristics": True}))
    bad.write_bytes(pickle.dumps({"model": Hostile(), "__author__": "zoo"}))
    NativeCheckpointer(net, str(tmp_path)).load(str(good))
    assert net.weight.tolist() == [[3, 3]] and net.bias.tolist() == [4]
    with pytest.raises(UserError, match="holds more than arrays"):
        NativeCheckpointer(net, str(tmp_path)).load(str(bad))
