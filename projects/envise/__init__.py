"""envise: a binary student learns from its teacher on an unlabelled stream, and asks it about what is unfamiliar."""

from scenekd.config import register_system_defaults

from .config import add_envise_config
from .session import open_stream
from .students import build_model, build_student, tasks_of

register_system_defaults("envise", add_envise_config)

__all__ = ["add_envise_config", "build_model", "build_student", "open_stream", "tasks_of"]
