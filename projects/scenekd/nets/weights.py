"""Weights of a trunk that was trained elsewhere.

Read are torchvision's zoo, and local files: torchvision's .pth, OpenMMLab's checkpoints (``state_dict`` with
``backbone.`` names), our own checkpoints (``trunk.`` or ``network.trunk_net.`` names) and detectron2's .pkl (Caffe2's
or detectron2's names). No file can run code: torch's loader is restricted to tensors, and the .pkl reader to numpy
arrays.
"""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from ..array_pickle import load_array_pickle
from ..errors import UserError
from ..safe_load import load_safely
from .pkl_weights import trunk_arrays

_KEY = "MODEL.WEIGHTS"
_LOG = logging.getLogger(__name__)


def load_pretrained(trunk: nn.Module, name: str, source: str, *, key: str = "MODEL") -> None:
    """Load ``source`` into ``trunk``, in place.

    Args:
        name: torchvision's name of the architecture. source: ``torchvision`` or the path of a weight file.
        key: the configuration node whose TRUNK it is, for errors.

    Raises:
        UserError: the weights cannot be had, are no weights, or fit no layer; or one has another shape.
    """
    if source == "torchvision":
        state = _from_zoo(name)
    else:
        state = read_weights(source)
    own = trunk.state_dict().keys()
    if any(re.match(r"stem\.\d", entry) for entry in state) and not any(e.startswith("stem.") for e in own):
        raise UserError(
            f"{_KEY}: {source} is a ResNet with a deep stem (ResNetV1c or V1d), which {name} is not; take "
            "the weights of a plain ResNet"
        )
    if not own & state.keys():  # a whole classifier, whose trunk this is
        state = {entry.removeprefix("features."): value for entry, value in state.items()}
    _load_matching(trunk, _modern_densenet_names(state), f"{_KEY}: {source}", key)


def _load_matching(trunk: nn.Module, state: dict[str, Tensor], source: str, key: str) -> None:
    """Load the entries that ``trunk`` has; report the rest; refuse when nothing fits or a shape differs."""
    # Old files and frozen norms do not count their batches.
    own = {n: value for n, value in trunk.state_dict().items() if not n.endswith("num_batches_tracked")}
    fitting = {n: value for n, value in state.items() if n in own}
    if not fitting:
        raise UserError(f"{source} fits no layer of {type(trunk).__name__}; is it of another architecture?")
    for name, value in fitting.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(value.shape)}, the trunk's is {tuple(own[name].shape)}; "
                f"is {key}.TRUNK or TRUNK_WIDTH another one?"
            )
    trunk.load_state_dict(fitting, strict=False)
    missing = sorted(own.keys() - fitting.keys())
    if missing:
        _LOG.warning("%s lacks %d of %d entries: %s", source, len(missing), len(own), _shorten(missing))
    unused = sorted(state.keys() - own.keys())
    if unused:
        _LOG.info("%s: %d entries are not the trunk's: %s", source, len(unused), _shorten(unused))


def _shorten(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (" …" if len(keys) > 4 else "")


def _from_zoo(name: str) -> dict[str, Tensor]:
    """torchvision's IMAGENET1K_V1 weights, from its cache or downloaded and checked."""
    if name not in models.list_models(module=models):
        raise UserError(f'{_KEY}: torchvision has no weights of {name}; set it to "", or to a weight file')
    weights = models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        target = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise UserError(
            f"{_KEY}: cannot download {weights.url} ({error}); put the file at {target}, or start "
            f'from random weights with {_KEY} ""'
        ) from None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weight file, under torchvision's names as far as they can be told.

    Raises:
        UserError: no such file, not a weight file, or one that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{_KEY}: {path}: no such file; give a weight file, "torchvision" or ""')
    try:
        if path.suffix == ".pkl":
            return trunk_arrays(load_array_pickle(path.read_bytes()))
        content = load_safely(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{_KEY}: {path} holds no plain tensors ({reason}); save its state_dict alone, with torch.save"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise UserError(f"{_KEY}: {path} holds a {type(content).__name__}, not a dict of tensors")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "network.", "trunk_net.", "backbone.", "trunk."):
        inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        state = inner or state
    return state


def _modern_densenet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's DenseNet files are older than its names: ``norm.1.`` is now ``norm1.``."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key): v for key, v in state.items()}
