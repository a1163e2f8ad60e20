"""Registers what SceneKD offers in MMEngine's root registries.

In an MMEngine or MMSegmentation config: ``custom_imports = dict(imports=['scenekd.engines.mmengine'])``.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from torch import nn

from .. import registry
from ..config import import_systems
from . import (  # noqa: F401 - register a metric; losses; loops, hooks and metric
    mmengine_hidden,
    mmengine_loss_maps,
    mmengine_parts,
    mmengine_stream,
)
from .mmengine_annotations import SceneKDLoadAnnotations
from .mmengine_data import SceneKDDataset
from .mmengine_geometry import SceneKDGeometry
from .mmengine_loss import DistillationLoss, SoftLabelCrossEntropy
from .mmengine_model import NativeModel, SceneKDDataPreprocessor
from .mmengine_pack import SceneKDPackInputs
from .mmengine_segmentor import SceneKDEncoderDecoder
from .mmengine_teacher import SceneKDLoadTeacher


def _model_class(name: str, factory: Any) -> type[nn.Module]:
    """An MMEngine model whose arguments are the network's own, beside ``data_preprocessor``."""

    class Model(NativeModel):
        def __init__(self, data_preprocessor: Any = None, **options: Any) -> None:
            super().__init__(factory(**options), data_preprocessor)

    Model.__name__ = Model.__qualname__ = name
    Model.__doc__ = factory.__doc__
    return Model


def _publish() -> None:
    import_systems()
    for kind, name, factory in registry.records():
        if kind == "model":
            MODELS.register_module(name=name, module=_model_class(name, factory), force=True)
        elif kind == "loss" and isinstance(factory, type) and issubclass(factory, DistillationLoss):
            MODELS.register_module(name=name, module=factory, force=True)
    for model in (SceneKDEncoderDecoder, SceneKDDataPreprocessor, SoftLabelCrossEntropy):
        MODELS.register_module(module=model, force=True)
    for transform in (SceneKDLoadAnnotations, SceneKDLoadTeacher, SceneKDGeometry, SceneKDPackInputs):
        TRANSFORMS.register_module(module=transform, force=True)
    DATASETS.register_module(module=SceneKDDataset, force=True)


_publish()
