"""fcn_kd: small segmentation networks (and classifiers) learn from large ones by distillation."""

from scenekd.config import register_system_defaults

from .config import add_fcn_kd_config
from .registered import RegisteredStudent
from .student import SceneKDStudent, build_model, tasks_of

register_system_defaults("fcn_kd", add_fcn_kd_config)

__all__ = ["RegisteredStudent", "SceneKDStudent", "add_fcn_kd_config", "build_model", "tasks_of"]
