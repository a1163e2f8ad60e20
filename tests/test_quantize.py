"""int8 networks: how close they are, what stays float, files that load without unpickling, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq

from scenekd.calibration_images import calibration_batches
from scenekd.config import load_config
from scenekd.errors import UserError
from scenekd.export_int8 import export_int8
from scenekd.models import build_model
from scenekd.quantize import BACKENDS, Int8Options, Quantized, choose_backend, quantize, using
from scenekd.quantize_trace import FloatPReLU, trace

CONFIGS = Path(__file__).parents[1] / "projects" / "fcn_kd"
SMALL = ("INPUT.SIZE", "64", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu")
FCN = (*SMALL, "MODEL.FCN_KD.NETWORK", "fcn_resnet18", "MODEL.FCN_KD.TRUNK_WIDTH", "8")
HEAD = ("MODEL.FCN_KD.HEAD_CHANNELS", "16")


def make(*overrides: str, file: str = "fcn_r18_voc.yaml") -> tuple[Any, Any]:
    cfg = load_config(CONFIGS / file, list(overrides))
    return cfg, build_model(cfg, pretrained=False).eval()


def pixels(size: int = 64, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


class OneLayer(nn.Module):
    """Logits = 3 · the normalised pixel, by a 1×1 convolution of one weight a channel."""

    pixel_mean, pixel_std = torch.tensor(127.5), torch.tensor(127.5)

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3, bias=False))
        with torch.no_grad():
            self.network[0].weight.copy_(torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1))

    def logits(self, images: Tensor) -> Tensor:
        return self.network((images - self.pixel_mean) / self.pixel_std)


def test_errors_of_one_layer_are_the_rounding_of_each_channel() -> None:
    """Inputs fill −1 … 1, so a step of 8 bits is 2 / 255 and rounds by 1/255 at most. Outputs fill −100 … 100, all
    three channels on that one scale: a step of 200 / 255, half of it rounded away. A weight is on the scale of its own
    channel, 127 steps to its size, and so exact. Together at most 100 / 255 + w / 255, plus what histograms cut off
    the ends, at most a step."""
    net, images = OneLayer(), pixels(16)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255
    made = quantize(net, [images])
    with using(made.backend), torch.no_grad():
        error = (made.net.logits(images.float()) - net.logits(images.float())).abs().amax((0, 2, 3))
    step = 200 / 255
    for channel, weight in enumerate((1.0, 10.0, 100.0)):
        assert float(error[channel]) <= step / 2 + weight / 255 + step
    layer = next(m for m in made.net.network.modules() if isinstance(m, nnq.Conv2d))
    # largest weight / 127.5: torch's symmetric range is −128 … 127, so that scale = 2 · max / 255
    scales = layer.weight().q_per_channel_scales()
    torch.testing.assert_close(scales.float(), 2 * torch.tensor([1.0, 10.0, 100.0]) / 255, rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def fcn() -> tuple[Any, Any, Quantized]:
    """An untrained FCN with batch normalisation, and its int8 form."""
    cfg, net = make(*FCN, *HEAD)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    net.train()
    with torch.no_grad():
        net.logits(pixels().float())  # statistics that fit the activations
    net.eval()
    return cfg, net, quantize(net, [pixels()])


def test_int8_layers_are_int8_and_near_the_float_network(fcn: tuple[Any, Any, Quantized]) -> None:
    _, net, made = fcn
    kinds = {type(m) for m in made.net.network.modules()}
    assert nnq.Conv2d in kinds and nn.Conv2d not in kinds and nn.BatchNorm2d not in kinds
    convolutions = sum(isinstance(m, nn.Conv2d) for m in net.network.modules())
    assert len(made.int8) == convolutions and not made.floats and made.images == 4
    assert f"{convolutions} layers in int8" in made.describe() and "left float: nothing" in made.describe()
    images = pixels().float()
    with using(made.backend), torch.no_grad():
        ours, theirs = net.logits(images), made.net.logits(images)
    # 20 layers, each with a rounding of about 1/255 of its range
    assert float((ours - theirs).abs().mean() / ours.abs().mean()) < 0.2
    assert made.net(images)[0].sem_seg.shape == (21, 2, 2)


def test_the_float_network_stays(fcn: tuple[Any, Any, Quantized]) -> None:
    _, net, _ = fcn
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.network.modules())


def test_group_norm_and_named_parts_stay_float() -> None:
    _, net = make(*FCN, *HEAD, "MODEL.FCN_KD.NORM", "GN")
    made = quantize(net, [pixels()], Int8Options(keep_float=("classifier.4",)))
    kinds = [type(m) for m in made.net.network.modules()]
    assert kinds.count(nn.GroupNorm) == sum(isinstance(m, nn.GroupNorm) for m in net.modules()) > 0
    assert made.floats["classifier.4"] == "Conv2d" and kinds.count(nn.Conv2d) == 1
    assert "1 Conv2d" in made.describe() and "GroupNorm" in made.describe()


def test_a_classifier() -> None:
    _, net = make("MODEL.WEIGHTS", "", file="cifar_resnet20.yaml")
    made = quantize(net, [pixels(32)])
    assert len(made.int8) == 20 and not made.floats  # 19 convolutions and the linear layer
    with using(made.backend), torch.no_grad():
        assert made.net(pixels(32).float())[0].class_scores.shape == (20,)  # VOC's, where none are named


class Asks(nn.Module):
    """Decides by sizes, as decoders do: halves until it is small, and adds a PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x))
        while y.shape[-1] > 4:
            y = nn.functional.avg_pool2d(y, 2)
        count, *_ = y.size()
        return nn.functional.interpolate(y, size=x.shape[2:]) * (1 if y.dim() == 4 and count else 0)


