"""Exported graphs: each format against PyTorch, the NMS chain on chosen inputs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_blitznet import SMALL
from torch import Tensor

import scenekd.export as export_module
from kd_mtl.blitznet import BlitzNet
from kd_mtl.fpn_student import SceneKDFPN
from scenekd.config import get_cfg
from scenekd.data.images import read_image
from scenekd.errors import UserError
from scenekd.export import FORMATS, export
from scenekd.predictor import Predictor

CLASSES = ("cat", "dog", "kite")


def make_cfg() -> Any:
    cfg = get_cfg()
    cfg.INPUT.SIZE = SMALL["image_size"]
    cfg.DATASETS.CLASSES = CLASSES
    return cfg


def make_net(**options: Any) -> BlitzNet:
    torch.manual_seed(0)
    return BlitzNet(**{**SMALL, **options}).eval()


def load(path: Path, format: str) -> Any:
    """The file by its own library alone: ``run(images)`` → list of arrays."""
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
        return lambda images: session.run(None, {"images": images.numpy()})
    module = torch.jit.load(str(path)) if format == "torchscript" else torch.export.load(path).module()
    return lambda images: [value.numpy() for value in module(images)]


def name_of(format: str) -> str:
    return {"onnx": "model.onnx", "torchscript": "model.pt", "torch_export": "model.pt2"}[format]


def needs(format: str) -> None:
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


@pytest.mark.parametrize("format", FORMATS)
def test_without_nms_any_batch_equals_pytorch(format: str, tmp_path: Path) -> None:
    needs(format)
    net, path = make_net(), tmp_path / name_of(format)
    exported = export(net, make_cfg(), path, format=format)
    assert exported.comparison.inputs == 3  # two drawn scenes, and both at once
    images = 255 * torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    probabilities, boxes, sem_seg = load(path, format)(images)
    with torch.no_grad():
        outputs = net.outputs(images)
    torch.testing.assert_close(
        torch.from_numpy(probabilities), outputs["class_logits"].softmax(-1), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(torch.from_numpy(sem_seg), outputs["sem_seg"], atol=1e-3, rtol=1e-5)
    # Boxes by SSD's own formulas: centre + .1 · offset · side, side · exp(.2 · offset), clipped to the image.
    centre = (net.anchors[:, :2] + net.anchors[:, 2:]) / 2 + 0.1 * outputs["offsets"][..., :2] * (
        sides := net.anchors[:, 2:] - net.anchors[:, :2]
    )
    half = sides * (0.2 * outputs["offsets"][..., 2:]).exp() / 2
    expected = torch.cat([centre - half, centre + half], dim=-1).clamp(0, 64)
    torch.testing.assert_close(torch.from_numpy(boxes), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("format", FORMATS)
def test_with_nms_the_same_boxes_are_kept(format: str, tmp_path: Path, scenes: Path) -> None:
    needs(format)
    net, cfg, path = make_net(), make_cfg(), tmp_path / name_of(format)
    images = [read_image(str(file)) for file in sorted((scenes / "JPEGImages").glob("val_*.jpg"))[:2]]
    opset = 18 if format == "onnx" else None
    exported = export(net, cfg, path, format=format, nms=True, images=images, opset=opset)
    assert exported.comparison.inputs == 2
    assert exported.comparison.same == exported.comparison.boxes > 50
    assert exported.outputs["boxes"] == ["detections", 4] and exported.outputs["sem_seg"] == [4, 8, 8]
    if format == "onnx":
        check_onnx_file(path, list(exported.outputs))
    run = load(path, format)
    for image in images:
        said = dict(zip(exported.outputs, run(Predictor(net, cfg).prepare(image))))
        with torch.no_grad():
            wanted = net(Predictor(net, cfg).prepare(image))[0]
        assert said["labels"].tolist() == wanted.labels.tolist()
        for name in ("boxes", "scores", "sem_seg", "class_probabilities"):
            np.testing.assert_allclose(said[name], getattr(wanted, name).numpy(), atol=1e-3, rtol=1e-5)


class FromPixels(BlitzNet):
    """Its heads say what the pixels are, so that an image can hold any logits and offsets."""

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        count, logits = len(self.anchors), self.num_classes + 1
        flat = images.flatten(1)
        return {
            "class_logits": flat[:, : count * logits].reshape(-1, count, logits),
            "offsets": flat[:, count * logits : count * (logits + 4)].reshape(-1, count, 4),
        }

    def image(self, class_logits: Tensor, offsets: Tensor) -> Tensor:
        """The image that makes the heads say this."""
        flat = torch.cat([class_logits.flatten(), offsets.flatten()])
        missing = 3 * self.image_size**2 - len(flat)
        return torch.cat([flat, torch.zeros(missing)]).reshape(1, 3, self.image_size, self.image_size)


@pytest.mark.parametrize("format", FORMATS)
def test_the_chain_alone(format: str, tmp_path: Path) -> None:
    """Crowded, sparse, far outside the image, and nothing at all: the graph must follow the number of boxes."""
    needs(format)
    torch.manual_seed(0)
    limits = {"score_threshold": 0.05, "topk_pre_nms": 300, "topk_per_class": 20, "topk": 45}
    net = FromPixels(**{**SMALL, "tasks": ("detection",)}, postprocess=limits).eval()
    path = tmp_path / name_of(format)
    export(net, make_cfg(), path, format=format, nms=True)
    run, count = load(path, format), len(net.anchors)
    found = []
    for background, spread in ((0.0, 0.5), (3.0, 0.5), (0.0, 60.0), (30.0, 0.5)):
        generator = torch.Generator().manual_seed(1)
        logits = 2 * torch.randn(count, 4, generator=generator)
        logits[:, -1] += background
        image = net.image(logits, spread * torch.randn(count, 4, generator=generator))
        boxes, labels, scores, _ = run(image)
        with torch.no_grad():
            wanted = net(image)[0]
        assert labels.dtype == np.int64 and labels.tolist() == wanted.labels.tolist()
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-6)
        np.testing.assert_allclose(boxes, wanted.boxes, atol=1e-4)
        found.append(len(boxes))
    # The limit of the image bites (45, three classes of at most 20), others end below it, and one finds nothing.
    assert found[0] == 45 and found[1] > 0 and found[3] == 0


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"tasks": ("segmentation",), "resize": "nearest"}, ["sem_seg"]),
        ({"tasks": ("detection",), "norm": "GN"}, ["class_probabilities", "boxes"]),
    ],
    ids=["segmentation", "detection"],
)
def test_onnx_of_one_task(options: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    needs("onnx")
    exported = export(make_net(**options), make_cfg(), tmp_path / "model.onnx")
    assert list(exported.outputs) == names and exported.comparison.problem == ""


@pytest.mark.parametrize(
    "options",
    [
        {"x4": True, "norm": "GN"},
        {"norm": "FrozenBN", "shared_head": True},
        {"trunk": "vgg16", "trunk_width": 64},
        {"trunk": "densenet121", "trunk_width": 64},
    ],
    ids=str,
)
def test_torchscript_of_other_networks(options: dict[str, Any], tmp_path: Path) -> None:
    net = make_net(**options)
    exported = export(net, make_cfg(), tmp_path / "model.pt", format="torchscript", nms=True)
    assert max(exported.comparison.absolute.values()) == 0


THREE_TASKS = ("detection", "segmentation", "instance_segmentation")


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_masks_of_another_student(format: str, tmp_path: Path) -> None:
    needs(format)
    torch.manual_seed(0)
    small = {"image_size": 64, "num_classes": 3, "trunk": "resnet18", "trunk_width": 8, "channels": 16}
    net = SceneKDFPN(**small, tasks=THREE_TASKS, seg_channels=8, prototypes=4, mask_channels=8).eval()
    path = tmp_path / name_of(format)
    exported = export(net, make_cfg(), path, format=format, nms=True)
    assert exported.outputs["mask_logits"] == ["detections", 8, 8]
    image = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    said = dict(zip(exported.outputs, load(path, format)(image)))
    with torch.no_grad():
        wanted = net(image)[0]
    assert len(wanted.boxes) > 50 and said["labels"].tolist() == wanted.labels.tolist()
    np.testing.assert_allclose(said["mask_logits"], wanted.mask_logits.numpy(), atol=1e-3)


def test_the_description_travels_with_the_file(tmp_path: Path) -> None:
    net, cfg = make_net(), make_cfg()
    said = {}
    for format in ("torchscript", "torch_export"):
        files = {"metadata.json": ""}
        path = tmp_path / name_of(format)
        export(net, cfg, path, format=format, nms=format == "torchscript")
        if format == "torchscript":
            torch.jit.load(str(path), _extra_files=files)
        else:
            torch.export.load(path, extra_files=files)
        said[format] = json.loads(files["metadata.json"])
    raw, kept = said["torch_export"], said["torchscript"]
    assert json.loads(raw["classes"]) == list(CLASSES)
    assert json.loads(raw["inputs"])["images"]["shape"] == ["batch", 3, 64, 64]
    assert json.loads(kept["inputs"])["images"]["shape"] == [1, 3, 64, 64]
    assert json.loads(raw["nms"]) is None and json.loads(kept["nms"])["nms_threshold"] == 0.45
    assert {k: v["shape"] for k, v in json.loads(kept["outputs"]).items()} == {
        "boxes": ["detections", 4],
        "labels": ["detections"],
        "scores": ["detections"],
        "sem_seg": [4, 8, 8],
        "class_probabilities": ["detections", 4],
    }
    assert raw["weights_sha256"] == kept["weights_sha256"] and len(raw["weights_sha256"]) == 64


def check_onnx_file(path: Path, names: list[str]) -> None:
    """What the ONNX file of a graph with NMS, of opset 18, says of itself."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert "NonMaxSuppression" in {node.op_type for node in model.graph.node}
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == names
    rows = model.graph.output[0].type.tensor_type.shape.dim
    assert (rows[0].dim_param, rows[1].dim_value) == ("detections", 4)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == list(CLASSES)
    assert list(json.loads(about["outputs"])) == names


