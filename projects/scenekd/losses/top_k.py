"""Only the teacher's likeliest classes are trusted: what becomes of the tail of its distribution.

N: images; K: dense classes; k: classes kept of every pixel. Class axis 1, any spatial rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

TAILS = ("spread", "bucket")


def spread_tail(target: Tensor, k: int) -> Tensor:
    """``target`` (N, K, …) with the mass outside its k likeliest classes spread evenly over the others.

    Raises:
        ValueError: k outside 1…K.
    """
    _check(target, k)
    others = target.shape[1] - k
    if not others:
        return target
    top, index = target.topk(k, dim=1)
    rest = ((target.sum(dim=1, keepdim=True) - top.sum(dim=1, keepdim=True)).clamp(min=0) / others).expand(
        target.shape
    )
    return rest.scatter(1, index, top)


def bucket_cross_entropy(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """Cross-entropy (N, …) over k + 1 outcomes: the k likeliest classes of the target, and "any other".

    Of the tail only its mass is taught, not how it is divided: −Σ_top p_c log q_c − p_tail log Σ_other q_c. With
    k = K − 1 the bucket holds one class, and it is the full cross-entropy (so it is with k = K).

    Args:
        logits: (N, K, …), the student's. target: (N, K, …), probabilities.

    Raises:
        ValueError: k outside 1…K.
    """
    _check(target, k)
    total = logits.logsumexp(dim=1)
    top, index = target.topk(k, dim=1)
    loss = (top * (total[:, None] - logits.gather(1, index))).sum(dim=1)
    if k == target.shape[1]:
        return loss
    tail = (target.sum(dim=1) - top.sum(dim=1)).clamp(min=0)
    others = torch.ones_like(target, dtype=torch.bool).scatter(1, index, False)
    return loss + tail * (total - logits.masked_fill(~others, -torch.inf).logsumexp(dim=1))


def _check(target: Tensor, k: int) -> None:
    if not 1 <= k <= target.shape[1]:
        raise ValueError(f"top_k must be in 1…{target.shape[1]}, got {k}")
