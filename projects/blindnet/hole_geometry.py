"""Place, size and proportions of a hole, from its channel alone. N: pictures; H, W: network input."""

from __future__ import annotations

import torch
from torch import Tensor

GEOMETRY = 12  # numbers of hole_geometry


def hole_boxes(hole: Tensor) -> Tensor:
    """(N, 4) bounds of holes (N, 1, H, W) as fractions of width and height, xyxy."""
    columns, rows = hole.amax(dim=(1, 2)), hole.amax(dim=(1, 3))
    ends = []
    for line in (columns, rows):
        length = line.shape[1]
        first = line.argmax(dim=1)
        last = length - line.flip(1).argmax(dim=1)
        ends.append(torch.stack([first, last], dim=1) / length)
    return torch.stack([ends[0][:, 0], ends[1][:, 0], ends[0][:, 1], ends[1][:, 1]], dim=1)


def hole_geometry(hole: Tensor) -> Tensor:
    """(N, 12) numbers of about 1: corners, centre, sides, their logarithms, the aspect's, the share covered."""
    box = hole_boxes(hole)
    side = (box[:, 2:] - box[:, :2]).clamp(min=1e-3)
    logs = side.log()
    more = [(logs[:, :1] - logs[:, 1:]), hole.mean(dim=(2, 3))]
    return torch.cat([box, (box[:, :2] + box[:, 2:]) / 2, side, logs, *more], dim=1)
