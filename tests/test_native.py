"""Native configurations of MMEngine and detectron2, through the tools, on drawn scenes and a tiny network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import ENGINES

from scenekd import checkpoint

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

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
    import importlib

    # tools/test.py is imported by its path, as the standard library has a module of that name
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    module.main()


def _edited(text, changes):
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def _mmseg_file(folder, root, name="blitznet_voc", **network):
    """The shipped file, edited as a user would: data, size, network and length."""
    text = _edited(
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
    file = folder / f"{name}.py"
    file.write_text(text)
    return file


def _detectron2_file(folder, root):
    text = _edited(
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
