"""envise: a binary student learns from its teacher on an unlabelled stream, and asks it about what is unfamiliar."""

from scenekd.config import register_system_defaults

from .config import add_envise_config
from .students import build_student

register_system_defaults("envise", add_envise_config)

__all__ = ["add_envise_config", "build_student"]
