"""Checkpoint keys without the adapter's prefix, so that one file serves every framework."""

from __future__ import annotations

from typing import Any

from torch import nn


class BareKeys(nn.Module):
    """An adapter around ``self.net`` whose state dict is the bare network's.

    Loading accepts bare keys too, by ``load_state_dict`` and by MMEngine's own module-wise loader.
    """

    net: nn.Module

    @property
    def training_only(self) -> tuple[str, ...]:
        """What the bare network has for its training alone, see :func:`scenekd.checkpoint.training_only`."""
        return tuple(getattr(self.net, "training_only", ()))

    def _adopt(self, net: nn.Module) -> None:
        self.net = net
        self.register_load_state_dict_pre_hook(_add_prefix)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state dict of the bare network."""
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of the bare network."""
        return self.net.load_state_dict(state_dict, strict=strict, assign=assign)


def _add_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    inner = f"{prefix}net."
    for name in [n for n in state_dict if n.startswith(prefix) and not n.startswith(inner)]:
        state_dict[inner + name[len(prefix) :]] = state_dict.pop(name)
