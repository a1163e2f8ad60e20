"""Optimizer, learning rate and clipping, one implementation for both engines.

The frameworks differ in their defaults (detectron2 clips each parameter by itself and decays no norm layer,
MMEngine does neither; their warm-ups end one step apart), so none of theirs is used.
"""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from .errors import UserError

logger = logging.getLogger(__name__)

# Adam reads the first, SGD the others.
_MOMENTUM_FREE = {"betas": (0.0, 0.999), "momentum": 0.0, "nesterov": False}
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def parameter_groups(model: nn.Module, cfg: CfgNode) -> list[dict[str, Any]]:
    """Groups with ``lr`` and ``weight_decay``: weights, norm parameters, biases; frozen ones are left out.

    Modules may scale their learning rate by an attribute ``lr_factor`` (nearest ancestor wins). A module's own
    parameters have neither decay nor momentum where it has ``momentum_free``: a gradient of 0 leaves them as they are.
    """
    solver = cfg.SOLVER
    grouped: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    factors = {
        name: module.lr_factor for name, module in model.named_modules() if hasattr(module, "lr_factor")
    }
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decay = solver.WEIGHT_DECAY
            free = bool(getattr(module, "momentum_free", False))
            if free:
                decay = 0.0
            elif isinstance(module, _NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            elif name == "bias":
                decay = solver.WEIGHT_DECAY_BIAS
            lr = solver.BASE_LR * _nearest_factor(module_name, factors)
            grouped.setdefault((lr, decay, free), []).append(parameter)
    return [
        {"params": params, "lr": lr, "weight_decay": decay} | (_MOMENTUM_FREE if free else {})
        for (lr, decay, free), params in grouped.items()
    ]


def _nearest_factor(module_name: str, factors: dict[str, Any]) -> float:
    parts = module_name.split(".") if module_name else []
    for end in range(len(parts), -1, -1):
        prefix = ".".join(parts[:end])
        if prefix in factors:
            return float(factors[prefix])
    return 1.0


def mixed_precision(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """What ``cfg.SOLVER.AMP`` has the network compute in, or None for its own precision. float16, which needs scaled
    losses, is for CUDA alone; bfloat16 has float32's range, needs no scale, and works on CPU too.

    Raises:
        UserError: an unknown ``SOLVER.AMP.DTYPE``.
    """
    amp = cfg.SOLVER.AMP
    if amp.DTYPE not in ("float16", "bfloat16"):
        raise UserError(f"SOLVER.AMP.DTYPE: {amp.DTYPE!r}; choose float16 or bfloat16")
    if not amp.ENABLED:
        return None
    dtype: torch.dtype = getattr(torch, amp.DTYPE)
    if dtype == torch.float16 and device.type != "cuda":
        logger.warning(
            "SOLVER.AMP.ENABLED: no CUDA device for float16, training in float32; bfloat16 works here"
        )
        return None
    return dtype


def build_optimizer(
    model: nn.Module, cfg: CfgNode, before_step: Sequence[Callable[..., None]] = ()
) -> torch.optim.Optimizer:
    """The optimizer of ``cfg.SOLVER``; gradients are clipped inside its ``step``, after AMP's unscaling.

    ``before_step(optimizer, ...)`` are called there before, in their order.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(model, cfg)
    name = solver.OPTIMIZER.upper()
    optimizer: torch.optim.Optimizer
    if name == "ADAM":
        optimizer = torch.optim.Adam(groups, lr=solver.BASE_LR)
    elif name == "ADAMW":
        optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR)
    elif name == "SGD":
        optimizer = torch.optim.SGD(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
        )
    else:
        raise UserError(f"SOLVER.OPTIMIZER: unknown optimizer {name!r}; choose ADAM, ADAMW or SGD")
    for hook in before_step:
        optimizer.register_step_pre_hook(hook)
    if solver.CLIP_GRADIENTS.ENABLED:
        _clip_in_step(optimizer, solver.CLIP_GRADIENTS)
    return optimizer


def _clip_in_step(optimizer: torch.optim.Optimizer, clip: CfgNode) -> None:
    if clip.CLIP_TYPE not in ("full_model", "value"):
        raise UserError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: {clip.CLIP_TYPE!r}; choose full_model or value")

    def clip_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if clip.CLIP_TYPE == "value":
            nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
        else:
            nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_gradients)


def lr_factor(cfg: CfgNode, iteration: int) -> float:
    """Factor on every group's learning rate at ``iteration`` (0-based: the step about to be taken).

    Warm-up goes from WARMUP_FACTOR at iteration 0 to 1 at WARMUP_ITERS; the schedule runs beneath it.
    """
    solver = cfg.SOLVER
    progress = min(1.0, iteration / max(1, solver.MAX_ITER))
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        factor = solver.GAMMA ** bisect.bisect_right(sorted(solver.STEPS), iteration)
    elif name == "WarmupCosineLR":
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif name == "WarmupPolyLR":
        factor = (1.0 - progress) ** solver.POLY_POWER
    else:
        raise UserError(
            f"SOLVER.LR_SCHEDULER_NAME: {name!r}; choose WarmupMultiStepLR, WarmupCosineLR or WarmupPolyLR"
        )
    if solver.WARMUP_METHOD not in ("linear", "constant"):
        raise UserError(f"SOLVER.WARMUP_METHOD: {solver.WARMUP_METHOD!r}; choose linear or constant")
    if iteration < solver.WARMUP_ITERS:
        if solver.WARMUP_METHOD == "constant":
            return factor * solver.WARMUP_FACTOR
        share = iteration / solver.WARMUP_ITERS
        factor *= solver.WARMUP_FACTOR * (1 - share) + share
    return factor


def lr_at(cfg: CfgNode, iteration: int) -> float:
    """Learning rate of the base group at ``iteration``."""
    return cfg.SOLVER.BASE_LR * lr_factor(cfg, iteration)


def set_lr(optimizer: torch.optim.Optimizer, cfg: CfgNode, iteration: int) -> float:
    """Set every group's learning rate for ``iteration``; returns the base group's.

    A group's own rate is kept in ``initial_lr``, so the schedule has no state to save.
    """
    factor = lr_factor(cfg, iteration)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return cfg.SOLVER.BASE_LR * factor
