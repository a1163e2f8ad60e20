"""Scores of the last features: distance to what the network has seen.

N: images; D: channels of the features; C: classes; M: images of the bank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import OutlierScore, head_weights

_PAIRS_AT_ONCE = 8_000_000  # distances held at once


class Mahalanobis(OutlierScore):
    """Squared Mahalanobis distance to the nearest class mean, one covariance for all classes (Lee et al., NeurIPS
    2018; of the last layer, without moving the input and without outliers to weigh layers by).

    Args:
        shrinkage: s in 0…1: the covariance is (1 − s) Σ + s · tr(Σ) / D · 1. With s = 0, Σ must be regular.
    """

    name = "mahalanobis"

    def __init__(self, shrinkage: float = 0.01) -> None:
        super().__init__()
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must lie in 0…1, got {shrinkage}")
        self.shrinkage = shrinkage

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        means, place = class_means(features, labels)
        within = features - means[place]
        covariance = within.mT @ within / len(features)
        return {"means": means, "root": whitening_root(covariance, self.shrinkage, self.name)}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        means, root = self.fitted["means"], self.fitted["root"]
        # ‖L⁻¹(f − μ)‖² = (f − μ)ᵀ Σ⁻¹ (f − μ) with Σ = L Lᵀ
        white, centres = (
            torch.linalg.solve_triangular(root, values.mT, upper=False).mT for values in (features, means)
        )
        return torch.cdist(white, centres, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).square()


class ViM(OutlierScore):
    """Virtual-logit matching (Wang et al., CVPR 2022): length of the feature outside the inliers' principal subspace,
    scaled to the size of a logit, minus the energy of the logits.

    Args:
        head: the linear head, D → C; its weights are read when the score is fitted.
        dimensions: of the principal subspace, 1…D − 1; 0: 1000 where D ≥ 2048 and 512 where D ≥ 768, as in the paper,
            else D // 2.
    """

    name = "vim"

    def __init__(self, head: nn.Linear, dimensions: int = 0) -> None:
        super().__init__()
        self._head, width = head, head.in_features
        chosen = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        self.dimensions = dimensions or chosen
        if not 0 < self.dimensions < width:
            raise ValueError(f"dimensions must lie in 1…{width - 1}, got {dimensions}")

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        weight, bias = head_weights(self._head)
        origin = -torch.linalg.pinv(weight) @ bias  # where all logits are 0, or as near to it as may be
        centred = features - origin
        # Eigenvalues ascend: the last are the principal ones.
        _, axes = torch.linalg.eigh(centred.mT @ centred / len(centred))
        rest = axes[:, : axes.shape[1] - self.dimensions]
        length = (centred @ rest).norm(dim=1).mean()
        if not float(length) > 0:
            raise ValueError(
                f"vim: nothing of the inliers lies outside {self.dimensions} dimensions; take fewer, or more inliers"
            )
        return {"origin": origin, "rest": rest, "scale": logits.amax(dim=1).mean() / length}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        outside = ((features - self.fitted["origin"]) @ self.fitted["rest"]).norm(dim=1)
        return self.fitted["scale"] * outside - logits.logsumexp(dim=1)


class NearestNeighbours(OutlierScore):
    """Distance to the k-th nearest inlier, features scaled to length 1 (Sun et al., ICML 2022).

    Args:
        k: ≥ 1, well below the inliers of one class: beyond, the neighbours are those of other classes, and what lies
            between all classes looks most familiar. The paper takes 50 of 5000 of a class.
        bank: most inliers kept, drawn evenly over those given; 0: all.
    """

    name = "knn"

    def __init__(self, k: int = 10, bank: int = 0) -> None:
        super().__init__()
        if k < 1 or (bank and bank < k) or bank < 0:
            raise ValueError(f"k must be at least 1 and bank 0 or at least k, got {k} and {bank}")
        self.k, self.bank = k, bank

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if len(features) < self.k:
            raise ValueError(f"knn: {len(features)} inliers for k = {self.k}; give more, or lower k")
        if self.bank and self.bank < len(features):
            features = features[torch.arange(self.bank, device=features.device) * len(features) // self.bank]
        return {"bank": F.normalize(features, dim=1)}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        bank = self.fitted["bank"]
        rows = max(1, _PAIRS_AT_ONCE // len(bank))
        parts = F.normalize(features, dim=1).split(rows)
        return torch.cat([torch.cdist(part, bank).kthvalue(self.k, dim=1).values for part in parts])


def class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(K, D) means of the K classes that occur, and (N,) the row of each image's class."""
    classes, place = labels.unique(return_inverse=True)
    means = features.new_zeros(len(classes), features.shape[1]).index_add_(0, place, features)
    return means / place.bincount(minlength=len(classes))[:, None], place


def whitening_root(covariance: Tensor, shrinkage: float, what: str) -> Tensor:
    """Lower triangular L with L Lᵀ = the shrunk covariance (D, D).

    Raises:
        ValueError: it is singular.
    """
    width = len(covariance)
    spread = covariance.trace() / width
    shrunk = (1 - shrinkage) * covariance + shrinkage * spread * torch.eye(width).to(covariance)
    root, failed = torch.linalg.cholesky_ex(shrunk)
    if int(failed) or not float(spread) > 0:
        raise ValueError(
            f"{what}: the features' covariance is singular; raise shrinkage or give more inliers"
        )
    return root
