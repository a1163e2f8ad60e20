"""The networks of fcn_kd: against torchvision's and MMSegmentation's own with the same weights; foreign files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ENGINES
from fcn_parts import write_config
from torch import nn
from torchvision import models

from fcn_kd.networks import NETWORKS
from fcn_kd.student import SceneKDStudent
from scenekd import checkpoint, optim
from scenekd.config import get_cfg, load_config
from scenekd.engines.session import train_once
from scenekd.errors import UserError
from scenekd.models import build_model, load_initial_weights
from scenekd.recorder import read_metrics
from scenekd.sample import Target

CLASSES = ("cat", "dog", "cow", "horse")
OUTPUTS = len(CLASSES) + 1
SMALL = {
    name: {"TRUNK_WIDTH": 8} if "resnet" in name else {}
    for name in NETWORKS
    if NETWORKS[name].task == "segmentation"
}


def student(network: str, *, weights: str = "", seed: int = 0, **options) -> SceneKDStudent:
    cfg = config(network, **options)
    cfg.SEED, cfg.MODEL.WEIGHTS = seed, weights
    return build_model(cfg)


def config(network: str, **options):
    cfg = get_cfg("fcn_kd")
    cfg.DATASETS.CLASSES = CLASSES
    cfg.MODEL.FCN_KD.NETWORK = network
    cfg.MODEL.FCN_KD.update({"HEAD_CHANNELS": 16} | options)
    return cfg


def target(size: tuple[int, int], seed: int = 0) -> Target:
    labels = torch.randint(OUTPUTS, size, generator=torch.Generator().manual_seed(seed))
    none = torch.zeros(0)
    return Target("x", torch.zeros(0, 4), none.long(), none, none.bool(), none.bool(), sem_seg=labels)


def shaken(net: nn.Module, seed: int = 1) -> nn.Module:
    """Its norms no longer as they begin, so that each of their values counts."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                nn.init.uniform_(value, low, low + 1)
    return net.eval()


# Against torchvision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("fcn_resnet50", {"OUTPUT_STRIDE": 8, "HEAD_CHANNELS": 512}),
        ("deeplabv3_resnet50", {"OUTPUT_STRIDE": 8}),
        ("deeplabv3_mobilenet_v3_large", {"OUTPUT_STRIDE": 16}),
        ("lraspp_mobilenet_v3_large", {"OUTPUT_STRIDE": 16}),
    ],
)
@torch.no_grad()
def test_torchvision_s_weights_load_and_say_the_same(network, options, tmp_path):
    """Under the same names, its auxiliary head aside; our logits, enlarged once, are its output."""
    more = {} if network.startswith("lraspp") else {"aux_loss": True}
    theirs = models.get_model(network, weights=None, weights_backbone=None, num_classes=OUTPUTS, **more)
    shaken(theirs)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    net = student(network, **options).eval()
    report = checkpoint.load_weights(net, tmp_path / "theirs.pth", strict=True)
    assert report.matched == len(net.state_dict())
    images = torch.rand(1, 3, 65, 97) * 255
    ours = net(images)[0].resize(65, 97).sem_seg
    # ImageNet's statistics, times 255
    assert net.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert net.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    # in the layout that ours computes in, whose rounding differs
    normalised = ((images - net.pixel_mean) / net.pixel_std).contiguous(memory_format=torch.channels_last)
    expected = theirs(normalised)["out"][0]
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["fcn_resnet18", "fcn_mobilenet_v3_large"])
def test_a_trunk_of_imagenet_loads_alone(network, tmp_path):
    """A whole classifier of torchvision's as MODEL.WEIGHTS: the trunk takes what is its own, the head stays."""
    classifier = shaken(models.get_model(NETWORKS[network].zoo, weights=None, num_classes=7))
    torch.save(classifier.state_dict(), tmp_path / "trunk.pth")
    net = student(network)
    head = {name: value.clone() for name, value in net.network.classifier.state_dict().items()}
    load_initial_weights(net, str(tmp_path / "trunk.pth"))
    theirs = {name.removeprefix("features."): value for name, value in classifier.state_dict().items()}
    own = net.network.backbone.state_dict()
    assert own.keys() <= theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items() if "num_batches" not in name)
    assert all(torch.equal(value, net.network.classifier.state_dict()[name]) for name, value in head.items())


