"""BlitzNet: gradients in every mode; what goes in, what comes out, and what the configuration decides."""

import pytest
import torch
from torch import nn

from kd_mtl.blitznet import BlitzNet
from scenekd.config import get_cfg
from scenekd.errors import UserError
from scenekd.models import load_initial_weights
from scenekd.sample import Prediction, Target

SMALL = {
    "image_size": 64,
    "num_classes": 3,
    "trunk": "resnet18",
    "trunk_width": 8,
    "block_channels": (8, 32),
    "stream_channels": 16,
    "neck_channels": 8,
    "seg_channels": 8,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def test_pool6_is_the_mean_of_the_first_shortcut():
    torch.manual_seed(0)
    net = BlitzNet(**SMALL).eval()
    seen = []
    net.streams.skips[0].shortcut.register_forward_hook(lambda module, args, output: seen.append(output))
    maps = net.streams(net.trunk(torch.rand(2, 3, 64, 64)))
    torch.testing.assert_close(maps[-1][:, :, 0, 0], seen[0].mean(dim=(2, 3)))
    assert (seen[0] < 0).any()  # no activation before


def make_targets(count: int, size: int = 64) -> list[Target]:
    sem_seg = torch.zeros(size, size, dtype=torch.int64)
    sem_seg[8:40, 8:40] = 2
    return [
        Target(
            image_id=str(i),
            boxes=torch.tensor([[8.0, 8, 40, 40], [30, 20, 60, 62]]),
            labels=torch.tensor([1, 2]),
            confidences=torch.ones(2),
            from_teacher=torch.zeros(2, dtype=torch.bool),
            difficult=torch.zeros(2, dtype=torch.bool),
            sem_seg=sem_seg,
            has_boxes=True,
            has_sem_seg=True,
        )
        for i in range(count)
    ]


MODES = [
    {},
    {"x4": True},
    {"shared_head": True},
    {"tasks": ("detection",)},
    {"tasks": ("segmentation",)},
    {"trunk": "resnet50", "trunk_width": 8},
    {"norm": "FrozenBN"},
    {"norm": "SyncBN", "resize": "nearest"},
    {"trunk": "densenet121", "trunk_width": 64},
    {"trunk": "vgg16", "trunk_width": 64},
]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_every_parameter_learns(options):
    torch.manual_seed(0)
    net = BlitzNet(**{**SMALL, **options}).train()
    losses = net(torch.rand(2, 3, 64, 64) * 255, make_targets(2))
    tasks = options.get("tasks", ("detection", "segmentation"))
    names = {"detection": {"loss_cls", "loss_box"}, "segmentation": {"loss_seg"}}
    assert {key for key in losses if key.startswith("loss_")} == set().union(*(names[task] for task in tasks))
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses[key] for key in losses if key.startswith("loss_")).backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert not without
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_single_task_builds_half():
    both = BlitzNet(**SMALL)
    detection, segmentation = (
        BlitzNet(**SMALL, tasks=["detection"]),
        BlitzNet(**SMALL, tasks=["segmentation"]),
    )
    assert count(detection) == count(both) - count(both.segmentation)
    assert count(segmentation) == count(both) - count(both.detection)
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        (boxes_only,), (masks_only,) = detection.eval()(images), segmentation.eval()(images)
    assert boxes_only.sem_seg is None
    assert boxes_only.scores is not None
    assert masks_only.boxes is None
    assert masks_only.sem_seg.shape == (4, 8, 8)


@torch.no_grad()
def test_evaluation():
    torch.manual_seed(0)
    net = BlitzNet(**SMALL, postprocess={"topk": 7}).eval()
    images = torch.rand(3, 3, 64, 64) * 255
    outputs, predictions = net.outputs(images), net(images)
    assert len(predictions) == 3
    for i, prediction in enumerate(predictions):
        assert isinstance(prediction, Prediction)
        assert prediction.size == (64, 64)
        assert torch.equal(prediction.sem_seg, outputs["sem_seg"][i])
        assert len(prediction.boxes) == len(prediction.labels) == len(prediction.scores) <= 7
        assert (prediction.boxes >= 0).all()
        assert (prediction.boxes <= 64).all()
        assert (prediction.scores.diff() <= 0).all()
        assert set(prediction.labels.tolist()) <= {0, 1, 2}
        # an image's prediction does not depend on its neighbours
        alone = net(images[i : i + 1])[0]
        torch.testing.assert_close(alone.sem_seg, prediction.sem_seg, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.scores, prediction.scores, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_normalisation():
    net = BlitzNet(**SMALL).eval()
    seen = []
    net.trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    # RGB in 0…255; 255 · (.485, .456, .406) is torchvision's mean, 255 · .229 red's deviation
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1).expand(1, 3, 64, 64).clone()
    net.outputs(mean)
    assert seen[0].abs().max() < 1e-5
    mean[:, 0] += 58.395
    net.outputs(mean)
    assert seen[1].mean(dim=(0, 2, 3)).tolist() == pytest.approx([1, 0, 0], abs=1e-5)


def test_buffers_that_follow_from_the_configuration_are_not_saved():
    net = BlitzNet(**SMALL)
    assert not {"anchors", "pixel_mean", "pixel_std"} & net.state_dict().keys()
    assert all(not key.startswith(("criterion", "postprocess")) for key in net.state_dict())
    assert net.double().anchors.dtype == torch.float64  # moved with the module
    torch.testing.assert_close(net.float().anchors, net.anchor_grid.anchors())


