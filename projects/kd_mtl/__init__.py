"""kd_mtl: BlitzNet learns detection and segmentation together, from partial labels and from teachers."""

from scenekd.config import register_system_defaults

from .blitznet import BlitzNet, build_model
from .config import add_kd_mtl_config

register_system_defaults("kd_mtl", add_kd_mtl_config)

__all__ = ["BlitzNet", "add_kd_mtl_config", "build_model"]
