"""Pair-wise distillation: how alike each two positions of a map are.

N: images; C: channels; H, W: size of the maps; M: nodes, the positions after pooling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .positions import as_pair
from .reduce import safe_count


def pair_wise_kd(
    student: Tensor,
    teacher: Tensor,
    *,
    scale: float = 0.5,
    grid: int = 0,
    valid: Tensor | None = None,
) -> Tensor:
    """Σ_ij (a_ij^student − a_ij^teacher)² / M², mean over images; a scalar (Liu et al., CVPR 2019).

    a_ij is the cosine similarity of the channels at nodes i and j of the map after max-pooling. The two (M, M)
    matrices are not built where C < M, see :func:`similarity_distance`. The authors' code gives the same values, but
    holds the vectors' lengths constant in its gradient.

    Args:
        student, teacher: (N, C, H, W) logits or features of one size; C may differ. No gradient flows into the
            teacher's.
        scale: side of the pooled map over that of the map, in (0, 1]: ½ pools windows of 2 × 2, 1 does not pool.
        grid: pool to grid × grid nodes instead, whatever the size; 2 is what the authors' code makes of its scale of
            ½, on features, with a weight of 0.5.
        valid: (N, H, W) bool, the positions that count; None for all. A node of void alone is left out.

    Raises:
        ValueError: shapes do not fit, or an argument is outside its range.
    """
    values, count = pair_wise_sums(student, teacher, scale=scale, grid=grid, valid=valid)
    return values.sum() / safe_count(count.sum())


def pair_wise_sums(
    student: Tensor,
    teacher: Tensor,
    *,
    scale: float = 0.5,
    grid: int = 0,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of every image, (N,), and (N,) bool, where something is valid; as in :func:`pair_wise_kd`."""
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], got {scale}")
    if grid < 0:
        raise ValueError(f"grid must not be negative, got {grid}")
    student, teacher = as_pair(student, teacher, valid, same_channels=False)
    if student.ndim != 4:
        raise ValueError(f"pair-wise distillation needs maps (N, C, H, W), got {tuple(student.shape)}")
    nodes = [_nodes(maps, scale, grid, valid) for maps in (student, teacher)]
    if valid is None:
        count = student.new_full((len(student),), nodes[0].shape[1])
    else:
        kept = _pool(valid[:, None].to(student.dtype), scale, grid).flatten(1)
        nodes = [rows * kept[..., None] for rows in nodes]
        count = kept.sum(dim=1)
    return similarity_distance(*nodes) / safe_count(count.square()), count > 0


def similarity_distance(a: Tensor, b: Tensor) -> Tensor:
    """‖A Aᵀ − B Bᵀ‖² (Frobenius) of each matrix of a batch, (N,), without (M, M) matrices where C < M.

    With D = A − B and S = A + B, A Aᵀ − B Bᵀ = ½ (D Sᵀ + S Dᵀ), whose squared norm is
    ½ (⟨DᵀD, SᵀS⟩ + ⟨DᵀS, SᵀD⟩): products of (C, C) matrices. Unlike ‖AᵀA‖² + ‖BᵀB‖² − 2 ‖AᵀB‖², its terms vanish
    with D, so nothing large cancels near equality, and at equality it is 0 to the bit.

    Args:
        a: (N, M, C). b: (N, M, C'), channels of zeros stand in for those that one lacks.
    """
    channels = max(a.shape[2], b.shape[2])
    # Mixed precision would multiply in half precision, too coarse for a difference of similarities.
    with torch.autocast(a.device.type, enabled=False):
        if channels >= a.shape[1]:
            return torch.baddbmm(a @ a.mT, b, b.mT, alpha=-1).square().sum(dim=(1, 2))
        a, b = (F.pad(rows, (0, channels - rows.shape[2])) for rows in (a, b))
        difference, total = a - b, a + b
        mixed = difference.mT @ total
        inner = (difference.mT @ difference) * (total.mT @ total) + mixed * mixed.mT
        return inner.sum(dim=(1, 2)) / 2


def _nodes(maps: Tensor, scale: float, grid: int, valid: Tensor | None) -> Tensor:
    """(N, M, C) unit vectors."""
    if valid is not None:
        # Lower than any value that counts; a node of void alone is zeroed by the caller.
        maps = maps.masked_fill(~valid[:, None], torch.finfo(maps.dtype).min)
        pooled = _pool(maps, scale, grid)
        pooled = pooled.masked_fill(pooled == torch.finfo(maps.dtype).min, 0)
    else:
        pooled = _pool(maps, scale, grid)
    return F.normalize(pooled.flatten(2), dim=1).mT


def _pool(maps: Tensor, scale: float, grid: int) -> Tensor:
    if grid:
        return F.adaptive_max_pool2d(maps, grid)
    window = round(1 / scale)
    return maps if window == 1 else F.max_pool2d(maps, window, ceil_mode=True)
