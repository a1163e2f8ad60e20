"""fcn_kd's student under the frameworks' own trainers: it takes a list of distillation losses and an online teacher."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import ENGINES
from fcn_parts import (
    CLASSES,
    images,
    losses,
    masks,
    read,
    save_teacher,
    student,
    taught_by,
    write_config,
)
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from tool_runner import ToolRunner, edited

from fcn_kd import RegisteredStudent
from scenekd import checkpoint
from scenekd.engines.mmengine_model import to_target
from scenekd.errors import UserError
from scenekd.models import load_initial_weights
from scenekd.safe_load import Unread
from scenekd.teachers.live_build import build_online
from scenekd.teachers.scenekd_teacher import SceneKDTeacher

pytestmark = pytest.mark.usefixtures("plain_dumps")

CONFIGS = Path(__file__).parents[1] / "configs"
DETECTRON2 = [
    pytest.mark.detectron2,
    pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed"),
]
HINTON = {"TYPE": "hinton", "ALPHA": 0.5, "TEMPERATURE": 4.0}
HOLISTIC = {"TYPE": "holistic", "WEIGHT": 0.1, "WIDTH": 4, "SIZE": 16}
MGD = {"TYPE": "mgd", "STUDENT": "backbone.layer4", "TEACHER": "network.backbone.layer3"}
TINY = {"network": "fcn_resnet18", "num_classes": 10, "trunk_width": 8, "head_channels": 8, "image_size": 64}


@pytest.fixture
def teacher(tmp_path) -> Path:
    """The checkpoint of a teacher, its classes in another order than the student's."""
    save_teacher(write_config(tmp_path), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def _mmseg_file(folder: Path, root: Path, teacher: Path) -> Path:
    """The shipped files, edited as a user would: data, size, networks and length."""
    base = {
        "size = 300": "size = 64",
        'dict(root="datasets/VOCdevkit")': f"dict(root={str(root)!r}, classes={CLASSES})",
        "voc2012_seg_train": "voc_seg_train",
        "voc2012_seg_val": "voc_seg_val",
        "num_workers=4, persistent_workers=True": "num_workers=0, persistent_workers=False",
        "batch_size=32": "batch_size=4",
        "interval=50, ": "interval=1, ",
        "by_epoch=False, interval=5000": "by_epoch=False, interval=1",
    }
    (folder / "blitznet_voc.py").write_text(edited((CONFIGS / "mmseg/blitznet_voc.py").read_text(), base))
    own = {
        "num_classes=20,": f"num_classes=10, classes={CLASSES}, trunk_width=8, head_channels=8,",
        "torchvision://fcn_resnet101": f"scenekd://{teacher}",
        'TEACHER="backbone.layer4"': 'TEACHER="network.backbone.layer4"',
        "distill=[": f"distill=[{HOLISTIC}, {MGD},",
        "max_iters=20000, val_interval=2000": "max_iters=3, val_interval=3",
        "end=20000": "end=3",
    }
    file = folder / "student_kd_voc.py"
    file.write_text(edited((CONFIGS / "mmseg/student_kd_voc.py").read_text(), own))
    return file


def _detectron2_file(folder: Path, root: Path, teacher: Path) -> Path:
    changes = {
        "OUTPUT_STRIDE: 8": "OUTPUT_STRIDE: 8\n    TRUNK_WIDTH: 8\n    HEAD_CHANNELS: 8",
        "torchvision://fcn_resnet101": f"scenekd://{teacher}",
        'TEACHER: "backbone.layer4"': 'TEACHER: "network.backbone.layer4"',
        "  LOSSES:\n": f"  LOSSES:\n  - {json.dumps(HOLISTIC)}\n  - {json.dumps(MGD)}\n",
        'ROOT: "datasets/VOCdevkit"': f'ROOT: "{root}"\n  CLASSES: {CLASSES}',
        "voc2012_seg_train": "voc_seg_train",
        "voc2012_seg_val": "voc_seg_val",
        "SIZE: 300": "SIZE: 64",
        "NUM_WORKERS: 4": "NUM_WORKERS: 0",
        "IMS_PER_BATCH: 16": "IMS_PER_BATCH: 4",
        "MAX_ITER: 20000": "MAX_ITER: 3",
        "STEPS: (15000,)": "STEPS: ()",
        "WARMUP_ITERS: 500": "WARMUP_ITERS: 1",
        "CHECKPOINT_PERIOD: 2000": "CHECKPOINT_PERIOD: 1",
        "EVAL_PERIOD: 2000": "EVAL_PERIOD: 3",
    }
    file = folder / "student_kd_voc.yaml"
    file.write_text(edited((CONFIGS / "detectron2/student_kd_voc.yaml").read_text(), changes))
    return file


def _train(file: Path, out: Path, monkeypatch, *more: object) -> list[dict]:
    """What was logged at each step."""
    assert ToolRunner("train_net", monkeypatch)("--config-file", file, "--output-dir", out, *more) == 0
    log = next(iter(out.glob("*/vis_data/scalars.json")), out / "metrics.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if "loss_hinton" in line]


FILES = {"mmseg": _mmseg_file, "detectron2": _detectron2_file}


def _state(path: Path) -> dict:
    return checkpoint.weights_of(checkpoint.read(path))


@pytest.mark.parametrize("framework", ["mmseg", pytest.param("detectron2", marks=DETECTRON2)])
def test_shipped_configs_teach(framework, scenes, teacher, tmp_path, monkeypatch):
    """Every loss of the list is logged; student, adaptors and critic learn; the network is scored alike when the
    teacher is gone. MMEngine's model_final.pth holds the student alone; detectron2's is what it resumes from, too."""
    file, out = FILES[framework](tmp_path, scenes, teacher), tmp_path / "out"
    steps = _train(file, out, monkeypatch)
    assert steps
    for step in steps:
        losses = [step[f"loss_{kind}"] for kind in ("hinton", "holistic", "mgd", "cwd")]
        assert all(map(math.isfinite, losses)) and losses[0] > 0 and losses[2] > 0 and losses[3] > 0
    # MMEngine names a file by the steps that are done, and keeps two; detectron2 by the last step's number.
    names, done = (
        (("iter_2", "iter_3"), 3) if framework == "mmseg" else (("model_0000000", "model_0000001"), 2)
    )
    before, after = (_state(out / f"{name}.pth") for name in names)
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    for part in ("network.backbone.conv1", "distiller.losses.parts.loss_mgd.generate.0"):
        assert f"{part}.weight" in moved
    assert any(key.startswith("distiller.losses.parts.loss_holistic.critic") for key in moved)
    assert after["distiller.losses.parts.loss_holistic.steps"] == done
    if framework == "mmseg":
        assert {key.split(".")[0] for key in _state(out / "model_final.pth")} == {"network"}
        assert len(steps) == 3
    teacher.unlink()
    again = tmp_path / "again.json"
    assert ToolRunner("test", monkeypatch)(file, out / "model_final.pth", "--out", again) == 0
    scores = [json.loads(path.read_text())["sem_seg"]["mIoU"] for path in (out / "results.json", again)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


def test_checkpoints_of_mmengines_runner_are_read(scenes, teacher, tmp_path, monkeypatch):
    """What the runner wrote in training, with message hub, optimizer and schedules: as MODEL.WEIGHTS, and as the
    teacher of a run of ours, by scenekd:// and by mmseg://."""
    file, out = _mmseg_file(tmp_path, scenes, teacher), tmp_path / "out"
    _train(file, out, monkeypatch, "train_cfg.max_iters", 2)
    path = out / "iter_2.pth"
    with pytest.raises(Exception, match="HistoryBuffer|getattr|numpy"):
        torch.load(path, weights_only=True)
    state = checkpoint.read(path)
    assert {type(each) for each in state["message_hub"]["log_scalars"].values()} == {Unread}
    assert state["meta"]["iter"] == 2

    cfg = read(write_config(tmp_path, scenes), "MODEL.FCN_KD.OUTPUT_STRIDE", 8)
    net = RegisteredStudent(**TINY, output_stride=8)
    load_initial_weights(net, str(path))
    assert all(torch.equal(value, state["state_dict"][name]) for name, value in net.state_dict().items())
    yaml = tmp_path / "own.yaml"
    yaml.write_text(cfg.dump())
    ours = SceneKDTeacher(path, yaml)
    pictures = images()
    with torch.no_grad():
        wanted = net.eval().logits(pictures)
        assert torch.equal(ours.net.logits(pictures), wanted)
    options = ("TEACHER.SEGMENTATION", f"mmseg://{file}?weights={path}", "DATASETS.TEST", "()")
    cfg = read(write_config(tmp_path, scenes), *options)
    torch.testing.assert_close(
        build_online(cfg).logits(pictures),
        torch.nn.functional.interpolate(wanted, (64, 64), mode="bilinear", align_corners=False),
        rtol=1e-4,
        atol=1e-4,
    )


# Without a runner -------------------------------------------------------------------------------------------------


def _student(teacher, distill, **options):
    return RegisteredStudent(
        **TINY, teacher=f"scenekd://{teacher}", distill=distill, classes=CLASSES, **options
    )


def test_the_losses_are_those_of_our_own_configuration(teacher, tmp_path):
    """Of the same weights, images and labels, at each step of the schedule."""
    cosine = {**HINTON, "SCHEDULE": "cosine", "WARMUP": 1}
    options = (
        *taught_by(teacher),
        *losses(cosine, MGD),
        "SOLVER.MAX_ITER",
        3,
        "MODEL.FCN_KD.OUTPUT_STRIDE",
        32,
    )
    ours = student(read(write_config(tmp_path), *options))
    net = _student(teacher, [cosine, MGD]).train()
    net.network.eval()
    net.network.load_state_dict(ours.network.state_dict())
    for iteration in range(3):
        ours.distiller.begin_step(iteration)
        net.begin_step(iteration, 3)
        wanted, got = ours(images(), masks()), net(images(), masks())
        assert got.keys() == wanted.keys() == {"loss_hinton", "loss_mgd"}
        assert all(torch.equal(got[name], wanted[name]) for name in got)
        ours.distiller.end_step(iteration)
    assert net.training_only == ("distiller",)


def test_a_teacher_is_loaded_when_training_begins(teacher):
    """Or at once where a loss names its layers; a network that is only asked needs none."""
    late, early = _student(teacher, [HINTON]), _student(teacher, [HINTON, MGD])
    assert late.distiller.teacher is None and early.distiller.teacher is not None
    teacher.unlink()
    again = _student(teacher, [HINTON, MGD])
    for net in (late, again):
        with torch.no_grad():
            assert net.eval().outputs(images())["sem_seg"].shape[:2] == (2, 11)
        with pytest.raises(UserError, match=r"teacher.pth: no such checkpoint"):
            net.begin_training()
        with pytest.raises(UserError, match=r"teacher.pth: no such checkpoint"):
            net.train()(images(), masks())
    with torch.no_grad():
        assert early.train()(images(), masks())["loss_hinton"] > 0


def test_of_a_configuration_with_cached_outputs(tmp_path):
    """A framework's mapper brings no cached logits to a network of ours; nothing to learn from is no distiller."""
    cached = read(write_config(tmp_path), *losses(HINTON, source="cached"))
    with pytest.raises(UserError, match=r"^DISTILL.TEACHER: cached; SceneKDStudent .* set it to online$"):
        RegisteredStudent.from_config(cached)
    net = RegisteredStudent.from_config(read(write_config(tmp_path)))
    net.begin_training()
    net.begin_step(0, 1)
    net.end_step()
    assert net.distiller is None and net.train()(images(), masks()).keys() == {"loss_ce"}


def test_padding_of_a_pipeline_does_not_teach():
    """What SceneKDPackInputs says is shown is what an online teacher sees."""
    shown = torch.zeros(1, 8, 8, dtype=torch.bool)
    shown[:, :5] = True
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 8, 8)), gt_shown=PixelData(data=shown))
    assert torch.equal(to_target(sample).soft_valid, shown[0])
    assert to_target(SegDataSample(gt_sem_seg=sample.gt_sem_seg)).soft_valid is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": ()}, "^SceneKDStudent: teacher and distill belong together"),
        ({"teacher": ""}, "^SceneKDStudent: teacher and distill belong together"),
        ({"classes": CLASSES[:9]}, "^SceneKDStudent: classes has 9 names for num_classes 10"),
        (
            {"classes": (*CLASSES[:9], "dog")},
            r"^TEACHER.SEGMENTATION.CLASS_MAP: 1 classes of the teacher .*\(kite\)",
        ),
        ({"teacher": "nowhere://x"}, "^TEACHER.SEGMENTATION: unknown scheme in 'nowhere://x'"),
        ({"teacher": {"KIND": "x"}}, "^SceneKDStudent: .*TEACHER.SEGMENTATION.KIND"),
        (
            {"distill": [{**HINTON, "TEMPERATURE": 0}]},
            r"^DISTILL.LOSSES: .*TEMPERATURE must be .* above 0, got 0",
        ),
        ({"distill": {**HINTON, "ALPHA": 1.5}}, r"^DISTILL.LOSSES: .*ALPHA must be a number in 0…1, got 1.5"),
        ({"distill": ["hinton"]}, "^DISTILL.LOSSES: distillation loss 0: must be a mapping"),
        (
            {"distill": [{**MGD, "STUDENT": "backbone.layer9"}]},
            "^DISTILL.LOSSES: .*STUDENT: .*'backbone.layer9'",
        ),
        (
            {"distill": [{**MGD, "TEACHER": "backbone.layer3"}]},
            "TEACHER: .* no layer .*network.backbone.layer3",
        ),
    ],
)
def test_what_is_refused(options, message, teacher):
    options = {"teacher": f"scenekd://{teacher}", "distill": [HINTON], "classes": CLASSES, **options}
    with pytest.raises(UserError, match=message) as error:
        RegisteredStudent(**TINY, **options).begin_training()
    assert "\n" not in str(error.value)