CONFIGS = sorted((Path(__file__).parents[1] / "projects/fcn_kd").glob("*_voc.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_configs_build_their_students(file):
    """21 outputs for VOC, on half of INPUT.SIZE for ESPNetv2 and on the head's stride for the others."""
    cfg = load_config(file, ["MODEL.WEIGHTS", ""])
    net = build_model(cfg).eval()
    with torch.no_grad():
        said = net(torch.zeros(1, 3, 64, 64))[0].sem_seg
    cells = {"espnetv2_voc": 32, "lraspp_mobilenet_voc": 8}.get(file.stem, 2)
    assert said.shape == (21, cells, cells)


# Files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["network.", "", "module.", "module.network."])
@pytest.mark.parametrize("strict", [True, False])
def test_our_checkpoints_and_plain_state_dicts_load(prefix, strict, tmp_path):
    """Of the student, of its bare network, and of either as DataParallel saved it."""
    net, other = student("espnetv2_0.5", seed=1), student("espnetv2_0.5", seed=2)
    state = {prefix + name: value for name, value in net.network.state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    checkpoint.load_weights(other, path, strict=True) if strict else load_initial_weights(other, str(path))
    assert all(torch.equal(v, other.state_dict()[name]) for name, v in net.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(student("espnetv2_0.5").network.state_dict(), path)
    with pytest.raises(UserError, match="weights.pth fits no layer of ResNetTrunk"):
        load_initial_weights(student("fcn_resnet18", TRUNK_WIDTH=8), str(path))
    with pytest.raises(UserError, match=f"0 of {len(student('fcn_resnet18').state_dict())} tensors fit"):
        checkpoint.load_weights(student("fcn_resnet18", TRUNK_WIDTH=8), path)


# Every network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", SMALL)
def test_each_parameter_learns_and_the_head_faster(network):
    """What takes gradients gets one, or DistributedDataParallel would wait for it; what is not the trunk's has ten
    times the rate; outputs stand for background and the classes."""
    net = student(network, **SMALL[network]).train()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    losses = net(images, [target((64, 64), 1), target((64, 64), 2)])
    losses["loss_ce"].backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    cfg = config(network)
    cfg.SOLVER.BASE_LR = 0.5
    rates = {id(p): group["lr"] for group in optim.parameter_groups(net, cfg) for p in group["params"]}
    trunk = f"network.{NETWORKS[network].trunk}."
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (0.5 if name.startswith(trunk) else 5.0), name
    assert net.eval()(images)[0].sem_seg.shape[0] == OUTPUTS


@pytest.mark.parametrize(
    ("network", "stride", "cells"),
    [
        ("fcn_resnet18", 32, (3, 4)),  # ⌈96 / 32⌉, ⌈128 / 32⌉
        ("fcn_resnet34", 16, (6, 8)),
        ("fcn_resnet50", 8, (12, 16)),
        ("fcn_mobilenet_v3_large", 32, (3, 4)),
        ("fcn_mobilenet_v3_large", 16, (6, 8)),
        ("lraspp_mobilenet_v3_large", 16, (12, 16)),  # its head ends on the finer of its two maps, stride 8
    ],
)
@torch.no_grad()
def test_output_strides(network, stride, cells):
    net = student(network, OUTPUT_STRIDE=stride, **SMALL[network]).eval()
    assert net(torch.rand(1, 3, 96, 128) * 255)[0].sem_seg.shape == (OUTPUTS, *cells)


@pytest.mark.parametrize("norm", ["SyncBN", "FrozenBN", "GN"])
@pytest.mark.parametrize("network", ["fcn_resnet18", "lraspp_mobilenet_v3_large", "espnetv2_0.5"])
def test_norms_reach_trunk_and_head(network, norm):
    """Frozen statistics are the trunk's alone: a fresh head has none worth keeping."""
    net = student(network, NORM=norm, **SMALL[network])
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == (norm == "FrozenBN")
    trunk = net.network.get_submodule(NETWORKS[network].trunk)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in trunk.modules())
    net.train()(torch.rand(2, 3, 64, 64) * 255, [target((64, 64))] * 2)["loss_ce"].backward()


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (
            "fcn_resnet19",
            {},
            r"MODEL.FCN_KD.NETWORK: 'fcn_resnet19'; choose one of .*fcn_resnet18.*mmseg://FILE.py",
        ),
        ("fcn_resnet18", {"OUTPUT_STRIDE": 4}, "MODEL.FCN_KD.OUTPUT_STRIDE: 4; resnet18 has 32, 16, 8"),
        ("fcn_mobilenet_v3_large", {"OUTPUT_STRIDE": 8}, "OUTPUT_STRIDE: 8; mobilenet_v3_large has 32, 16"),
        ("fcn_mobilenet_v3_large", {"TRUNK_WIDTH": 32}, "TRUNK_WIDTH: 32; fcn_mobilenet_v3_large is built"),
        (
            "espnetv2_2.0",
            {"OUTPUT_STRIDE": 8},
            "OUTPUT_STRIDE: 8; ESPNetv2 is built as it is, leave it at 32",
        ),
        ("fcn_resnet18", {"NORM": "LN"}, "MODEL.FCN_KD.NORM: unknown norm 'LN'"),
        ("fcn_resnet18", {"DROPOUT": 1.0}, "MODEL.FCN_KD.DROPOUT: 1.0"),
        ("fcn_resnet18", {"HEAD_CHANNELS": 0}, "MODEL.FCN_KD.HEAD_CHANNELS: 0"),
        ("fcn_resnet18", {"HEAD_LR_FACTOR": 0.0}, "MODEL.FCN_KD.HEAD_LR_FACTOR: 0.0"),
        ("fcn_resnet18", {"LOSS_SIZE": "half"}, "MODEL.FCN_KD: LOSS_SIZE must be one of image, logits"),
        ("mmseg://no/such.py", {}, "MODEL.FCN_KD.NETWORK: no MMSegmentation config 'no/such.py'"),
    ],
)
def test_wrong_settings_name_their_key(network, options, message):
    with pytest.raises(UserError, match=message) as error:
        student(network, **options)
    assert "\n" not in str(error.value)


def test_torchvision_has_no_weights_of_espnet():
    with pytest.raises(UserError, match="MODEL.WEIGHTS: torchvision has none for espnetv2_2.0"):
        student("espnetv2_2.0", weights="torchvision")


def test_one_image_cannot_be_normalised_over_one_cell():
    net = student("deeplabv3_resnet18", TRUNK_WIDTH=8).train()
    with pytest.raises(UserError, match=r"SOLVER.IMS_PER_BATCH.*NORM GN"):
        net(torch.rand(1, 3, 64, 64) * 255, [target((64, 64))])
    net = student("deeplabv3_resnet18", TRUNK_WIDTH=8, NORM="GN").train()
    assert net(torch.rand(1, 3, 64, 64) * 255, [target((64, 64))])["loss_ce"].isfinite()


# MMSegmentation ------------------------------------------------------------------------------------------------

_MMSEG = """
data_preprocessor = dict(
    type="SegDataPreProcessor", mean=[120.0, 110.0, 100.0], std=[60.0, 55.0, 50.0], bgr_to_rgb={rgb}, size=(64, 96)
)
model = dict(
    type="{kind}",
    data_preprocessor=data_preprocessor,
    backbone=dict(type="ResNetV1c", depth=18, base_channels=8, norm_cfg=dict(type="SyncBN", requires_grad=True)),
    neck=dict(type="FPN", in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4),
    decode_head={head},
    auxiliary_head=dict(type="FCNHead", in_channels=8, in_index=2, channels=8, num_classes={classes}),
    test_cfg=dict(mode="whole"),
    {more}
)
test_dataloader = dict(dataset=dict(metainfo=dict(classes=("background", "cat", "dog", "cow", "horse"))))
"""
_FCN_HEAD = """dict(type="FCNHead", in_channels=8, in_index=1, channels=8, num_classes={classes}, loss_decode=dict(
    type="CrossEntropyLoss", class_weight=[1.0] * {classes}))"""
_OCR_HEAD = (
    """dict(type="OCRHead", in_channels=8, in_index=1, channels=8, ocr_channels=8, num_classes={classes})"""
)


def _mmseg_file(tmp_path, *, rgb=True, classes=OUTPUTS, cascade=False, kind="EncoderDecoder"):
    head = f"[{_FCN_HEAD}, {_OCR_HEAD}]" if cascade else _FCN_HEAD
    kind = "CascadeEncoderDecoder" if cascade else kind
    text = _MMSEG.replace("{head}", head).replace("{more}", "num_stages=2," if cascade else "")
    path = tmp_path / f"config_{classes}.py"
    path.write_text(
        text.replace("{classes}", str(classes)).replace("{rgb}", str(rgb)).replace("{kind}", kind)
    )
    return path


@pytest.mark.parametrize(("rgb", "cascade"), [(True, False), (False, False), (True, True)])
@torch.no_grad()
def test_any_encoder_decoder_says_what_mmsegmentation_says(rgb, cascade, tmp_path):
    """A config made for 19 classes, with ours; its own mean and deviation, for RGB or BGR images; logits on the head's
    grid, which MMSegmentation enlarges just as we do."""
    from scenekd.engines.mmengine_live import LiveMMSegmentation
    from scenekd.teachers.live import asked

    file = _mmseg_file(tmp_path, rgb=rgb, classes=19, cascade=cascade)
    net = shaken(student(f"mmseg://{file}"))
    saved = tmp_path / "weights.pth"
    torch.save(net.network.state_dict(), saved)
    own = _mmseg_file(tmp_path, rgb=rgb, cascade=cascade)
    own.write_text(own.read_text() + "model.pop('auxiliary_head')\n")
    theirs = LiveMMSegmentation(str(own), str(saved))
    images = torch.rand(2, 3, 64, 96) * 255
    with asked(theirs, torch.device("cpu")):
        expected = theirs.logits(images)
    predictions = net(images)
    assert predictions[0].sem_seg.shape == (OUTPUTS, 8, 12)
    assert expected.std() > 1e-3
    for prediction, one in zip(predictions, expected):
        torch.testing.assert_close(prediction.resize(64, 96).sem_seg, one, rtol=1e-4, atol=1e-4)


def test_an_encoder_decoder_trains_on_the_cpu_and_its_checkpoint_loads(tmp_path):
    """SyncBN of its config falls back to the batch; a checkpoint of MMSegmentation's with an auxiliary head fits."""
    file = _mmseg_file(tmp_path)
    net, other = student(f"mmseg://{file}", seed=1), student(f"mmseg://{file}", seed=2)
    assert not torch.equal(net.network.decode_head.conv_seg.weight, other.network.decode_head.conv_seg.weight)
    net.train()(torch.rand(2, 3, 64, 96) * 255, [target((64, 96))] * 2)["loss_ce"].backward()
    assert net.network.backbone.stem[0].weight.grad.abs().sum() > 0
    state = net.network.state_dict() | {"auxiliary_head.conv_seg.weight": torch.zeros(5, 8, 1, 1)}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "theirs.pth")
    checkpoint.load_weights(other, tmp_path / "theirs.pth", strict=True)
    assert all(torch.equal(v, other.state_dict()[name]) for name, v in net.state_dict().items())


