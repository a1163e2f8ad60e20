"""The students of fcn_kd as ONNX, TorchScript and torch.export, held against PyTorch on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import load, name_of, needs

from scenekd.config import load_config
from scenekd.data.images import image_files, read_image
from scenekd.errors import UserError
from scenekd.export import FORMATS, export
from scenekd.models import build_model

CONFIGS = Path(__file__).parents[1] / "projects" / "fcn_kd"
NARROW = ("MODEL.FCN_KD.TRUNK_WIDTH", "8", "MODEL.FCN_KD.HEAD_CHANNELS", "16")


def make(network: str, *overrides: str, size: int = 64) -> tuple[Any, Any]:
    pairs = ["MODEL.FCN_KD.NETWORK", network, "MODEL.WEIGHTS", "", "INPUT.SIZE", str(size), *overrides]
    cfg = load_config(CONFIGS / "fcn_r18_voc.yaml", pairs)
    return cfg, build_model(cfg, pretrained=False).eval()


def check(
    format: str, network: str, folder: Path, images: list[Any], *overrides: str, size: int = 64
) -> None:
    needs(format)
    cfg, net = make(network, *overrides, size=size)
    path = folder / name_of(format)
    exported = export(net, cfg, path, format=format, images=images)
    field = "class_scores" if net.tasks == ("classification",) else "sem_seg"
    assert list(exported.outputs) == [field] and exported.outputs[field][0] == "batch"
    # one by one, and the first and last together
    assert exported.comparison.inputs == len(images) + 1 and exported.comparison.problem == ""
    pixels = 255 * torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = net.logits(pixels)
    (said,) = load(path, format)(pixels)
    torch.testing.assert_close(torch.as_tensor(said), wanted, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def images(test_data: Path) -> list[Any]:
    """Two photographs."""
    return [
        read_image(str(file))
        for file in image_files([test_data / "voc_mini/VOCdevkit/VOC2012/JPEGImages"])[:2]
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_a_segmentation_network(format: str, tmp_path: Path, images: list[Any]) -> None:
    check(format, "fcn_resnet18", tmp_path, images, *NARROW)


@pytest.mark.parametrize("format", FORMATS)
def test_a_classifier(format: str, tmp_path: Path, images: list[Any]) -> None:
    check(format, "cifar_resnet20", tmp_path, images, size=32)


@pytest.mark.parametrize(
    ("network", "overrides"),
    [
        pytest.param("espnetv2_0.5", (), marks=pytest.mark.slow),
        ("lraspp_mobilenet_v3_large", ()),
        ("deeplabv3_resnet18", (*NARROW[:2], "MODEL.FCN_KD.NORM", "GN")),
    ],
)
def test_other_networks(network: str, overrides: tuple[str, ...], tmp_path: Path, images: list[Any]) -> None:
    check("torchscript", network, tmp_path, images, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
@pytest.mark.parametrize("network", ["espnetv2_0.5", "lraspp_mobilenet_v3_large", "cifar_cnn5"])
def test_other_networks_in_other_formats(
    network: str, format: str, tmp_path: Path, images: list[Any]
) -> None:
    check(format, network, tmp_path, images)


def test_there_are_no_boxes(tmp_path: Path) -> None:
    cfg, net = make("fcn_resnet18", *NARROW)
    with pytest.raises(UserError, match="--nms: the network has no detection task"):
        export(net, cfg, tmp_path / "m.pt", format="torchscript", nms=True)
