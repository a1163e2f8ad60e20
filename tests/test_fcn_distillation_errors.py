"""What is wrong with a teacher or a list of losses of fcn_kd is told in one line."""

from __future__ import annotations

import pytest
import torch
from fcn_parts import CLASSES, images, losses, masks, read, save_teacher, student, taught_by, write_config

from scenekd.config import get_cfg
from scenekd.data.policy import build_policy
from scenekd.errors import UserError
from scenekd.models import build_model

HINTON = {"TYPE": "hinton", "ALPHA": 0.5, "TEMPERATURE": 2.0}
MGD = {"TYPE": "mgd", "STUDENT": "backbone.layer4", "TEACHER": "network.backbone.layer3"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("fcn"))


@pytest.fixture(scope="module")
def teacher(file):
    """The checkpoint of a teacher."""
    path = file.parent / "teacher.pth"
    save_teacher(file, path)
    return path


_CACHED = ("DISTILL.SEGMENTATION.TARGET", "logits", "DISTILL.SEGMENTATION.POLICY", "teacher")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            losses({**HINTON, "TEMPERATURE": 0}),
            r"DISTILL.LOSSES: .* 0 \(hinton\): TEMPERATURE must be a number",
        ),
        (losses({**HINTON, "ALPHA": 1.5}), r"DISTILL.LOSSES: .*ALPHA must be a number in 0…1, got 1.5"),
        (losses("hinton"), r"DISTILL.LOSSES: distillation loss 0: must be a mapping"),
        (
            losses({**MGD, "STUDENT": "backbone.layer9"}),
            r"STUDENT: TrunkAndHead has no .*backbone.layer9.*closest",
        ),
        (
            losses({**MGD, "TEACHER": "backbone.layer4"}),
            r"TEACHER: SceneKDStudent has no .*network.backbone.layer4",
        ),
        (
            losses(HINTON, source="none"),
            r"DISTILL.LOSSES: they need a teacher; set DISTILL.TEACHER to online or",
        ),
        (losses(), r"DISTILL.LOSSES: empty, so nothing is learned from the online teacher"),
        (losses(source="cached") + _CACHED, r"DISTILL.LOSSES: empty, so nothing is learned from the cached"),
        (
            losses(HINTON, source="cached"),
            r"DISTILL.SEGMENTATION.POLICY: ground_truth; .* set it to combined",
        ),
        (
            losses(HINTON, source="cached") + _CACHED[2:],
            r"SEGMENTATION.TARGET: probabilities; .* set it to logits",
        ),
        (
            (*losses(HINTON, source="cached"), *_CACHED[:3], "combined"),
            r"DISTILL.SEGMENTATION: GT_WEIGHT and TEACHER_WEIGHT must be 1",
        ),
        (
            losses(MGD, source="cached") + _CACHED,
            r"DISTILL.LOSSES: .*TEACHER names a layer.*take a live teacher",
        ),
        (
            (*losses(HINTON), "TEACHER.SEGMENTATION", "folder://x"),
            r"DISTILL.TEACHER: folder holds saved outputs",
        ),
        (
            (*losses(HINTON), "TEACHER.SEGMENTATION", ""),
            r"TEACHER.SEGMENTATION.TYPE: '' is no online teacher; choose",
        ),
        (
            (*losses(HINTON), "TEACHER.SEGMENTATION.SPARSE", True),
            r"TEACHER.SEGMENTATION.SPARSE: .* set it to False",
        ),
        (
            (*losses(HINTON), "TEACHER.SEGMENTATION", "torchvision://no"),
            r"torchvision://no: no segmentation network",
        ),
        (
            (*losses(HINTON), "DATASETS.CLASSES", ("cat", "dog")),
            r"TEACHER.SEGMENTATION.CLASSES: none of the teacher's classes",
        ),
        (
            (*losses(HINTON), "DATASETS.CLASSES", (*CLASSES[:9], "dog")),
            r"TEACHER.SEGMENTATION.CLASS_MAP: 1 classes of the teacher have no counterpart \(kite\)",
        ),
    ],
)
def test_errors_are_one_line(file, teacher, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        student(read(file, *taught_by(teacher), *overrides))
    assert "\n" not in str(error.value)


def test_other_sources_are_refused(file):
    with pytest.raises(UserError, match="DISTILL.TEACHER: 'offline' is none of cached, online, none"):
        build_policy(read(file, "DISTILL.TEACHER", "offline"))
    cfg = get_cfg("kd_mtl")
    cfg.DISTILL.TEACHER = "online"
    with pytest.raises(UserError, match="DISTILL.TEACHER: .* set it to cached"):
        build_model(cfg)
    cfg = get_cfg("fcn_kd")
    cfg.MODEL.FCN_KD.NETWORK, cfg.INPUT.SIZE, cfg.DISTILL.LOSSES = "cifar_cnn5", 32, [HINTON]
    with pytest.raises(UserError, match="DISTILL.TEACHER: teachers of classification are not cached"):
        student(cfg)
    cfg.DISTILL.TEACHER, cfg.TEACHER.CLASSIFICATION.TYPE = "online", "mmseg"
    with pytest.raises(
        UserError, match="TEACHER.CLASSIFICATION.TYPE: mmseg has no classifiers here; take timm, "
    ):
        student(cfg)


def test_a_teacher_whose_logits_are_not_finite(file):
    path = file.parent / "nan.pth"
    broken = save_teacher(file, path)
    with torch.no_grad():
        broken.network.classifier[-1].bias[4] = float("nan")
    state = torch.load(path)
    state["model"] = state["state_dict"] = broken.state_dict()
    torch.save(state, path)
    net = student(read(file, *taught_by(path), *losses(HINTON)))
    with pytest.raises(
        UserError, match="the teacher's logits at iteration 0 are not finite; check its weights"
    ):
        net(images(), masks())


def test_a_network_of_another_task_is_no_teacher(file, teacher):
    cfg = get_cfg("fcn_kd")
    cfg.MODEL.FCN_KD.NETWORK, cfg.INPUT.SIZE, cfg.DATASETS.CLASSES = "cifar_cnn5", 32, CLASSES
    cfg.DISTILL.TEACHER, cfg.DISTILL.LOSSES = "online", [HINTON]
    cfg.TEACHER.CLASSIFICATION.TYPE, cfg.TEACHER.CLASSIFICATION.WEIGHTS = "scenekd", str(teacher)
    with pytest.raises(UserError, match="teacher.pth: does segmentation, not classification"):
        student(cfg)
