"""Registers what SceneKD offers in MMEngine's root registries.

In an MMEngine or MMSegmentation config: ``custom_imports = dict(imports=['scenekd.engines.mmengine'])``.
"""

from __future__ import annotations

import importlib
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from .. import registry
from ..config import SYSTEMS
from ..losses import soft_label  # noqa: F401 - records its loss
from . import mmengine_parts  # noqa: F401 - registers loop, hook and metric
from .mmengine_model import SceneKDDataPreprocessor, SceneKDModel


def _import_systems() -> None:
    for system in SYSTEMS:
        try:
            importlib.import_module(system)
        except ModuleNotFoundError as error:
            if error.name != system:
                raise


def _model_class(name: str, factory: Any) -> type[nn.Module]:
    """An MMEngine model whose arguments are the network's own, beside ``data_preprocessor``."""

    class Model(SceneKDModel):
        def __init__(self, data_preprocessor: Any = None, **options: Any) -> None:
            super().__init__(factory(**options), data_preprocessor)

    Model.__name__ = Model.__qualname__ = name
    Model.__doc__ = factory.__doc__
    return Model


def _publish() -> None:
    _import_systems()
    MODELS.register_module(module=SceneKDDataPreprocessor, force=True)
    for kind, name, factory in registry.records():
        if kind == "model":
            MODELS.register_module(name=name, module=_model_class(name, factory), force=True)
        elif kind == "loss":
            MODELS.register_module(name=name, module=factory, force=True)


_publish()