def test_sizes_are_known_while_a_network_is_followed() -> None:
    net, x = Asks().eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = net(x)
        graph = trace(net, x)
        torch.testing.assert_close(graph(x), expected, rtol=0, atol=0)
    assert isinstance(net.act, FloatPReLU)
    assert sum(node.target is torch.nn.functional.avg_pool2d for node in graph.graph.nodes) == 2  # 16, 8, 4


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_decision_by_values_is_refused() -> None:
    with pytest.raises(UserError, match="MODEL: torch.fx cannot follow a Decides, so it is not quantised"):
        trace(Decides(), torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b in torch.backends.quantized.supported_engines])
def test_every_backend_of_this_machine(backend: str) -> None:
    before = torch.backends.quantized.engine
    made = quantize(OneLayer(), [pixels(16)], Int8Options(backend))
    with using(backend), torch.no_grad():
        said = made.net.logits(pixels(16).float())
    assert made.backend == backend and torch.backends.quantized.engine == before
    layer = next(m for m in made.net.network.modules() if isinstance(m, nnq.Conv2d))
    assert layer.weight().qscheme() == torch.per_channel_affine
    # 7 bit have steps of 200 / 127: the sum of the roundings above, doubled
    assert float((said - OneLayer().logits(pixels(16).float())).detach().abs().max()) < 2 * (
        1.5 * 200 / 255 + 100 / 255
    )


