"""MMSegmentation's segmentors as teachers: equal to its own ``inference_model``, on real images, from local
checkpoints as MMEngine writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import HistoryBuffer

from scenekd.data.images import read_image
from scenekd.data.voc import VOC_CLASSES
from scenekd.errors import UserError
from scenekd.teachers.build import build_teacher, teacher_class_map
from scenekd.teachers.protocol import Teacher
from scenekd.teachers.zoo_mmseg import MMSegTeacher

CONFIG = """
default_scope = "mmseg"
norm_cfg = dict(type="SyncBN", requires_grad=True)
head = dict(in_channels=64, in_index=3, channels=8, num_classes={classes}, norm_cfg=norm_cfg,
            align_corners={align}, loss_decode=dict(type="CrossEntropyLoss"))
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], bgr_to_rgb=True, {preprocessor}),
    pretrained="open-mmlab://resnet18_v1c",
    backbone=dict(type="ResNetV1c", depth=18, base_channels=8, stem_channels=8, norm_cfg=norm_cfg,
                  strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    decode_head=dict(type="{head}", **head, {more}),
    auxiliary_head=dict(type="FCNHead", **(head | dict(in_channels=32, in_index=2))),
    train_cfg=dict(),
    test_cfg=dict({mode}),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=({scale}), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_dataloader = dict(dataset=dict(type="{data}", pipeline=test_pipeline))
"""
PLAIN = {
    "classes": 21,
    "align": "False",
    "preprocessor": "",
    "head": "FCNHead",
    "more": "",
    "mode": 'mode="whole"',
    "scale": "256, 128",
    "data": "PascalVOCDataset",
}
VARIANTS = {
    "fcn": PLAIN,
    "padded": PLAIN | {"preprocessor": "test_cfg=dict(size_divisor=32)"},
    "psp_corners": PLAIN | {"head": "PSPHead", "align": "True", "more": "pool_scales=(1, 2)"},
    "slide": PLAIN | {"mode": 'mode="slide", crop_size=(96, 96), stride=(64, 64)'},
    "ade": PLAIN | {"classes": 150, "data": "ADE20KDataset"},
    "binary": PLAIN | {"classes": 2, "more": "out_channels=1, threshold=0.5", "data": "ChaseDB1Dataset"},
}


@pytest.fixture(scope="module")
def images(test_data):
    files = sorted((test_data / "voc_mini").rglob("JPEGImages/*.jpg"))
    return [read_image(str(file)) for file in files[:3]]


@pytest.fixture
def make(tmp_path):
    """(config file, checkpoint as MMEngine writes it in training, MMSegmentation's own model of both)."""

    def build(variant, meta=None):
        from mmengine.registry import DefaultScope
        from mmseg.apis import init_model

        config, weights = tmp_path / f"{variant}.py", tmp_path / f"{variant}.pth"
        config.write_text(CONFIG.format(**VARIANTS[variant]))
        with DefaultScope.overwrite_default_scope("mmseg"):
            torch.manual_seed(3)
            model = init_model(str(config), None, "cpu")
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "conv_seg" in name:
                    value.normal_(std=0.3)
        history = HistoryBuffer()
        history.update(1.5)
        state = {"state_dict": model.state_dict(), "meta": meta or {}, "message_hub": {"loss": history}}
        torch.save(state, weights)
        return config, weights, model

    return build


def inference(model, image):
    """What inference_model says: OpenCV's channel order, logits at the image's size."""
    from mmengine.registry import DefaultScope
    from mmseg.apis import inference_model

    with DefaultScope.overwrite_default_scope("mmseg"):
        return inference_model(model, np.ascontiguousarray(image[:, :, ::-1]))


@pytest.mark.parametrize("variant", ["fcn", "padded", "psp_corners", "slide"])
def test_logits_at_the_image_s_size_are_inference_model_s(variant, make, images):
    """All images at once, of two sizes, change nothing."""
    config, weights, model = make(variant)
    teacher = MMSegTeacher(str(config), str(weights), grid="image")
    assert isinstance(teacher, Teacher) and teacher.classes == VOC_CLASSES
    for image, output in zip(images, teacher.predict(images)):
        want = inference(model, image).seg_logits.data.numpy()
        assert output.segmentation.form == "logits" and np.ptp(want) > 0.1
        np.testing.assert_allclose(output.segmentation.values, want, atol=1e-4)


@pytest.mark.parametrize("variant", ["fcn", "padded"])
def test_own_grid_leads_to_inference_model_s_output(variant, make, images):
    """An image of 500 × 281 comes in at 228 × 128: 29 × 16 cells of stride 8. Enlarging them in MMSegmentation's
    two steps gives its output; where padding to 256 columns makes 32 cells, the last is cut and sampled anew."""
    config, weights, model = make(variant)
    teacher = MMSegTeacher(str(config), str(weights))
    assert teacher.info()["grid"] == "own"
    values = torch.from_numpy(teacher.predict(images[:1])[0].segmentation.values)
    assert values.shape == (21, 16, 29)
    found = inference(model, images[0])
    want = found.seg_logits.data
    enlarged = F.interpolate(values[None], (128, 228), mode="bilinear", align_corners=False)
    enlarged = F.interpolate(enlarged, images[0].shape[:2], mode="bilinear", align_corners=False)[0]
    if variant == "fcn":
        torch.testing.assert_close(enlarged, want, atol=1e-4, rtol=0)
    else:
        assert (enlarged - want).abs().mean() < 0.05 * want.std()


@pytest.mark.parametrize("variant", ["psp_corners", "slide"])
def test_grid_of_the_image_where_the_head_does_not_end_plainly(variant, make, images):
    """Corners that are aligned, or windows that overlap, are not enlarged as a soft label is sampled."""
    config, weights, _ = make(variant)
    teacher = MMSegTeacher(str(config), str(weights))
    assert teacher.info()["grid"] == "image"
    assert teacher.predict(images[:1])[0].segmentation.values.shape[1:] == images[0].shape[:2]


def test_classes_without_background(make, images, tiny_config):
    """ADE20K has none: an added plane takes what no class of ours stands for."""
    config, weights, model = make("ade")
    pairs = ("TEACHER.SEGMENTATION", f"mmseg://{config}?weights={weights}")
    cfg = tiny_config("run", *pairs, "TEACHER.SEGMENTATION.ALLOW_UNMAPPED", "True")
    teacher = build_teacher(cfg, "segmentation")
    assert len(teacher.classes) == 150 and teacher.classes[0] == "wall"
    class_map = teacher_class_map(cfg, "segmentation", teacher.classes)
    mapped = class_map.segmentation(teacher.predict(images[:1])[0].segmentation)
    with torch.no_grad():
        raw = torch.from_numpy(teacher.predict(images[:1])[0].segmentation.values).double().softmax(0)
    ours = cfg.DATASETS.CLASSES
    assert {"person", "tree", "car", "house", "boat", "bottle"} <= set(class_map.as_dict().values())
    got = torch.from_numpy(mapped.values).double().softmax(0)
    known = [c for c in ours if c in class_map.as_dict().values()]
    total = sum(got[ours.index(c) + 1] for c in known)
    torch.testing.assert_close(got[0], 1 - total, atol=1e-6, rtol=0)
    tree = raw[teacher.classes.index("tree") + 1]
    torch.testing.assert_close(got[ours.index("tree") + 1], tree, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", ["own", "image"])
def test_one_plane_for_two_classes(grid, make, images):
    """A sigmoid's logit x becomes (0, x): the same probability through a softmax."""
    config, weights, model = make("binary")
    teacher = MMSegTeacher(str(config), str(weights), grid=grid)
    assert teacher.classes == ("vessel",)
    values = torch.from_numpy(teacher.predict(images[:1])[0].segmentation.values)
    assert len(values) == 2
    if grid == "image":
        want = inference(model, images[0]).seg_logits.data[0]  # through the sigmoid already
        torch.testing.assert_close(values.softmax(0)[1], want, atol=1e-4, rtol=0)
    else:
        assert (values[0] == 0).all() and values[1].std() > 0.01


def test_names_of_the_checkpoint_come_first(make):
    names = ("background", *(f"thing {i}" for i in range(20)))
    for meta in ({"dataset_meta": {"classes": names}}, {"CLASSES": names}):
        config, weights, _ = make("fcn", meta)
        assert MMSegTeacher(str(config), str(weights)).classes == names[1:]
    config, weights, _ = make("fcn", {"CLASSES": names[:5]})
    teacher = MMSegTeacher(str(config), str(weights))
    with pytest.raises(UserError, match="TEACHER.SEGMENTATION.CLASSES: 21 planes for 5 class names"):
        teacher.predict([np.zeros((40, 60, 3), np.uint8)])


class Evil:
    """What a stranger could have pickled."""

    def __reduce__(self):
        return (print, ("it ran",))


def test_checkpoints_cannot_run_code(tmp_path, make, capsys):
    config, weights, _ = make("fcn")
    torch.save({"state_dict": {}, "meta": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="evil.pth: holds a .*print"):
        MMSegTeacher(str(config), str(tmp_path / "evil.pth"))
    assert "it ran" not in capsys.readouterr().out


def test_other_weights_and_unknown_names_are_one_line(tmp_path, make, monkeypatch):
    config, weights, _ = make("fcn")
    other, _, _ = make("psp_corners")
    with pytest.raises(UserError, match="fcn.pth: weights of another network: .*decode_head"):
        MMSegTeacher(str(other), str(weights))
    with pytest.raises(UserError, match="none.pth: no such checkpoint"):
        MMSegTeacher(str(config), str(tmp_path / "none.pth"))
    with pytest.raises(
        UserError, match="WEIGHTS: set it to a checkpoint of .*fcn.py; no published one is known"
    ):
        MMSegTeacher(str(config))
    with pytest.raises(
        UserError, match="no MMSegmentation config 'fcn/fcn_r50-d8'; the nearest it ships are fcn/"
    ):
        MMSegTeacher("fcn/fcn_r50-d8")
    (tmp_path / "bad.py").write_text("model = dict(type='NoSuchNet')")
    with pytest.raises(UserError, match="bad.py: its model cannot be built"):
        MMSegTeacher(str(tmp_path / "bad.py"), "random")
    (tmp_path / "bad.py").write_text("model = (")
    with pytest.raises(UserError, match="bad.py: no valid MMSegmentation config"):
        MMSegTeacher(str(tmp_path / "bad.py"), "random")


def test_offline_message_names_the_file(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    message = (
        r"cannot be downloaded \(no route to host\); fetch https://.*/fcn_r50-d8_512x512_20k_voc12aug_.*\.pth"
    )
    with pytest.raises(UserError, match=f"{message} elsewhere and set TEACHER.SEGMENTATION.WEIGHTS"):
        MMSegTeacher("fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512")


def test_shipped_config_by_name():
    teacher = MMSegTeacher("segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512", "random")
    assert teacher.info()["trained_on"] == [] and len(teacher.classes) == 150
    assert teacher.info()["grid"] == "own"
