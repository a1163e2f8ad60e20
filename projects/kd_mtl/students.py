"""The students of this system by name, see ``MODEL.STUDENT``."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from scenekd.errors import UserError

from .blitznet import BlitzNet
from .fpn_student import SceneKDFPN
from .multitask import MultiTaskNet

STUDENTS: dict[str, type[BlitzNet] | type[SceneKDFPN]] = {"BlitzNet": BlitzNet, "SceneKDFPN": SceneKDFPN}


def build_model(cfg: CfgNode, *, pretrained: bool = True) -> MultiTaskNet:
    """What :func:`scenekd.models.build_model` calls for this system.

    Raises:
        UserError: no such student, or a value out of range.
    """
    name = cfg.MODEL.STUDENT
    if cfg.DISTILL.TEACHER == "online":
        raise UserError(
            "DISTILL.TEACHER: the students of kd_mtl learn from cached teachers; set it to cached"
        )
    if name not in STUDENTS:
        raise UserError(f"MODEL.STUDENT: {name!r}; choose one of {', '.join(STUDENTS)}")
    return STUDENTS[name].from_config(cfg, pretrained=pretrained)
