"""The files in configs/mmseg whose networks are MMSegmentation's, on real images through the tools.

Each is edited as a user would: data, size, network and length.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from mmseg.apis import init_model
from tool_runner import ToolRunner, edited

from scenekd import checkpoint
from scenekd.data.voc import VOC_CLASSES

pytestmark = pytest.mark.usefixtures("plain_dumps")

CONFIGS = Path(__file__).parents[1] / "configs/mmseg"
NETWORK = {
    'pretrained="torchvision://resnet18",': "",
    "depth=18,": "depth=18, base_channels=8,",
    "in_channels=512": "in_channels=64",
}


@pytest.fixture
def voc(test_data, tmp_path):
    """A VOC-layout folder with 8 train images of voc_pool_320, half of them with a mask, 4 of val, saved outputs."""
    pool, root = test_data / "voc_pool_320", tmp_path / "voc"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "SegmentationClass").mkdir()
    for folder in ("JPEGImages", "Annotations", "TeacherSegmentation"):
        (root / folder).symlink_to(pool / folder)
    for split, count, masks in (("train", 8, 4), ("val", 4, 4)):
        ids = (pool / f"ImageSets/Segmentation/{split}.txt").read_text().split()[:count]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids) + "\n")
        for image_id in ids[:masks]:
            (root / f"SegmentationClass/{image_id}.png").symlink_to(
                pool / f"SegmentationClass/{image_id}.png"
            )
    return root


def _write(folder, name, changes):
    file = folder / name
    file.write_text(edited((CONFIGS / name).read_text(), changes))
    return file


def _base_file(folder, root):
    """configs/mmseg/blitznet_voc.py, which the others begin from."""
    return _write(
        folder,
        "blitznet_voc.py",
        {
            "size = 300": "size = 64",
            'root="datasets/VOCdevkit"': f'root="{root}"',
            "voc2012_seg_train": "voc_seg_train",
            "voc2012_seg_val": "voc_seg_val",
            "num_workers=4, persistent_workers=True": "num_workers=0, persistent_workers=False",
            "batch_size=32": "batch_size=4",
            "max_iters=65000, val_interval=5000": "max_iters=3, val_interval=3",
            "interval=50, ": "interval=1, ",
        },
    )


def _network_file(folder, root):
    """configs/mmseg/_base_/fcn_r18_voc.py, the network of those that learn from a teacher."""
    _base_file(folder, root)
    (folder / "_base_").mkdir(exist_ok=True)
    _write(folder, "_base_/fcn_r18_voc.py", NETWORK | {"size=(300, 300)": "size=(64, 64)"})


def _soft_file(folder, root):
    _network_file(folder, root)
    changes = {
        "datasets/VOCdevkit/VOC2012/TeacherSegmentation": f"{root}/TeacherSegmentation",
        # masks that lack a file are no part of the list, as of a SceneKDDataset; half of the others are left out
        "dataset=dict(pipeline=train_pipeline)": "dataset=dict(pipeline=train_pipeline, keep_sem_seg=0.5)",
    }
    return _write(folder, "fcn_r18_soft_voc.py", changes)


def _online_file(folder, root, teacher):
    _network_file(folder, root)
    changes = {'teacher=dict(checkpoint="torchvision://deeplabv3_resnet50")': f"teacher={teacher!r}"}
    return _write(folder, "fcn_r18_online_voc.py", changes)


def _stock_file(folder, root):
    changes = NETWORK | {
        "in_channels=256": "in_channels=32",
        "datasets/VOCdevkit/VOC2012": str(root),
        "crop_size = (512, 512)": "crop_size = (64, 64)",
        "ratio_range=(0.5, 2.0)": "ratio_range=(0.1, 0.4)",
        "num_workers=4, persistent_workers=True": "num_workers=0, persistent_workers=False",
        "max_iters=20000, val_interval=2000": "max_iters=3, val_interval=3",
        "interval=50, ": "interval=1, ",
        "val_evaluator = dict(": 'val_evaluator = [dict(type="IoUMetric", iou_metrics=["mIoU"]), dict(',
        'tasks=("sem_seg",))\n)': 'tasks=("sem_seg",)))]',
    }
    return _write(folder, "fcn_r18_stock_voc.py", changes)


def _train(file, out, monkeypatch):
    """What was logged at each step and at the end; the checkpoint is a plain EncoderDecoder's."""
    assert ToolRunner("train_net", monkeypatch)("--config-file", file, "--output-dir", out) == 0
    lines = next(out.glob("*/vis_data/scalars.json")).read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    return [line for line in logged if "loss" in line], logged[-1]


def _test_again(file, out, monkeypatch):
    """The trained result and that of tools/test.py from the final checkpoint."""
    again = out / "again.json"
    assert ToolRunner("test", monkeypatch)(file, out / "model_final.pth", "--out", again) == 0
    return [json.loads(path.read_text())["sem_seg"]["mIoU"] for path in (out / "results.json", again)]


def _all_finite(steps, *names):
    assert len(steps) == 3
    for step in steps:
        assert all(math.isfinite(value) for value in step.values())
        assert set(names) <= step.keys()


