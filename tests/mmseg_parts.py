"""A tiny segmentor of MMSegmentation and data samples, for the tests of SceneKDEncoderDecoder."""

from __future__ import annotations

import copy

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

import scenekd.engines.mmengine  # noqa: F401
from scenekd.sample import SourceWeights

register_all_modules(init_default_scope=False)

NAMES = ("background", "cat", "dog")
PREPROCESSOR = {
    "type": "SegDataPreProcessor",
    "mean": [120.0, 110.0, 100.0],
    "std": [60.0, 55.0, 50.0],
    "bgr_to_rgb": True,
    "size": (32, 32),
}
CROSS_ENTROPY = {"type": "CrossEntropyLoss", "loss_weight": 1.0}


def head(index=1, **options):
    """An FCNHead on one of the backbone's four outputs."""
    return {
        "type": "FCNHead",
        "in_channels": 8 * 2**index,
        "in_index": index,
        "channels": 8,
        "num_convs": 1,
        "num_classes": 3,
        "dropout_ratio": 0.1,
        "norm_cfg": {"type": "BN"},
        "loss_decode": CROSS_ENTROPY,
        **options,
    }


def build(kind="SceneKDEncoderDecoder", **options):
    """A segmentor with seeded weights."""
    config = {
        "type": kind,
        "data_preprocessor": PREPROCESSOR,
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_cfg": {"type": "BN"}},
        "decode_head": head(),
        "test_cfg": {"mode": "whole"},
        **options,
    }
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(ConfigDict(copy.deepcopy(config)))


def batch(count=3, size=32):
    """(count, 3, size, size) normalised images and samples with masks of all classes and some void."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=generator)
    samples = []
    for _ in range(count):
        mask = torch.randint(0, 3, (1, size, size), generator=generator)
        mask[:, :3] = 255
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=mask)))
    return images, samples


def without_mask(sample):
    """As SceneKDLoadAnnotations and SceneKDPackInputs give it."""
    sample.gt_sem_seg.data[:] = 255
    sample.set_metainfo({"has_sem_seg": False})


def with_soft(sample, seed, form="logits", shape=(32, 32)):
    """A teacher's output beside what the sample holds, not valid on some pixels."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, *shape, generator=generator)
    sample.gt_soft_seg = PixelData(data=values.softmax(0) if form == "probabilities" else values)
    sample.gt_soft_valid = PixelData(data=torch.rand(1, *shape, generator=generator) > 0.3)
    sample.set_metainfo({"scenekd_soft_form": form, "img_shape": shape})


def weigh(sample, ground_truth=1.0, teacher=1.0):
    """The weights that a policy gave."""
    weights = SourceWeights(segmentation_gt=ground_truth, segmentation_teacher=teacher)
    sample.set_metainfo({"scenekd_weights": weights})
