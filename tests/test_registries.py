"""What SceneKD publishes in the frameworks' registries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ENGINES
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS, DefaultScope
from mmseg.registry import DATASETS as SEG_DATASETS
from mmseg.registry import HOOKS as SEG_HOOKS
from mmseg.registry import METRICS as SEG_METRICS
from mmseg.registry import MODELS as SEG_MODELS
from mmseg.registry import TRANSFORMS as SEG_TRANSFORMS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

import scenekd.engines.mmengine  # noqa: F401
from scenekd.errors import UserError
from scenekd.losses.soft_label import soft_label_cross_entropy

register_all_modules(init_default_scope=False)

TINY = {
    "image_size": 64,
    "num_classes": 3,
    "trunk": "resnet18",
    "trunk_width": 8,
    "block_channels": (8, 16),
    "stream_channels": 16,
    "neck_channels": 8,
    "seg_channels": 8,
}
CLASSES = ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")


def _scenes_options(scenes):
    return {"names": ("voc_seg_train",), "root": str(scenes), "classes": CLASSES}


@pytest.mark.parametrize("scope", [None, "mmseg"])
def test_names_build_ours_in_every_scope(scope, scenes):
    """A root name would lose to a framework's own of the same name, so each is built and its module looked at."""
    data = _scenes_options(scenes)
    configs = [
        (MODELS, SEG_MODELS, {"type": "BlitzNet", **TINY}),
        (MODELS, SEG_MODELS, {"type": "SoftLabelCrossEntropy", "temperature": 2.0}),
        (MODELS, SEG_MODELS, {"type": "SceneKDDataPreprocessor"}),
        (DATASETS, SEG_DATASETS, {"type": "SceneKDDataset", **data}),
        (TRANSFORMS, SEG_TRANSFORMS, {"type": "SceneKDLoadAnnotations"}),
        (TRANSFORMS, SEG_TRANSFORMS, {"type": "SceneKDLoadTeacher", "teacher": {}}),
        (
            TRANSFORMS,
            SEG_TRANSFORMS,
            {"type": "SceneKDGeometry", "transforms": [{"type": "RandomFlip", "prob": 1.0}]},
        ),
        (TRANSFORMS, SEG_TRANSFORMS, {"type": "SceneKDPack"}),
        (HOOKS, SEG_HOOKS, {"type": "SceneKDSoftTargetHook"}),
        (METRICS, SEG_METRICS, {"type": "SceneKDMetric", "evaluator": {**data, "tasks": ("bbox",)}}),
    ]
    with DefaultScope.overwrite_default_scope(scope):
        for root, seg, config in configs:
            for registry in (root, seg):
                built = registry.build(dict(config))
                assert type(built).__module__.startswith("scenekd.engines."), config["type"]
                assert type(built).__name__ == config["type"]


def test_published_names_carry_scenekd():
    """All but two of our names in the root registries start with SceneKD."""
    names = {
        name
        for registry in (MODELS, DATASETS, TRANSFORMS, HOOKS, METRICS)
        for name, module in registry.module_dict.items()
        if module.__module__.startswith(("scenekd.", "kd_mtl"))
    }
    assert {name for name in names if not name.startswith("SceneKD")} == {"BlitzNet", "SoftLabelCrossEntropy"}


# SoftLabelCrossEntropy in a decode head ---------------------------------------------------------------------


def _segmentor():
    return {
        "type": "EncoderDecoder",
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "num_stages": 4},
        "decode_head": {
            "type": "FCNHead",
            "in_channels": 64,
            "in_index": 3,
            "channels": 8,
            "num_convs": 1,
            "num_classes": 3,
            "dropout_ratio": 0.0,
            "loss_decode": [
                {"type": "CrossEntropyLoss", "loss_weight": 0.5, "avg_non_ignore": True},
                {
                    "type": "SoftLabelCrossEntropy",
                    "target_is": "logits",
                    "temperature": 2.0,
                    "loss_weight": 3.0,
                },
            ],
        },
        "test_cfg": {"mode": "whole"},
    }


def _samples(soft_size=(32, 32)):
    from mmengine.structures import PixelData

    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(3):
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 32, 32), i)))
        if i < 2:  # the third image has no teacher
            sample.gt_soft_seg = PixelData(data=torch.randn(3, *soft_size, generator=generator))
            sample.gt_soft_valid = PixelData(data=torch.rand(1, *soft_size, generator=generator) > 0.3)
        samples.append(sample)
    return samples


