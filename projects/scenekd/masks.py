"""Instance masks from logits on a coarse grid: enlarged, thresholded, cropped to their boxes.

N: boxes; h, w: the grid, which covers the whole image; H, W: the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masks_from_logits(logits: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Where the bilinearly enlarged logits are above 0, at pixels whose centre lies in the box.

    Only the box's part of the image is enlarged, so the cost is that of the boxes' areas.

    Args:
        logits: (N, h, w). boxes: (N, 4) xyxy in pixels of the H × W image.

    Returns:
        (N, H, W) bool.
    """
    masks = torch.zeros((len(boxes), height, width), dtype=torch.bool, device=logits.device)
    down, across = _weights(logits, height, 1), _weights(logits, width, 2)
    # the first pixel whose centre is in the box, and the first after it
    edges = (boxes - 0.5).ceil().long().tolist()
    for mask, grid, (x1, y1, x2, y2) in zip(masks, logits.float(), edges):
        rows, columns = slice(max(y1, 0), max(y2, 0)), slice(max(x1, 0), max(x2, 0))
        mask[rows, columns] = down[rows] @ grid @ across[columns].T > 0
    return masks


def _weights(logits: Tensor, length: int, axis: int) -> Tensor:
    """(length, cells): how much of each cell along ``axis`` a pixel takes, as bilinear ``interpolate`` does."""
    identity = torch.eye(logits.shape[axis], device=logits.device)
    return F.interpolate(identity[None], size=length, mode="linear", align_corners=False)[0].T
