"""The attention-based score: does the network look for its answer where it looks for nothing else?

N: images; D: channels; C: classes; h, w: size of the last map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.attention_maps import Look, class_attention, top_wrong_class
from ..losses.attention_triplet import DISTANCES, map_distance, unit_maps
from .base import OutlierScore, head_weights

AGAINST = ("runner_up", "class_mean")


class AttentionScore(OutlierScore):
    """Of the student's attention map for its answer, A⁺, by what the attention triplet loss does to inliers.

    ``runner_up``: −d(A⁺, A⁻), A⁻ the map of its second answer. The loss drives the two apart on inliers; where they lie
    on each other, no class has a region of its own. ``class_mean``: d(A⁺, mean map of that class over the inliers); an
    answer that no inlier has is held against the mean of all. The paper's own rule is not at hand, so both are ours;
    the teacher is not asked, for then there would be nothing left to save. A network that sees evidence for its answer
    nowhere, A⁺ = 0, is as unfamiliar as one whose two maps are the same (``runner_up``).

    Args:
        head: linear, from the features' spatial mean to the logits; its weights are read at each call.
        against: see above. kind, distance: of the maps, see :mod:`scenekd.losses.attention_triplet`.

    Raises:
        ValueError: an unknown option.
    """

    name = "attention"
    needs_maps = True

    def __init__(
        self,
        head: nn.Linear,
        against: str = "runner_up",
        kind: str = "grad_cam",
        distance: str = "l2_squared",
    ) -> None:
        super().__init__()
        if against not in AGAINST or distance not in DISTANCES:
            raise ValueError(
                f"against must be one of {AGAINST} and distance one of {DISTANCES}, got {against!r} and {distance!r}"
            )
        self.against, self.kind, self.distance = against, kind, distance
        self.needs_fit = against == "class_mean"
        self._head = head

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        maps = self._maps(features, logits, labels)
        count = labels.bincount(minlength=logits.shape[1])[:, None]
        total = maps.new_zeros(len(count), maps.shape[1]).index_add_(0, labels, maps)
        return {"means": torch.where(count > 0, total / count.clamp(min=1), maps.mean(dim=0))}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        top = logits.argmax(dim=1)
        own = self._maps(features, logits, top)
        if self.against == "class_mean":
            mean = F.normalize(self.fitted["means"][top], dim=1)
            return map_distance(own, mean, self.distance)
        second = self._maps(features, logits, top_wrong_class(logits, top))
        apart = map_distance(own, second, self.distance)
        return -apart.masked_fill((own == 0).all(dim=1), 0)

    def _maps(self, features: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
        look = Look(features, logits, head_weights(self._head)[0])
        return unit_maps(class_attention(look, classes, kind=self.kind))