@pytest.mark.parametrize("soft_size", [(32, 32), (32, 24)])
def test_soft_labels_reach_a_decode_head(soft_size):
    """The head's loss is that of the function on its own logits; what a data preprocessor padded is not valid."""
    from mmseg.models.utils import resize

    from scenekd.engines.mmengine_loss import attach_soft_targets

    with DefaultScope.overwrite_default_scope("mmseg"):
        model = SEG_MODELS.build(_segmentor())
    attach_soft_targets(model)
    images, samples = torch.randn(3, 3, 32, 32), _samples(soft_size)
    losses = model(images, samples, mode="loss")
    # a second forward in training mode sees the same batch statistics
    logits = resize(model.decode_head(model.extract_feat(images)), (32, 32), mode="bilinear")
    target, valid = torch.zeros(3, 3, 32, 32), torch.zeros(3, 32, 32, dtype=torch.bool)
    for i, sample in enumerate(samples[:2]):
        target[i, :, :, : soft_size[1]] = sample.gt_soft_seg.data
        valid[i, :, : soft_size[1]] = sample.gt_soft_valid.data[0]
    wanted = 3 * soft_label_cross_entropy(logits, target, temperature=2.0, target_is="logits", valid=valid)
    assert losses["decode.loss_soft"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert losses["decode.loss_ce"] > 0
    losses["decode.loss_soft"].backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_decode_head_without_the_hook_is_refused():
    """Masks alone are no soft labels: one line names the hook."""
    loss = MODELS.build({"type": "SoftLabelCrossEntropy"})
    with pytest.raises(UserError, match="SceneKDSoftTargetHook"):
        loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), weight=None, ignore_index=255)


def test_published_loss_is_the_function():
    """With soft labels given, the published loss is the function; pixel weights multiply each pixel's loss."""
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(2, 2, 3, 4, 5, generator=generator)
    loss = MODELS.build({"type": "SoftLabelCrossEntropy", "target_is": "logits", "loss_weight": 2.0})
    wanted = 2 * soft_label_cross_entropy(logits, target, target_is="logits")
    assert loss(logits, target).item() == pytest.approx(wanted.item(), rel=1e-6)
    # weights 1 in the first image, 0 in the second: half of the first image's own mean
    weight = torch.ones(2, 4, 5)
    weight[1] = 0
    first = 2 * soft_label_cross_entropy(logits[:1], target[:1], target_is="logits")
    assert loss(logits, target, weight=weight).item() == pytest.approx(first.item() / 2, rel=1e-6)


# detectron2 -------------------------------------------------------------------------------------------------


@pytest.mark.detectron2
@pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed")
def test_two_lines_make_blitznet_a_meta_architecture(scenes, tmp_path):
    """DefaultPredictor with a plain detectron2 configuration: BGR images in, Instances and sem_seg out."""
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    import scenekd.engines.detectron2

    cfg = get_cfg()
    scenekd.engines.detectron2.add_scenekd_config(cfg)

    file = tmp_path / "config.yaml"
    file.write_text(
        'MODEL:\n  META_ARCHITECTURE: "BlitzNet"\n  DEVICE: "cpu"\n  BLITZNET: {TRUNK: "resnet18", TRUNK_WIDTH: 8, '
        'PRETRAINED: "", BLOCK_CHANNELS: "(8, 16)", STREAM_CHANNELS: 16, NECK_CHANNELS: 8, SEG_CHANNELS: 8}\n'
        f"DATASETS:\n  ROOT: {scenes}\n  CLASSES: {CLASSES}\n  TEST: ('voc_seg_val',)\nINPUT: {{SIZE: 64}}\n"
        "VERSION: 2\n"
    )
    cfg.merge_from_file(str(file))
    torch.manual_seed(0)
    predictor = DefaultPredictor(cfg)
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    output = predictor(image)
    assert output["sem_seg"].shape == (11, 48, 80)
    assert output["instances"].image_size == (48, 80)
    # INPUT.FORMAT RGB and BGR are the same picture to the network
    cfg.INPUT.FORMAT = "RGB"
    torch.manual_seed(0)
    torch.testing.assert_close(DefaultPredictor(cfg)(image)["sem_seg"], output["sem_seg"])
    from detectron2.data import DatasetCatalog, MetadataCatalog

    assert len(DatasetCatalog.get("voc_seg_val")) == 6
    assert MetadataCatalog.get("voc_seg_val").thing_classes == list(CLASSES)


@pytest.mark.detectron2
@pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed")
def test_blitznet_without_our_keys_is_refused():
    """One line says which call is missing."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    import scenekd.engines.detectron2  # noqa: F401

    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "BlitzNet"
    with pytest.raises(UserError, match=r"add_scenekd_config\(cfg\)"):
        build_model(cfg)
