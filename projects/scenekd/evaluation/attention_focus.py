"""Does attention lie on the object? Held against its mask.

N: images; h, w: size of the map; H, W: of the mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.positions import resized


def energy_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """(N,) the share of a map's sum that lies in the object's mask (Wang et al., Score-CAM, CVPR workshops 2020, there
    for boxes); a map spread evenly gives the mask's share of the image. NaN for a map of zeros.

    Args:
        maps: (N, h, w) finite, ≥ 0; brought to the mask's size, bilinear. masks: (N, H, W) bool.

    Raises:
        ValueError: shapes do not fit, or a map holds what is negative or not finite.
    """
    values, inside = _pair(maps, masks)
    return (values * inside).sum(dim=(1, 2)) / values.sum(dim=(1, 2))


def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    """(N,) 1 where the map's largest value lies in the object's mask, else 0 (Zhang et al., IJCV 2018). Of several
    equal ones each counts by chance, so a map of zeros gives the mask's share of the image.

    Args:
        maps, masks: as of :func:`energy_in_mask`.
        tolerance: pixels of the mask's size by which the point may miss (15 in the paper), in both directions.

    Raises:
        ValueError: as of :func:`energy_in_mask`, or a negative tolerance.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    values, inside = _pair(maps, masks)
    if tolerance:
        inside = F.max_pool2d(inside[:, None], 2 * tolerance + 1, 1, tolerance)[:, 0]
    largest = (values == values.amax(dim=(1, 2), keepdim=True)).to(values)
    return (largest * inside).sum(dim=(1, 2)) / largest.sum(dim=(1, 2))


def focus_summary(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> dict[str, float]:
    """Percentages over images: ``energy_in_mask`` and its ``energy_in_mask_sd`` (n − 1; maps of zeros left out),
    ``pointing_game`` and ``pointing_game_sd``, the ``mask_share`` that an even map would reach in both, and
    ``zero_maps``."""
    energy = energy_in_mask(maps, masks)
    seen = energy[energy.isfinite()]
    hits = pointing_game(maps, masks, tolerance=tolerance)
    found = {"mask_share": float(masks.double().mean()), "zero_maps": 1 - len(seen) / max(len(energy), 1)}
    for name, values in (("energy_in_mask", seen), ("pointing_game", hits)):
        found[name] = float(values.mean()) if len(values) else math.nan
        found[f"{name}_sd"] = float(values.std()) if len(values) > 1 else math.nan
    return {name: 100 * value for name, value in found.items()}


def _pair(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Both (N, H, W) float64."""
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks) or masks.dtype != torch.bool:
        raise ValueError(
            f"maps must be (N, h, w) and masks bool (N, H, W), got {tuple(maps.shape)} and {masks.dtype} "
            f"{tuple(masks.shape)}"
        )
    values = maps.detach().double()
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError("attention maps must be finite and not negative")
    return resized(values[:, None], tuple(masks.shape[1:]))[:, 0], masks.to(values.device).double()
