"""blindnet: the class of what is hidden, from the scene around it."""

from fvcore.common.config import CfgNode

from scenekd.config import register_system_defaults

from .config import add_blindnet_config
from .hooks import BlindNetHooks
from .model import BlindNet, build_model
from .registered import RegisteredMaskedContext
from .transfer import TransferNet, is_transfer

register_system_defaults("blindnet", add_blindnet_config)

HOOKS = BlindNetHooks()


def tasks_of(cfg: CfgNode) -> tuple[str, ...]:
    """The tasks whose labels it learns from."""
    return ("segmentation",) if is_transfer(cfg) and cfg.MODEL.BLINDNET.LABELS == "masks" else ("detection",)


__all__ = [
    "HOOKS",
    "BlindNet",
    "RegisteredMaskedContext",
    "TransferNet",
    "add_blindnet_config",
    "build_model",
    "tasks_of",
]