def test_heads_start_without_bias():
    net = BlitzNet(**SMALL)
    heads = [net.detection, net.segmentation]
    biases = [p for head in heads for name, p in head.named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 * 4 + 4 + 1  # 64 px: four maps (8, 4, 2, 1)
    assert all((bias == 0).all() for bias in biases)


def test_misuse():
    net = BlitzNet(**SMALL)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 64\)"):
        net(torch.rand(2, 3, 64, 96))
    with pytest.raises(ValueError, match="needs targets"):
        net(torch.rand(2, 3, 64, 64))
    with pytest.raises(ValueError, match="tasks must be"):
        BlitzNet(**SMALL, tasks=("depth",))
    # 64 px: the deepest map has one cell, and one image has no batch statistics there
    with pytest.raises(UserError, match="IMS_PER_BATCH.*two images"):
        net(torch.rand(1, 3, 64, 64), make_targets(1))


def small_config(*overrides):
    cfg = get_cfg("kd_mtl")
    node = ["INPUT.SIZE", 64, "DATASETS.CLASSES", "('a', 'b', 'c')", "MODEL.BLITZNET.PRETRAINED", ""]
    for key, value in SMALL.items():
        if key not in ("image_size", "num_classes"):
            node += [f"MODEL.BLITZNET.{key.upper()}", value]
    cfg.merge_from_list([*node, *overrides])
    return cfg


def test_from_config_equals_the_constructor():
    torch.manual_seed(3)
    expected = BlitzNet(**SMALL)
    torch.manual_seed(3)
    net = BlitzNet.from_config(small_config())
    theirs = expected.state_dict()
    assert net.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in net.state_dict().items())
    assert net.postprocess == expected.postprocess


def test_default_configuration_is_the_papers():
    net = BlitzNet.from_config(get_cfg("kd_mtl"), pretrained=False)
    assert net.num_classes == 20
    assert net.anchor_grid.num_anchors == 11_640
    assert net.segmentation_size == (38, 38)
    assert (net.postprocess.topk_pre_nms, net.postprocess.topk_per_class, net.postprocess.topk) == (
        400,
        50,
        200,
    )


@pytest.mark.parametrize(
    ("key", "value", "check"),
    [
        ("X4", True, lambda net: net.segmentation_size == (16, 16)),
        ("TASKS", "('segmentation',)", lambda net: net.tasks == ("segmentation",)),
        ("SHARED_HEAD", True, lambda net: len(net.detection.classes) == 1),
        ("RESIZE", "nearest", lambda net: net.streams.skips[0].resize.startswith("nearest")),
        ("NORM", "FrozenBN", lambda net: type(net.trunk.bn1).__name__ == "FrozenBatchNorm2d"),
        ("SCORE_THRESHOLD", 0.2, lambda net: net.postprocess.score_threshold == 0.2),
        ("TOPK_PRE_NMS", 9, lambda net: net.postprocess.topk_pre_nms == 9),
        ("NMS_THRESHOLD", 0.3, lambda net: net.postprocess.nms_threshold == 0.3),
        ("TOPK_PER_CLASS", 8, lambda net: net.postprocess.topk_per_class == 8),
        ("TOPK", 5, lambda net: net.postprocess.topk == 5),
    ],
)
def test_every_key_is_read(key, value, check):
    assert not check(BlitzNet.from_config(small_config()))
    assert check(BlitzNet.from_config(small_config(f"MODEL.BLITZNET.{key}", value)))


def test_pretrained_is_left_out_for_a_checkpoint():
    lost = ["MODEL.BLITZNET.PRETRAINED", "/no/such/file.pth"]
    with pytest.raises(UserError, match="no such file"):
        BlitzNet.from_config(small_config(*lost))
    BlitzNet.from_config(small_config(*lost), pretrained=False)


def test_initial_weights_are_a_checkpoint_or_the_trunk_s(tmp_path):
    """MODEL.WEIGHTS as a file: keys of the network make it a checkpoint, others go to the trunk."""
    net, donor = (BlitzNet.from_config(small_config()) for _ in range(2))
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(1.0)
    torch.save({"model": donor.state_dict()}, tmp_path / "whole.pth")
    torch.save(donor.trunk.state_dict(), tmp_path / "trunk.pth")
    head = next(name for name in net.state_dict() if not name.startswith("trunk."))
    before = net.state_dict()[head].clone()
    load_initial_weights(net, str(tmp_path / "trunk.pth"))
    assert torch.equal(net.state_dict()[head], before)
    assert torch.equal(net.trunk.conv1.weight, donor.trunk.conv1.weight)
    load_initial_weights(net, str(tmp_path / "whole.pth"))
    assert all(torch.equal(value, donor.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.BLITZNET.TASKS", "('depth',)"], "MODEL.BLITZNET.TASKS"),
        (["MODEL.BLITZNET.TASKS", "()"], "MODEL.BLITZNET.TASKS"),
        (["MODEL.BLITZNET.RESIZE", "cubic"], "MODEL.BLITZNET.RESIZE"),
        (["MODEL.BLITZNET.BLOCK_CHANNELS", "(64,)"], "MODEL.BLITZNET.BLOCK_CHANNELS"),
        (["INPUT.SIZE", 32], "INPUT.SIZE: image size must be at least 64"),
    ],
)
def test_bad_values(overrides, message):
    with pytest.raises(UserError, match=message):
        BlitzNet.from_config(small_config(*overrides))
