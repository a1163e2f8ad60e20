"""What SceneKD publishes in the frameworks' registries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENGINES
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS, DefaultScope
from mmseg.registry import DATASETS as SEG_DATASETS
from mmseg.registry import METRICS as SEG_METRICS
from mmseg.registry import MODELS as SEG_MODELS
from mmseg.registry import TRANSFORMS as SEG_TRANSFORMS
from mmseg.utils import register_all_modules

import scenekd.engines.mmengine  # noqa: F401
from scenekd.errors import UserError

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
SEGMENTOR = {
    "backbone": {"type": "mmseg.ResNet", "depth": 18, "base_channels": 8},
    "decode_head": {
        "type": "mmseg.FCNHead",
        "in_channels": 64,
        "in_index": 3,
        "channels": 8,
        "num_classes": 3,
        "loss_decode": {"type": "mmseg.CrossEntropyLoss"},
    },
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
        (MODELS, SEG_MODELS, {"type": "SceneKDStudent", "network": "espnetv2_0.5", "num_classes": 3}),
        (MODELS, SEG_MODELS, {"type": "SceneKDMaskedContext", "trunk_width": 8, "num_classes": 3}),
        (MODELS, SEG_MODELS, {"type": "SoftLabelCrossEntropy", "temperature": 2.0}),
        (MODELS, SEG_MODELS, {"type": "SceneKDHintonLoss", "temperature": 2.0}),
        (MODELS, SEG_MODELS, {"type": "SceneKDCWDLoss", "temperature": 2.0}),
        (MODELS, SEG_MODELS, {"type": "SceneKDPairWiseLoss", "scale": 0.5}),
        (MODELS, SEG_MODELS, {"type": "SceneKDDISTLoss", "beta": 2.0}),
        (MODELS, SEG_MODELS, {"type": "SceneKDDKDLoss", "alpha": 2.0}),
        (MODELS, SEG_MODELS, {"type": "SceneKDEncoderDecoder", **SEGMENTOR}),
        (MODELS, SEG_MODELS, {"type": "SceneKDDataPreprocessor"}),
        (DATASETS, SEG_DATASETS, {"type": "SceneKDDataset", **data}),
        (TRANSFORMS, SEG_TRANSFORMS, {"type": "SceneKDLoadAnnotations"}),
        (TRANSFORMS, SEG_TRANSFORMS, {"type": "SceneKDLoadTeacher", "teacher": {}}),
        (
            TRANSFORMS,
            SEG_TRANSFORMS,
            {"type": "SceneKDGeometry", "transforms": [{"type": "RandomFlip", "prob": 1.0}]},
        ),
        (TRANSFORMS, SEG_TRANSFORMS, {"type": "SceneKDPackInputs"}),
        (METRICS, SEG_METRICS, {"type": "SceneKDMetric", "evaluator": {**data, "tasks": ("bbox",)}}),
        (METRICS, SEG_METRICS, {"type": "SceneKDHiddenObjectMetric", "classes": CLASSES}),
    ]
    with DefaultScope.overwrite_default_scope(scope):
        for root, seg, config in configs:
            for registry in (root, seg):
                built = registry.build(dict(config))
                assert type(built).__module__.startswith("scenekd.engines."), config["type"]
                assert type(built).__name__ == config["type"]


def test_the_student_learns_from_mmsegmentation_s_samples():
    """BGR bytes and a SegDataSample as its pipelines pack them; ours to the bit on RGB floats and a mask."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    torch.manual_seed(0)
    model = MODELS.build({"type": "SceneKDStudent", "network": "espnetv2_0.5", "num_classes": 3}).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    labels = torch.randint(4, (2, 64, 64), generator=generator)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in labels]
    batch = model.data_preprocessor({"inputs": list(images), "data_samples": samples}, True)
    losses = model(**batch, mode="loss")
    assert losses.keys() == {"loss_ce"}
    logits = model.net.logits(images.flip(1).float())
    logits = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear")
    assert torch.equal(losses["loss_ce"], torch.nn.functional.cross_entropy(logits, labels))
    assert model(batch["inputs"], mode="tensor")["sem_seg"].shape == (2, 4, 32, 32)


def test_published_names_carry_scenekd():
    """All but two of our names in the root registries start with SceneKD."""
    names = {
        name
        for registry in (MODELS, DATASETS, TRANSFORMS, HOOKS, METRICS)
        for name, module in registry.module_dict.items()
        if module.__module__.startswith(("scenekd.", "kd_mtl", "fcn_kd", "blindnet"))
    }
    assert {name for name in names if not name.startswith("SceneKD")} == {"BlitzNet", "SoftLabelCrossEntropy"}


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
def test_two_lines_make_the_student_a_meta_architecture(tmp_path):
    """DefaultPredictor with a network of fcn_kd: dense logits at the image's size, no instances."""
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    import scenekd.engines.detectron2

    cfg = get_cfg()
    scenekd.engines.detectron2.add_scenekd_config(cfg)
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "SceneKDStudent", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    )
    cfg.merge_from_list(
        ["MODEL.FCN_KD.NETWORK", "espnetv2_0.5", "DATASETS.CLASSES", ("cat", "dog"), "INPUT.SIZE", 64]
    )
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    output = DefaultPredictor(cfg)(np.zeros((48, 80, 3), np.uint8))
    assert output.keys() == {"sem_seg"}
    assert output["sem_seg"].shape == (3, 48, 80)


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


@pytest.mark.detectron2
@pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed")
def test_detectron2_has_the_names_of_the_documentation():
    """Each row of docs/components.md that names a registry is there, ours, and carries SceneKD but for BlitzNet."""
    from detectron2 import modeling

    import scenekd.engines.detectron2  # noqa: F401

    registries = {
        "META_ARCH": modeling.META_ARCH_REGISTRY,
        "PROPOSAL_GENERATOR": modeling.PROPOSAL_GENERATOR_REGISTRY,
        "ROI_HEADS": modeling.ROI_HEADS_REGISTRY,
        "SEM_SEG_HEADS": modeling.SEM_SEG_HEADS_REGISTRY,
    }
    table = (Path(__file__).parents[1] / "docs/components.md").read_text().split("## detectron2")[1]
    rows = [
        [cell.strip(" `") for cell in line.split("|")[2:4]] for line in table.splitlines() if line[:1] == "|"
    ]
    documented = {(kind, name) for kind, name in rows if kind in registries}
    ours = {
        (kind, name)
        for kind, registry in registries.items()
        for name, factory in registry
        if factory.__module__.startswith("scenekd.")
    }
    assert documented == ours and len(ours) >= 7
    assert {name for _, name in ours if not name.startswith("SceneKD")} == {"BlitzNet"}