def test_another_graph_is_refused_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_text("old")
    write = export_module._WRITERS["torchscript"]

    def wrong(*arguments: Any) -> Any:
        run, detail = write(*arguments)
        return lambda images: {name: value * 1.001 for name, value in run(images).items()}, detail

    monkeypatch.setitem(export_module._WRITERS, "torchscript", wrong)
    with pytest.raises(UserError, match=r"model\.pt: not written: class_probabilities differs from PyTorch"):
        export(make_net(), make_cfg(), path, format="torchscript")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "--format: 'tflite'; choose one of onnx"),
        ({"format": "torchscript", "opset": 18}, "--opset: belongs to --format onnx"),
        ({"format": "torch_export"}, r"--output: .*model: torch.export.load reads files in .pt2"),
        ({"format": "torchscript", "tolerance": -1.0}, "--tolerance: -1.0"),
        ({"format": "torchscript", "tolerance": float("nan")}, "--tolerance: nan"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(make_net(), make_cfg(), tmp_path / "model", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_built_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MODEL: a Conv2d cannot be exported"):
        export(torch.nn.Conv2d(3, 3, 1), make_cfg(), tmp_path / "model", format="torchscript")
    with pytest.raises(UserError, match="--nms: the network has no detection task"):
        export(make_net(tasks=("segmentation",)), make_cfg(), tmp_path / "m", format="torchscript", nms=True)
