"""Checkpoints: one file that detectron2, MMEngine and SceneKD load, and resume state beside it.

``model_final.pth`` holds {'model': sd, 'state_dict': sd, 'config': YAML text, 'format': 1}, with the keys of
the bare network; both entries share their tensors, so the file is not doubled. ``last.pth`` holds the state
of a run for ``--resume``. All is read by :mod:`.safe_load` and written to a temporary name first.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .files import replacing
from .safe_load import load_safely

FORMAT = 1
MODEL_FINAL, MODEL_BEST, LAST = "model_final.pth", "model_best.pth", "last.pth"

logger = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What a load matched: names of the network without a value, and values without a name."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    matched: int


def atomic_save(state: Any, path: str | Path) -> None:
    """``torch.save`` to a temporary name in the same folder, then rename: a kill leaves the old file."""
    path = Path(path)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: could not be written ({error}); free disk space or set OUTPUT_DIR"
        ) from error


def model_state(net: nn.Module, config: str, *, whole: bool = True) -> dict[str, Any]:
    """The content of a model checkpoint; without ``whole`` what a network has for its training alone, below the
    names in its ``training_only``, is left out."""
    apart = () if whole else training_only(net)
    weights = {n: v.detach().cpu() for n, v in net.state_dict().items() if not n.startswith(apart)}
    return {"model": weights, "state_dict": weights, "config": config, "format": FORMAT}


def training_only(net: nn.Module) -> tuple[str, ...]:
    """How the names begin of what a network has for its training alone."""
    return tuple(f"{name}." for name in getattr(net, "training_only", ()))


def save_model(net: nn.Module, config: str, path: str | Path) -> None:
    """Write a model checkpoint of the bare network ``net``, without what is for its training alone."""
    atomic_save(model_state(net, config, whole=False), path)


def read(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth`` file without running code from it: ours, detectron2's, MMEngine's, or a bare state dict.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or it needs unpickling of arbitrary objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        state = load_safely(path)
    except OSError:
        raise
    except Exception as error:  # damage can make the unpickler fail in any way
        raise UserError(f"{path}: {_why_unreadable(error)}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a dictionary of weights")
    return state


def _why_unreadable(error: Exception) -> str:
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return (
            f"holds a {foreign[1]}, neither a tensor nor a plain value, which could run code; "
            "save it again as a plain state dict"
        )
    # torch's own advice for a broken pickle is to load it unsafely.
    known = not isinstance(error, pickle.UnpicklingError) and str(error)
    return f"not a readable checkpoint, or damaged ({known.splitlines()[0][:160] if known else 'bad pickle'})"


def weights_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: ours, detectron2's (``model``), MMEngine's (``state_dict``) or bare."""
    for key in ("model", "state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def fits(net: nn.Module, path: str | Path) -> bool:
    """Whether any tensor of the checkpoint is one of the network's, by name and shape."""
    if Path(path).suffix == ".pkl":
        return False
    own = net.state_dict()
    weights = _named_for(own, weights_of(read(path)))
    return any(name in own and own[name].shape == value.shape for name, value in weights.items())


def load_weights(net: nn.Module, path: str | Path, *, strict: bool = False) -> LoadReport:
    """Load a checkpoint file into the bare network; a partial match is logged.

    Raises:
        UserError: nothing matches, or, with ``strict``, anything differs.
    """
    weights = weights_of(read(path))
    return load_state(net, weights, str(path), strict=strict)


def load_state(
    net: nn.Module, weights: dict[str, Tensor], source: str, *, strict: bool = False
) -> LoadReport:
    """Load ``weights`` into ``net``; see :func:`load_weights`."""
    own = net.state_dict()
    apart = training_only(net)
    weights = {n: v for n, v in _named_for(own, weights).items() if n in own or not n.startswith(apart)}
    fitting = {n: v for n, v in weights.items() if n in own and own[n].shape == v.shape}
    # Files older than torch 0.4.1 lack these counts, by which nothing is computed; a model checkpoint what is for
    # training alone, which begins anew unless a run goes on.
    begun = () if strict else apart
    wanted = {n for n in own if not n.endswith(".num_batches_tracked") and not n.startswith(begun)}
    report = LoadReport(
        missing=sorted(wanted - weights.keys()),
        unexpected=sorted(weights.keys() - own.keys()),
        mismatched=sorted(n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape),
        matched=len(fitting),
    )
    partial = bool(report.missing or report.unexpected or report.mismatched)
    if not fitting or (strict and partial):
        raise UserError(
            f"{source}: weights of another network: {len(fitting)} of {len(own)} tensors fit "
            f"({_examples(report)}); give the checkpoint that belongs to this config"
        )
    net.load_state_dict(fitting, strict=False)
    if partial:
        logger.warning("%s: %d of %d tensors loaded (%s)", source, len(fitting), len(own), _examples(report))
    return report


# A student keeps another project's network below this child, and takes that project's files as they are, but for the
# heads of torchvision and MMSegmentation that serve their training alone.
_FOREIGN = "network."
_AUXILIARY = (f"{_FOREIGN}aux_classifier.", f"{_FOREIGN}auxiliary_head.")


def _named_for(own: Mapping[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under a network's own names, as far as they can be told: without the prefix of a wrapper, below
    the child that holds another project's network, and there without auxiliary heads that it lacks."""
    for prefix in ("module.", "net."):
        # A network may itself keep everything below a child called net.
        wrapped = weights and all(name.startswith(prefix) for name in weights)
        if wrapped and not own.keys() & weights.keys():
            weights = {name[len(prefix) :]: value for name, value in weights.items()}
    inner = {_FOREIGN + name: value for name, value in weights.items()}
    if own.keys() & inner.keys() and not own.keys() & weights.keys():
        weights = inner
    return {n: v for n, v in weights.items() if n in own or not n.startswith(_AUXILIARY)}


def _examples(report: LoadReport) -> str:
    parts = []
    for word, names in (
        ("missing", report.missing),
        ("other shape", report.mismatched),
        ("unknown", report.unexpected),
    ):
        if names:
            parts.append(f"{len(names)} {word}, such as {names[0]}")
    return "; ".join(parts) or "all fit"


def config_of(path: str | Path) -> str | None:
    """The YAML text of the configuration inside a checkpoint of ours, or None."""
    text = read(path).get("config")
    return text if isinstance(text, str) else None
