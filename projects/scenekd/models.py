"""Build the network of a configuration, whichever system it belongs to."""

from __future__ import annotations

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from . import checkpoint
from .config import import_system
from .errors import UserError
from .sample import Prediction, Target

# Values of MODEL.WEIGHTS that name no file: random weights, and the trunk's from torchvision's zoo.
NO_FILE = ("", "torchvision")


def build_model(cfg: CfgNode, *, pretrained: bool = True) -> nn.Module:
    """The network of ``cfg.SYSTEM``, freshly initialised from ``cfg.SEED``: equal seeds give equal weights.

    ``pretrained=False`` skips the trunk's own weights, where a checkpoint is loaded next.
    """
    system = import_system(cfg.SYSTEM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.SEED)
        return system.build_model(cfg, pretrained=pretrained)


def load_initial_weights(net: nn.Module, source: str) -> None:
    """Load ``MODEL.WEIGHTS`` where it is a file: a checkpoint of the whole network, else weights of its trunk.

    Raises:
        UserError: no such file, not readable, or it fits neither.
    """
    if source in NO_FILE:
        return
    load_trunk = getattr(net, "load_trunk", None)
    if load_trunk is not None and not checkpoint.fits(net, source):
        load_trunk(source)
    else:
        checkpoint.load_weights(net, source)


def predict(net: nn.Module, images: Tensor, targets: list[Target] | None) -> list[Prediction]:
    """``net(images)`` in evaluation mode; a network with ``wants_targets`` is told the targets too: those that look at
    the labels of what can be seen, as a control."""
    if getattr(net, "wants_targets", False):
        told: list[Prediction] = net(images, targets)
        return told
    found: list[Prediction] = net(images)
    return found


def average_buffers(net: nn.Module) -> None:
    """Average batch statistics over processes, so that all evaluate, and one saves, the same network."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for buffer in net.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def choose_device(cfg: CfgNode) -> torch.device:
    """The device of ``MODEL.DEVICE``; ``auto`` takes CUDA where there is one."""
    name = cfg.MODEL.DEVICE
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"MODEL.DEVICE: {name!r} is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("MODEL.DEVICE: cuda is asked for, but torch sees no GPU; set MODEL.DEVICE cpu")
    return device
