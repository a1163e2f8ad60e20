"""Where networks look, as a picture: heat maps over images, one column for each network.

K: images; H, W: their size; h, w: size of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .evaluation.attention_focus import energy_in_mask
from .losses.positions import resized
from .visualize_curves import png

_TILE = 1.35  # inches
_HEAT = "inferno"  # even in lightness, so that it reads without colour, too
_OPACITY = 0.65


def attention_panel(
    images: np.ndarray,
    columns: Mapping[str, np.ndarray],
    masks: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> bytes:
    """A PNG with a row for each image: the image, then each network's map over it, from 0 (dark) to the map's own
    largest value (bright). Where the object's mask is known its outline is drawn, and below each map stands the share
    of its energy inside; below the image, what a flat map would have.

    Args:
        images: (K, H, W, 3) uint8 RGB. columns: title → (K, h, w) maps ≥ 0. masks: (K, H, W) uint8: 1 on the object,
            255 where that is not known. names: K, written beside the images.

    Raises:
        ValueError: no images, or numbers of maps, masks or names that differ from theirs.
    """
    count, size = len(images), tuple(images.shape[1:3])
    given = [*columns.values(), *([] if masks is None else [masks]), *([names] if len(names) else [])]
    if not count or any(len(one) != count for one in given):
        raise ValueError(
            f"attention is drawn of as many maps, masks and names as images, {count}, at least one"
        )
    wide, high = _TILE * (1 + len(columns)) + 0.9, _TILE * count * size[0] / size[1] + 0.28 * count + 0.3
    figure = Figure(figsize=(wide, high), layout="constrained")
    grid = figure.subplots(count, 1 + len(columns), squeeze=False)
    heats = {title: _shares(maps, size) for title, maps in columns.items()}
    for k, axes in enumerate(grid):
        known = masks is not None and bool((masks[k] == 1).any())
        inside = masks[k] == 1 if masks is not None and known else None
        _tile(axes[0], images[k], None, inside)
        if inside is not None:
            axes[0].set_xlabel(f"flat {inside.mean():.0%}", fontsize=7, labelpad=2)
        if len(names):
            axes[0].set_ylabel(names[k], fontsize=8)
        for axis, (title, maps) in zip(axes[1:], columns.items()):
            _tile(axis, images[k], heats[title][k], inside)
            axis.set_xlabel(_told(maps[k], inside), fontsize=7, labelpad=2)
    for axis, title in zip(grid[0], ("image", *columns)):
        axis.set_title(title, fontsize=9)
    return png(figure)


def _shares(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(K, H, W) in 0…1 of each map's largest value; a map of zeros stays one."""
    large = resized(torch.from_numpy(maps).double()[:, None], size)[:, 0].numpy()
    top = large.max(axis=(1, 2), keepdims=True)
    return np.divide(large, top, out=np.zeros_like(large), where=top > 0)


def _told(values: np.ndarray, inside: np.ndarray | None) -> str:
    if not values.any():
        return "sees nothing"
    if inside is None:
        return ""
    share = energy_in_mask(torch.from_numpy(values)[None], torch.from_numpy(inside)[None])
    return f"{float(share):.0%} on the object"


def _tile(axis: Axes, image: np.ndarray, heat: np.ndarray | None, inside: np.ndarray | None) -> None:
    if heat is None:
        axis.imshow(image, interpolation="nearest")
    else:
        axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.imshow(heat, cmap=_HEAT, vmin=0, vmax=1, alpha=_OPACITY, interpolation="bilinear")
    if inside is not None and not inside.all():
        axis.contour(inside, levels=[0.5], colors=["white" if heat is not None else "black"], linewidths=0.9)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