def test_soft_then_online(voc, tmp_path, monkeypatch):
    """From saved outputs; then the network that this gave, in MMEngine's own checkpoint, teaches another online. The
    student is tested when its teacher is gone."""
    file, out = _soft_file(tmp_path, voc), tmp_path / "soft"
    steps, _ = _train(file, out, monkeypatch)
    _all_finite(steps, "decode.loss_ce", "decode.loss_soft")
    assert all(step["decode.loss_soft"] > 0 for step in steps)
    trained, again = _test_again(file, out, monkeypatch)
    assert 0 < trained <= 100 and again == pytest.approx(trained, abs=1e-4)

    weights = out / "iter_3.pth"
    online = _online_file(tmp_path, voc, {"config": str(file), "checkpoint": str(weights)})
    steps, _ = _train(online, tmp_path / "online", monkeypatch)
    _all_finite(steps, "decode.loss_ce", "distill.loss_kd")
    assert all(step["distill.loss_kd"] > 0 for step in steps)
    weights.unlink()
    trained, again = _test_again(online, tmp_path / "online", monkeypatch)
    assert again == pytest.approx(trained, abs=1e-4)


def test_structured(voc, tmp_path, monkeypatch):
    """A list of losses on logits and layers, beside losses by their type: all are trained on, adaptor and critic are
    saved, and the student is tested when its teacher is gone."""
    soft = _soft_file(tmp_path, voc)
    teacher = {"config": str(soft), "checkpoint": str(tmp_path / "teacher.pth")}
    torch.manual_seed(0)
    state = init_model(str(soft), device="cpu").state_dict()
    meta = {"dataset_meta": {"classes": ("background", *VOC_CLASSES)}}
    torch.save({"state_dict": state, "meta": meta}, teacher["checkpoint"])
    _online_file(tmp_path, voc, teacher)
    kinds = ("CWD", "PairWise", "DIST", "DKD")
    by_type = "".join(f'dict(type="SceneKD{kind}Loss"),' for kind in kinds)
    more = 'dict(TYPE="mgd", STUDENT="backbone.layer3", TEACHER="backbone.layer4"),'
    changes = {"distill=[": f"distill=[{by_type}{more}", "WARMUP=1000": "WARMUP=1"}
    file, out = _write(tmp_path, "fcn_r18_structured_voc.py", changes), tmp_path / "structured"
    steps, _ = _train(file, out, monkeypatch)
    names = ("cwd", "pair", "dist", "dkd", "mgd", "pixel", "holistic")
    _all_finite(steps, "decode.loss_ce", *(f"distill.loss_{name}" for name in names))
    weights = checkpoint.read(out / "model_final.pth")["model"]
    parts = {name.split(".")[3] for name in weights if name.startswith("distillation.")}
    assert parts == {"loss_mgd", "loss_holistic"}  # the layers of the other have equal channels
    assert weights["distillation.losses.parts.loss_holistic.steps"] == 3
    Path(teacher["checkpoint"]).unlink()
    trained, again = _test_again(file, out, monkeypatch)
    assert again == pytest.approx(trained, abs=1e-4)


def test_stock(voc, tmp_path, monkeypatch):
    """PascalVOCDataset, half of its masks absent; our metric of the images that MMSegmentation's loader gave is that of
    its IoUMetric, and MMSegmentation loads the student into its own EncoderDecoder."""
    file, out = _stock_file(tmp_path, voc), tmp_path / "stock"
    steps, last = _train(file, out, monkeypatch)
    _all_finite(steps, "decode.loss_ce", "decode.loss_kd", "aux.loss_ce")
    assert all(step["decode.loss_kd"] > 0 for step in steps)
    assert last["sem_seg/mIoU"] == pytest.approx(last["mIoU"], abs=0.01)
    trained, again = _test_again(file, out, monkeypatch)
    assert again == pytest.approx(trained, abs=1e-4)

    plain = tmp_path / "plain.py"
    soft = 'dict(type="SceneKDHintonLoss", temperature=2.0, loss_weight=0.5),'
    changes = {'type="SceneKDEncoderDecoder"': 'type="EncoderDecoder"', soft: ""}
    plain.write_text(edited(file.read_text(), changes))
    model = init_model(str(plain), device="cpu")
    load_checkpoint(model, str(out / "model_final.pth"), map_location="cpu", strict=True)
    assert type(model).__name__ == "EncoderDecoder"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ('type="SceneKDHintonLoss", temperature=0.0', r"temperature must be positive"),
        ('type="SceneKDHintonLoss", alpha=1.5', r"alpha"),
        ('type="SceneKDHintonLoss", heat=4.0', r"'heat'"),
        ('type="SceneKDHintLoss"', r"SceneKDHintLoss is not in"),
    ],
)
def test_what_cannot_be_built_is_one_line(loss, message, voc, tmp_path, monkeypatch, capsys):
    """A loss that is not there, and one whose options are not or are out of range: exit code 2 and the reason."""
    file = _online_file(tmp_path, voc, {"checkpoint": "none.pth"})
    text = edited(file.read_text(), {'type="SceneKDHintonLoss", temperature=4.0, alpha=0.5': loss})
    file.write_text(text)
    assert ToolRunner("train_net", monkeypatch)("--config-file", file, "--output-dir", tmp_path / "out") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {file}: what it describes cannot be built (") and re.search(message, last)


def test_weights_to_begin_from_are_kept(voc, tmp_path, monkeypatch):
    """MMEngine initialises a model when training begins; load_from comes after it. At a learning rate of 0 the weights
    are still those of the file."""
    file = _soft_file(tmp_path, voc)
    run, words = ToolRunner("train_net", monkeypatch), ("--config-file", file, "train_cfg.max_iters", 1)
    assert run(*words, "--output-dir", tmp_path / "a") == 0
    start = ("load_from", tmp_path / "a/model_final.pth", "optim_wrapper.optimizer.lr", 0.0)
    assert run(*words, "--output-dir", tmp_path / "b", "randomness.seed", 5, *start) == 0
    before, after = (checkpoint.read(tmp_path / name / "model_final.pth")["model"] for name in "ab")
    learned = [
        name for name in before if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert all(torch.equal(before[name], after[name]) for name in learned)
