"""The layout of anchors: which maps, which shapes, where.

A: anchors; P: planes, one per map and anchor shape (all anchors of a plane have the same size and stand on a
regular grid).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

# Of the image's longer side: how far given anchors may lie from the grid that describes them.
GRID_TOLERANCE = 1e-5


@dataclass(frozen=True)
class AnchorGrid:
    """The layout of anchors: map by map, cells row by row, the shapes of a cell innermost.

    The centre of cell (i, j) of an (h, w) map lies at x = (j + 0.5) · W / w, y = (i + 0.5) · H / h. Anchors
    are not clipped.

    Attributes:
        image_size: (H, W) of the network input, in pixels.
        maps: (h, w) of every map.
        shapes: for every map the (width, height) in pixels of the anchors of one cell.
    """

    image_size: tuple[int, int]
    maps: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[tuple[float, float], ...], ...]
    _planes: dict[torch.device, Planes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.maps or len(self.maps) != len(self.shapes):
            raise ValueError(f"{len(self.maps)} maps need as many lists of shapes, got {len(self.shapes)}")
        if min(self.image_size) <= 0 or any(min(m) <= 0 for m in self.maps):
            raise ValueError("image and map sizes must be positive")
        if any(not cell or min(min(shape) for shape in cell) <= 0 for cell in self.shapes):
            raise ValueError("every map needs anchor shapes, with positive sides")

    @property
    def num_anchors(self) -> int:
        return sum(h * w * len(cell) for (h, w), cell in zip(self.maps, self.shapes))

    def anchors(self, device: torch.device | str = "cpu") -> Tensor:
        """All anchors, (A, 4) float32 (x1, y1, x2, y2)."""
        height, width = self.image_size
        parts = []
        for (h, w), cell in zip(self.maps, self.shapes):
            y = (torch.arange(h, dtype=torch.float64) + 0.5) * (height / h)
            x = (torch.arange(w, dtype=torch.float64) + 0.5) * (width / w)
            centres = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)[:, :, None]
            half = torch.tensor(cell, dtype=torch.float64) / 2
            parts.append(torch.cat([centres - half, centres + half], dim=-1).flatten(0, 2))
        return torch.cat(parts).float().to(device)

    @property
    def tolerance(self) -> float:
        """How far, in pixels, given anchors may lie from the grid that is said to describe them."""
        return GRID_TOLERANCE * max(self.image_size)

    def check_describes(self, anchors: Tensor) -> None:
        """ValueError where the first and the last cell of each map are not those of ``anchors`` (A, 4)."""
        if len(anchors) != self.num_anchors:
            raise ValueError(f"the grid has {self.num_anchors} anchors, got {len(anchors)}")
        planes = self.planes(anchors.device)
        half = torch.stack([planes.width, planes.height], dim=-1) / 2
        for row, column in ((planes.rows * 0, planes.columns * 0), (planes.rows - 1, planes.columns - 1)):
            centre = torch.stack([(column + 0.5) * planes.step_x, (row + 0.5) * planes.step_y], dim=-1)
            expected = torch.cat([centre - half, centre + half], dim=-1)
            if (anchors[planes.index(row, column)] - expected).abs().max() > self.tolerance:
                raise ValueError("the grid does not describe these anchors (order, sizes, clipping)")

    def planes(self, device: torch.device) -> Planes:
        """One entry per (map, shape), kept for each device."""
        if device not in self._planes:
            self._planes[device] = Planes.of(self, device)
        return self._planes[device]


@dataclass(frozen=True)
class Planes:
    """The (map, shape) pairs of an :class:`AnchorGrid`, each attribute (P,): sizes float64, indices int64."""

    width: Tensor
    height: Tensor
    step_x: Tensor
    step_y: Tensor
    columns: Tensor
    rows: Tensor
    first: Tensor  # index of the plane's anchor in cell (0, 0)
    stride: Tensor  # from a cell's anchor to the next cell's

    @classmethod
    def of(cls, grid: AnchorGrid, device: torch.device) -> Planes:
        sizes, indices, offset = [], [], 0
        height, width = grid.image_size
        for (h, w), cell in zip(grid.maps, grid.shapes):
            for k, (anchor_width, anchor_height) in enumerate(cell):
                sizes.append((anchor_width, anchor_height, width / w, height / h))
                indices.append((w, h, offset + k, len(cell)))
            offset += h * w * len(cell)
        return cls(
            *torch.tensor(sizes, dtype=torch.float64, device=device).unbind(1),
            *torch.tensor(indices, device=device).unbind(1),
        )

    def index(self, row: Tensor, column: Tensor, plane: Tensor | slice = slice(None)) -> Tensor:
        """Index of the anchor in cell (row, column) of ``plane``."""
        return self.first[plane] + (row * self.columns[plane] + column) * self.stride[plane]
