"""Teachers asked about many images at once say what they say of each alone; torchvision's say it as torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import models

from scenekd import checkpoint
from scenekd.data.images import read_image
from scenekd.models import build_model
from scenekd.teachers.build import build_teacher
from scenekd.teachers.frozen import by_size
from scenekd.teachers.scenekd_teacher import SceneKDTeacher
from scenekd.teachers.zoo_torchvision import build_torchvision

LRASPP, FASTER = "lraspp_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def images(test_data):
    """Three real images, two of one size."""
    files = sorted((test_data / "voc_mini").rglob("JPEGImages/*.jpg"))
    pixels = [read_image(str(file)) for file in files[:3]]
    pixels[2] = np.ascontiguousarray(pixels[2][: pixels[0].shape[0]])
    assert len({image.shape for image in pixels}) == 2
    return pixels


def assert_same(one, other):
    for name in ("boxes", "labels", "scores"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, atol=1e-4 if name != "boxes" else 1e-2)
    assert (one.segmentation is None) == (other.segmentation is None)
    if one.segmentation is not None:
        np.testing.assert_allclose(one.segmentation.values, other.segmentation.values, atol=1e-4)


@pytest.mark.parametrize("name, options", [(LRASPP, {"resize": 120}), (FASTER, {"max_boxes": 10})])
def test_torchvision_in_batches(name, options, images):
    teacher = build_torchvision(name, "random", **options)
    for image, output in zip(images, teacher.predict(images)):
        assert_same(output, teacher.predict([image])[0])


def test_scenekd_in_batches(tiny_config, tmp_path, images):
    cfg = tiny_config("teacher")
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), tmp_path / "t.pth")
    teacher = SceneKDTeacher(tmp_path / "t.pth")
    assert teacher.predict([]) == []
    for image, output in zip(images, teacher.predict(images)):
        assert_same(output, teacher.predict([image])[0])


def test_torchvision_prepares_as_its_weights_say(images):
    """Their own transforms on the image's bytes, then the network's own forward before its interpolation."""
    teacher = build_torchvision(LRASPP, "random")
    prepared = models.get_model_weights(LRASPP).DEFAULT.transforms()(
        torch.from_numpy(images[0].transpose(2, 0, 1).copy())
    )
    assert min(prepared.shape[1:]) == 520
    with torch.no_grad():
        want = teacher.net(prepared[None])["out"][0]
    values = torch.from_numpy(teacher.predict(images[:1])[0].segmentation.values)
    enlarged = torch.nn.functional.interpolate(
        values[None], want.shape[1:], mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(enlarged[0], want, atol=1e-4, rtol=1e-4)


def test_torchvision_weights_by_name(monkeypatch):
    """With or without their class; another name is answered with the nearest."""
    from scenekd.errors import UserError
    from scenekd.teachers import zoo_torchvision

    asked = []

    def download(name, weights):
        asked.append((name, zoo_torchvision.zoo_weights(name, weights).name))
        net = models.get_model(name, weights=None, weights_backbone=None, num_classes=21)
        return net.state_dict()

    monkeypatch.setattr(zoo_torchvision, "_download", download)
    for weights in ("COCO_WITH_VOC_LABELS_V1", "LRASPP_MobileNet_V3_Large_Weights.DEFAULT", ""):
        assert build_torchvision(LRASPP, weights).info()["trained_on"] == ["COCO train2017"]
    assert asked == [(LRASPP, "COCO_WITH_VOC_LABELS_V1")] * 3
    with pytest.raises(
        UserError, match="has no weights 'COCO_V1'; choose COCO_WITH_VOC_LABELS_V1, DEFAULT, or"
    ):
        build_torchvision(LRASPP, "COCO_V1")


def test_groups_of_equal_size_keep_their_order():
    images = [np.zeros((h, 4, 3), np.uint8) for h in (2, 3, 2, 5, 3)]
    asked = []

    def ask(group):
        asked.append([image.shape[0] for image in group])
        return [id(image) for image in group]

    assert by_size(images, ask) == [id(image) for image in images]
    assert asked == [[2, 2], [3, 3], [5]]


def test_mixed_precision_is_for_cuda(tiny_config, caplog, monkeypatch):
    """On CPU it is refused with a warning, as in training; on CUDA the network runs under autocast."""
    pairs = ("TEACHER.SEGMENTATION", f"torchvision://{LRASPP}/random", "TEACHER.AMP", "True")
    teacher = build_teacher(tiny_config("run", *pairs), "segmentation")
    assert "TEACHER.AMP: no CUDA device, teachers run in float32" in caplog.text
    assert not teacher.amp and "amp" not in teacher.info()

    seen = []
    mixed = build_torchvision(LRASPP, "random", resize=32, amp=True)
    mixed.net.backbone.register_forward_hook(lambda *unused: seen.append(torch.is_autocast_enabled("cuda")))
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    mixed.predict([np.zeros((32, 32, 3), np.uint8)])
    assert seen == [True] and mixed.info()["amp"] is True
