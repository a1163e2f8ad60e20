"""kd_mtl: BlitzNet or another student learns several tasks at once, from partial labels and from teachers."""

from scenekd.config import register_system_defaults

from .blitznet import BlitzNet
from .config import add_kd_mtl_config
from .fpn_student import SceneKDFPN
from .students import build_model

register_system_defaults("kd_mtl", add_kd_mtl_config)

__all__ = ["BlitzNet", "SceneKDFPN", "add_kd_mtl_config", "build_model"]