def test_a_segmentor_that_decodes_in_its_own_way_is_refused(tmp_path):
    from mmseg.models import EncoderDecoder
    from mmseg.registry import MODELS

    class Averages(EncoderDecoder):
        def encode_decode(self, inputs, batch_img_metas):
            return super().encode_decode(inputs, batch_img_metas).mean(dim=(2, 3), keepdim=True)

    MODELS.register_module(name="TestAverages", module=Averages, force=True)
    file = _mmseg_file(tmp_path, kind="TestAverages")
    with pytest.raises(
        UserError, match=r"MODEL.FCN_KD.NETWORK: .* is a Averages .*take a plain EncoderDecoder"
    ):
        student(f"mmseg://{file}")


# Loss ----------------------------------------------------------------------------------------------------------


class _Constant(nn.Module):
    """Logits that do not depend on the image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.said = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.said.expand(len(images), *self.said.shape[1:])


@pytest.mark.parametrize("loss_size", ["image", "logits"])
def test_cross_entropy_by_hand(loss_size):
    """Two classes, logits (ln 3, 0) everywhere: −ln 3/4 where the label is 0, −ln 1/4 where it is 1, void not counted;
    so over one pixel of each (ln 4 − ln 3 + ln 4) / 2."""
    logits = torch.tensor([3.0, 1.0]).log().view(1, 2, 1, 1).expand(1, 2, 2, 2).clone()
    net = SceneKDStudent(_Constant(logits), NETWORKS["fcn_resnet18"], loss_size=loss_size).train()
    labels = torch.tensor([[0, 1], [255, 255]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    one = target((8, 8))
    one.sem_seg = labels
    loss = net(torch.zeros(1, 3, 8, 8), [one])["loss_ce"]
    expected = (2 * torch.log(torch.tensor(4.0)) - torch.log(torch.tensor(3.0))) / 2
    torch.testing.assert_close(loss, expected)
    one.sem_seg = torch.full((8, 8), 255)
    loss = net(torch.zeros(1, 3, 8, 8), [one])["loss_ce"]
    loss.backward()
    assert loss == 0
    assert torch.equal(net.network.said.grad, torch.zeros_like(net.network.said))


def test_predictions_are_on_the_network_s_grid():
    """The one interpolation is Prediction.resize."""
    net = student("fcn_resnet18", TRUNK_WIDTH=8).eval()
    images = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        one = net(images)[0]
        expected = F.interpolate(net.logits(images), (50, 70), mode="bilinear", align_corners=False)
    assert one.size == (64, 96)
    torch.testing.assert_close(one.resize(50, 70).sem_seg, expected[0])


# Training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(scenes, tmp_path):
    """``tiny(folder)``: the plain baseline, in small."""
    file = write_config(tmp_path, scenes)
    return lambda folder: load_config(file, ["OUTPUT_DIR", str(tmp_path / folder)])


def _losses(cfg):
    lines = read_metrics(f"{cfg.OUTPUT_DIR}/metrics.json")
    return [line["loss_ce"] for line in lines if "loss_ce" in line]


def _saved(cfg):
    return checkpoint.read(f"{cfg.OUTPUT_DIR}/{checkpoint.MODEL_FINAL}")["model"]


def test_engines_train_the_same_student(tiny):
    """Dropout draws from the step's own numbers, whatever the data loader has drawn before; scores and a report."""
    configs = {engine: tiny(engine) for engine in ENGINES}
    results = {engine: train_once(0, 0, 1, cfg, engine) for engine, cfg in configs.items()}
    first = _losses(configs[ENGINES[0]])
    assert len(first) == 6
    for engine, cfg in configs.items():
        assert _losses(cfg) == pytest.approx(first, abs=1e-5)
        assert results[engine]["sem_seg"]["mIoU"] == pytest.approx(
            results[ENGINES[0]]["sem_seg"]["mIoU"], abs=1e-4
        )
        assert "bbox" not in results[engine]
        assert "mIoU" in Path(cfg.OUTPUT_DIR, "report.html").read_text()
        for name, value in _saved(cfg).items():
            torch.testing.assert_close(value, _saved(configs[ENGINES[0]])[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_student_with_dropout_resumes_bit_for_bit(engine, tiny, train_until):
    whole, cut = tiny("whole"), tiny("cut")
    train_once(0, 0, 1, whole, engine)
    train_until(cut, engine, 4)
    train_once(0, 0, 1, cut, engine, True)
    assert _losses(whole) == _losses(cut)
    assert all(torch.equal(value, _saved(cut)[name]) for name, value in _saved(whole).items())