def test_a_backend_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--backend: torch has no 'xnnpack' on this machine; it has "):
        choose_backend("xnnpack")
    monkeypatch.setattr("scenekd.quantize.BACKENDS", ())
    with pytest.raises(UserError, match="it has none, so it cannot quantise here"):
        choose_backend()


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "--calibrate: no calibration images; give at least one"),
        (
            [pixels(16)],
            {"keep_float": ("head*",)},
            r"--keep-float: 'head\*' matches no module .* its parts are 0",
        ),
        ([pixels(16)], {"keep_float": ("*",)}, "--keep-float: nothing is left to quantise"),
    ],
)
def test_refusals(batches: list[Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        quantize(OneLayer(), batches, Int8Options(**options))
    with pytest.raises(
        UserError, match="MODEL: a Conv2d cannot be quantised; take a network of SYSTEM fcn_kd"
    ):
        quantize(nn.Conv2d(3, 3, 1), [pixels(16)])


def test_torchscript_is_the_int8_network(fcn: tuple[Any, Any, Quantized], tmp_path: Path) -> None:
    cfg, net, made = fcn
    path = tmp_path / "int8.pt"
    written = export_int8(net, cfg, path, [pixels()])
    assert max(written.comparison.absolute.values()) == 0 and 0 < written.same_class <= 1
    with using(made.backend), torch.no_grad():
        files = {"metadata.json": ""}
        module = torch.jit.load(str(path), _extra_files=files)
        torch.testing.assert_close(
            module(pixels().float())[0], made.net.logits(pixels().float()), rtol=0, atol=0
        )
    about = json.loads(files["metadata.json"])
    assert json.loads(about["quantization"])["backend"] == made.backend and len(about["weights_sha256"]) == 64


def test_onnx_in_int8(fcn: tuple[Any, Any, Quantized], tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    cfg, net, made = fcn
    path = tmp_path / "int8.onnx"
    written = export_int8(net, cfg, path, [pixels()], format="onnx")
    assert f"{len(made.int8)} layers in int8 (onnxruntime, 4 calibration images)" in written.detail
    model = onnx.load(path)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert json.loads({e.key: e.value for e in model.metadata_props}["classes"])[0] == "aeroplane"
    (logits,) = runtime.InferenceSession(str(path)).run(None, {"images": pixels().float().numpy()})
    with torch.no_grad():
        wanted = net.logits(pixels().float()).numpy()
    # mean ranges cut the ends off, on noise more than on pictures; answers that have nothing in common differ by 1.4
    assert float(np.abs(logits - wanted).mean() / np.abs(wanted).mean()) < 0.4
    assert list(tmp_path.iterdir()) == [path]


def test_what_export_refuses(fcn: tuple[Any, Any, Quantized], tmp_path: Path) -> None:
    cfg, net, _ = fcn
    for options, message in (
        ({"format": "torch_export"}, "--format: torch_export: int8 is written as torchscript or onnx"),
        ({"format": "onnx", "options": Int8Options("x86")}, "--keep-float: belong to --format torchscript"),
    ):
        if options["format"] == "onnx":
            pytest.importorskip("onnxruntime")
        with pytest.raises(UserError, match=message):
            export_int8(net, cfg, tmp_path / "m", [pixels()], **options)
    assert not list(tmp_path.iterdir())


def test_calibration_images_are_training_images(tiny_config: Callable[..., Any]) -> None:
    """Twelve training images of the drawn scenes: five are chosen by the seed, in batches of TEST.BATCH_SIZE."""
    cfg = tiny_config("run")
    first, again = calibration_batches(cfg, 5), calibration_batches(cfg, 5)
    assert [tuple(batch.shape) for batch in first] == [(4, 3, 64, 64), (1, 3, 64, 64)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert sum(map(len, calibration_batches(cfg, 100))) == 12
    other = calibration_batches(tiny_config("run", "SEED", 7), 5)
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("overrides", "count", "message"),
    [
        ((), 0, "--calibrate: 0; give at least one image"),
        (("DATASETS.TRAIN", "()"), 5, "DATASETS.TRAIN: names no data set"),
        (
            ("DATASETS.TRAIN", "('voc_seg_val',)", "DATASETS.ALLOW_OVERLAP", "True"),
            5,
            "of the 6 test images of .* are in",
        ),
    ],
)
def test_calibration_images_are_refused(
    overrides: tuple[str, ...], count: int, message: str, tiny_config: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=message):
        calibration_batches(tiny_config("run", *overrides), count)
