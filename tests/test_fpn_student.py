"""The second student: any trunk, a feature pyramid, BlitzNet's heads, losses and policies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from conftest import ENGINES
from test_blitznet import make_targets
from test_three_tasks import TASKS, with_masks

import kd_mtl
from kd_mtl.blitznet import BlitzNet
from kd_mtl.feature_trunks import TimmTrunk, map_sizes
from kd_mtl.fpn_student import SceneKDFPN
from scenekd import checkpoint
from scenekd.config import load_config
from scenekd.engines.session import train_once
from scenekd.errors import UserError
from scenekd.models import build_model, load_initial_weights
from scenekd.sample import Prediction

SMALL = {
    "image_size": 64,
    "num_classes": 3,
    "trunk": "resnet18",
    "trunk_width": 8,
    "channels": 16,
    "seg_channels": 8,
}
STUDENT = (
    *("MODEL.STUDENT", "SceneKDFPN", "MODEL.SCENEKD_FPN.CHANNELS", 16),
    *("MODEL.SCENEKD_FPN.TRUNK", "resnet18", "MODEL.SCENEKD_FPN.TRUNK_WIDTH", 8),
)
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@pytest.mark.parametrize(
    ("size", "x4", "maps"),
    [(64, False, [8, 4, 2, 1]), (64, True, [16, 8, 4, 2, 1]), (300, False, [38, 19, 10, 5, 3, 2, 1])],
)
def test_levels_halve_down_to_one_cell(size, x4, maps):
    net = SceneKDFPN(**{**SMALL, "image_size": size}, x4=x4).eval()
    assert [rows for rows, _ in net.anchor_grid.maps] == maps
    assert net.segmentation_size == (maps[0], maps[0])
    with torch.no_grad():
        levels = net.maps(torch.zeros(1, 3, size, size))
        outputs = net.outputs(torch.zeros(1, 3, size, size))
    assert [level.shape[1:] for level in levels] == [(16, side, side) for side in maps]
    assert outputs["class_logits"].shape == (1, 6 * sum(side * side for side in maps), 4)


def test_anchors_follow_blitznets_rules():
    """Where the maps are the same, so are the anchors."""
    student, blitz = (
        SceneKDFPN(**SMALL),
        BlitzNet(image_size=64, num_classes=3, trunk="resnet18", trunk_width=8),
    )
    assert student.anchor_grid == blitz.anchor_grid
    assert torch.equal(student.anchors, blitz.anchors)


def test_losses_and_predictions_of_three_tasks():
    net = SceneKDFPN(**SMALL, tasks=TASKS, prototypes=4)
    losses = net(torch.rand(2, 3, 64, 64) * 255, with_masks(2))
    assert set(losses) == {"loss_seg", "loss_cls", "loss_box", "loss_mask"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    prediction = net.eval()(torch.rand(1, 3, 64, 64) * 255)[0]
    assert isinstance(prediction, Prediction)
    assert prediction.mask_logits.shape == (len(prediction.boxes), 8, 8) and prediction.sem_seg.shape == (
        4,
        8,
        8,
    )


def test_it_learns_one_batch():
    torch.manual_seed(0)
    net, images, targets = SceneKDFPN(**SMALL), torch.rand(2, 3, 64, 64) * 255, make_targets(2)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    totals = []
    for _ in range(30):
        total = sum(net(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0] / 4


@pytest.mark.parametrize("engine", ENGINES)
def test_trains_under_both_engines(engine, tiny_config):
    """By its name in the configuration, with the same batches and losses whichever engine drives."""
    cfg = tiny_config("run", *STUDENT, "SOLVER.MAX_ITER", 3)
    assert {"sem_seg", "bbox"} == set(train_once(0, 0, 1, cfg, engine))
    net = build_model(cfg)
    assert isinstance(net, SceneKDFPN)
    checkpoint.load_weights(net, f"{cfg.OUTPUT_DIR}/{checkpoint.MODEL_FINAL}", strict=True)


def test_trunk_weights_load(tiny_config, tmp_path):
    first = build_model(tiny_config("a", *STUDENT))
    torch.save(first.trunk.state_dict(), tmp_path / "trunk.pth")
    other = build_model(tiny_config("b", *STUDENT, "SEED", 1))
    load_initial_weights(other, str(tmp_path / "trunk.pth"))
    assert torch.equal(other.trunk.conv1.weight, first.trunk.conv1.weight)
    assert not torch.equal(other.fpn.layer_blocks[0][0].weight, first.fpn.layer_blocks[0][0].weight)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("MODEL.STUDENT", "YOLO"), "MODEL.STUDENT: 'YOLO'; choose one of BlitzNet, SceneKDFPN"),
        (("MODEL.SCENEKD_FPN.TRUNK", "vgg11"), "choose timm:<name>, or one of resnet18"),
        (("INPUT.SIZE", 32), "INPUT.SIZE: must be at least 64"),
        (
            ("MODEL.SCENEKD_FPN.TRUNK", "timm:resnet18", "MODEL.WEIGHTS", "torchvision"),
            "no weights of a timm trunk",
        ),
    ],
)
def test_configurations_that_cannot_be(tiny_config, pairs, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(tiny_config("x", *STUDENT, *pairs))
    assert "\n" not in str(error.value)


def test_timm_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs timm; pip install timm, or take resnet18"):
        SceneKDFPN(**{**SMALL, "trunk": "timm:resnet18"})


@needs_timm
@pytest.mark.parametrize(
    "name", ["convnext_atto", "resnet18", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]
)
def test_timms_features_are_maps_at_four_strides(name):
    """Channels first and at strides 4 to 32, also where the model has more maps or puts the channels last."""
    trunk = TimmTrunk(name, 64).eval()
    assert map_sizes(trunk, 64) == [16, 8, 4, 2]
    with torch.no_grad():
        maps = trunk(torch.rand(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == trunk.channels


@needs_timm
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18x", "timm has no model 'resnet18x'"),
        ("vit_tiny_patch16_224", "maps at strides .*; take a model"),
    ],
)
def test_timm_models_that_do_not_fit(name, message):
    with pytest.raises(UserError, match=message):
        TimmTrunk(name, 64)


@needs_timm
def test_timm_weights_of_a_file(tmp_path):
    import timm

    torch.manual_seed(5)
    whole = timm.create_model("convnext_atto")
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    trunk = TimmTrunk("convnext_atto", 64, str(tmp_path / "weights.pth"))
    assert torch.equal(trunk.net.stem_0.weight, whole.stem[0].weight)
    net = SceneKDFPN(**{**SMALL, "trunk": "timm:convnext_atto"})
    load_initial_weights(net, str(tmp_path / "weights.pth"))
    assert torch.equal(net.trunk.net.stem_0.weight, whole.stem[0].weight)
    with pytest.raises(UserError, match="no such file; give timm, or a weight file"):
        TimmTrunk("convnext_atto", 64, "missing.pth")


@needs_timm
def test_a_timm_trunk_trains(tiny_config):
    cfg = tiny_config("run", *STUDENT, "MODEL.SCENEKD_FPN.TRUNK", "timm:convnext_atto", "SOLVER.MAX_ITER", 2)
    assert {"sem_seg", "bbox"} == set(train_once(0, 0, 1, cfg, "mmengine"))


def test_the_shipped_configuration():
    """fpn_kd.yaml is blitznet_kd.yaml with another network and optimizer; teachers and policies are the same."""
    folder = Path(kd_mtl.__file__).parent
    ours, theirs = load_config(folder / "fpn_kd.yaml"), load_config(folder / "blitznet_kd.yaml")
    assert ours.MODEL.STUDENT == "SceneKDFPN"
    for key in ("DATASETS", "INPUT", "TEACHER", "DISTILL", "TEST"):
        assert ours[key] == theirs[key]
    assert ours.MODEL.BLITZNET == theirs.MODEL.BLITZNET
    assert ours.SOLVER.MAX_ITER == theirs.SOLVER.MAX_ITER
