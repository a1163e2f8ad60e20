"""Attention transfer (AT): where a layer is active.

N: images; C: channels; H, W: size of the maps.
"""

from __future__ import annotations

from torch import Tensor

from .positions import as_pair, half_squared_distance


def attention_map(features: Tensor) -> Tensor:
    """(N, H · W): sum of the squares over channels (F²_sum of Zagoruyko and Komodakis, ICLR 2017)."""
    return features.square().sum(dim=1).flatten(1)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the attention maps, each scaled to length 1, mean over images; a scalar in 0…2 (Zagoruyko
    and Komodakis, ICLR 2017; squared, as in their code, so that it is smooth at equality).

    Their code takes the mean over positions, too: its weight of 1000 is here 1000 / (H · W).

    Args:
        student, teacher: (N, C, H, W) features of one size; C may differ. No gradient flows into the teacher's.

    Raises:
        ValueError: shapes do not fit.
    """
    student, teacher = as_pair(student, teacher, same_channels=False)
    if student.ndim != 4:
        raise ValueError(f"attention transfer needs maps (N, C, H, W), got {tuple(student.shape)}")
    return 2 * half_squared_distance(attention_map(student), attention_map(teacher)).mean()
