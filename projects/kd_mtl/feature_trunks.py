"""Trunks of the FPN student: timm's feature extractors by ``timm:<name>``, and BlitzNet's own by their names."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.nets.trunks import TRUNKS, build_trunk
from scenekd.nets.weights import load_pretrained

PREFIX = "timm:"
STRIDES = (4, 8, 16, 32)
ZOO = "timm"  # as a source of weights: timm's own, downloaded once
_KEY = "MODEL.SCENEKD_FPN"


def is_timm(name: str) -> bool:
    """Whether a trunk is timm's."""
    return name.startswith(PREFIX)


class TimmTrunk(nn.Module):
    """A model of timm's with ``features_only``, as maps at strides 4, 8, 16, 32 in (B, channels, h, w).

    Args:
        name: timm's name of the model. image_size: side of the input, which some transformers must know.
        pretrained: ``timm`` for its own weights, the path of a weight file of the whole model, or "".

    Raises:
        UserError: timm is missing, has no such model, the model has no maps at the four strides, or its weights
            cannot be had.
    """

    def __init__(self, name: str, image_size: int, pretrained: str = "") -> None:
        super().__init__()
        if importlib.util.find_spec("timm") is None:
            raise UserError(f"{_KEY}.TRUNK: timm:{name} needs timm; pip install timm, or take {TRUNKS[0]}")
        import timm

        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
            raise UserError(f"{_KEY}.TRUNK: timm has no model {name!r}{close and f'; perhaps {close}'}")
        options: dict[str, Any] = {}
        known = timm.get_pretrained_cfg(name)
        if known is not None and known.fixed_input_size:
            options["img_size"] = image_size
        if pretrained not in ("", ZOO):
            if not Path(pretrained).is_file():
                raise UserError(f"{_KEY}.PRETRAINED: {pretrained}: no such file; give timm, or a weight file")
            options["pretrained_cfg_overlay"] = {"file": pretrained}
        try:
            net: Any = timm.create_model(name, features_only=True, pretrained=bool(pretrained), **options)
        except (RuntimeError, OSError, ValueError, AssertionError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{_KEY}.TRUNK: timm:{name} at INPUT.SIZE {image_size}: {reason}") from None
        self.net = net
        strides = list(net.feature_info.reduction())
        if any(strides.count(stride) != 1 for stride in STRIDES):
            raise UserError(
                f"{_KEY}.TRUNK: timm:{name} has maps at strides {strides}; take a model with {STRIDES}"
            )
        self.image_size = image_size
        self._chosen = [strides.index(stride) for stride in STRIDES]
        self.channels = [net.feature_info.channels()[i] for i in self._chosen]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8, 16, 32 with ``self.channels`` channels."""
        maps = self.net(x)
        # Some transformers put the channels last.
        last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        return [maps[i].permute(0, 3, 1, 2) if last else maps[i] for i in self._chosen]


def build_feature_trunk(name: str, image_size: int, *, width: int, norm: str, pretrained: str) -> nn.Module:
    """A trunk with ``channels`` and maps at strides 4, 8, 16, 32.

    Args:
        name: ``timm:<name>``, or one of :data:`scenekd.nets.trunks.TRUNKS`, for which ``width`` and ``norm`` count.
        pretrained: see :class:`TimmTrunk` and :func:`scenekd.nets.weights.load_pretrained`; "" for none.
    """
    if is_timm(name):
        return TimmTrunk(name.removeprefix(PREFIX), image_size, pretrained)
    if name not in TRUNKS:
        raise UserError(f"{_KEY}.TRUNK: {name!r}; choose timm:<name>, or one of {', '.join(TRUNKS)}")
    trunk = build_trunk(name, width=width, norm=norm, key=_KEY)
    if pretrained:
        load_feature_trunk(trunk, name, pretrained)
    return trunk


def load_feature_trunk(trunk: nn.Module, name: str, source: str) -> None:
    """Load weights into a trunk that is there, in place; ``source`` as in :func:`build_feature_trunk`."""
    if isinstance(trunk, TimmTrunk):
        # timm fits the names of a whole model to the features' when it builds them.
        loaded = TimmTrunk(name.removeprefix(PREFIX), trunk.image_size, source)
        trunk.load_state_dict(loaded.state_dict())
    else:
        load_pretrained(trunk, name, source, key=_KEY)


@torch.no_grad()
def map_sizes(trunk: nn.Module, image_size: int) -> list[int]:
    """Cells a side of the trunk's maps, as it is: trunks round in different ways.

    Raises:
        UserError: the image is too small for the trunk.
    """
    mode = trunk.training
    try:
        maps: Sequence[Tensor] = trunk.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"INPUT.SIZE: {image_size} does not fit the trunk ({reason})") from None
    finally:
        trunk.train(mode)
    return [x.shape[-1] for x in maps]
