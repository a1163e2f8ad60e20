"""Registers what SceneKD offers in detectron2. Two lines make it known to any detectron2 program::

    import scenekd.engines.detectron2
    scenekd.engines.detectron2.add_scenekd_config(cfg)

Then ``MODEL.META_ARCHITECTURE: BlitzNet`` works with DefaultTrainer, DefaultPredictor and detectron2's evaluators,
SceneKD's data sets work by name, and detectron2's own models learn from teachers through the components of
docs/components.md. Set ``DATALOADER.FILTER_EMPTY_ANNOTATIONS: False``, or detectron2 drops the images without boxes.
"""

from __future__ import annotations

from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.config import CfgNode

from .. import registry
from ..config import add_scenekd_config, import_systems
from ..errors import UserError
from .detectron2_data import SceneKDDatasetMapper, check_format, register_datasets, with_classes
from .detectron2_detectors import SceneKDFastRCNNOutputLayers, SceneKDRetinaNet, SceneKDROIHeads, SceneKDRPN
from .detectron2_evaluators import SceneKDHiddenObjectEvaluator
from .detectron2_masks import SceneKDMaskRCNNHead
from .detectron2_model import NativeMetaArch
from .detectron2_semantic import SceneKDPanopticFPN, SceneKDSemanticSegmentor, SceneKDSemSegFPNHead

__all__ = [
    "SceneKDDatasetMapper",
    "SceneKDFastRCNNOutputLayers",
    "SceneKDHiddenObjectEvaluator",
    "SceneKDMaskRCNNHead",
    "SceneKDPanopticFPN",
    "SceneKDROIHeads",
    "SceneKDRPN",
    "SceneKDRetinaNet",
    "SceneKDSemSegFPNHead",
    "SceneKDSemanticSegmentor",
    "add_scenekd_config",
    "register_datasets",
]


def _meta_arch(name: str, factory: Any) -> type[NativeMetaArch]:
    """A meta-architecture that builds ``factory`` from a detectron2 configuration."""

    class MetaArch(NativeMetaArch):
        def __init__(self, cfg: CfgNode) -> None:
            if "DISTILL" not in cfg:
                raise UserError(f"MODEL.META_ARCHITECTURE: {name} needs add_scenekd_config(cfg) first")
            check_format(cfg)
            register_datasets(cfg)
            super().__init__(factory.from_config(with_classes(cfg)), cfg.INPUT.FORMAT, cfg.SOLVER.MAX_ITER)

    MetaArch.__name__ = MetaArch.__qualname__ = name
    MetaArch.__doc__ = factory.__doc__
    return MetaArch


def _publish() -> None:
    import_systems()
    for kind, name, factory in registry.records():
        if kind == "model" and name not in META_ARCH_REGISTRY:
            META_ARCH_REGISTRY.register(_meta_arch(name, factory))


_publish()
