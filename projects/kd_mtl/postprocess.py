"""From network output to boxes: decode, threshold, NMS in each class, the best of all (SSD, ECCV 2016).

C: classes, A: anchors, k: candidates a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scenekd.boxes import clip, decode
from scenekd.nms import batched_nms


@dataclass(frozen=True)
class PostProcess:
    """Turns one image's class logits and offsets into boxes.

    Attributes:
        score_threshold: boxes score strictly higher.
        topk_pre_nms: the best boxes of each class that enter NMS.
        nms_threshold: of two boxes of one class that overlap more, the lower score goes.
        topk_per_class: the best boxes of each class after NMS.
        topk: the best boxes of the image.
    """

    score_threshold: float = 0.01
    topk_pre_nms: int = 400
    nms_threshold: float = 0.45
    topk_per_class: int = 50
    topk: int = 200

    def __call__(
        self, class_logits: Tensor, offsets: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, labels and scores of :meth:`detect`."""
        return self.detect(class_logits, offsets, anchors, size)[:3]

    def detect(
        self, class_logits: Tensor, offsets: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes, labels, scores and class probabilities: :meth:`select` without the anchors."""
        return self.select(class_logits, offsets, anchors, size)[:4]

    @torch.no_grad()
    def select(
        self, class_logits: Tensor, offsets: Tensor, anchors: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Boxes of one image, sorted by falling score.

        Args:
            class_logits: (A, C + 1), background last. offsets: (A, 4). anchors: (A, 4) xyxy pixels.
            size: (height, width) of the network input; boxes are clipped to it.

        Returns:
            boxes (N, 4) float32 xyxy pixels, labels (N,) int64, scores (N,) float32 in 0…1, the class
            probabilities (N, C + 1) float32, background last, that the scores are taken from, and (N,) int64, the
            anchor of each; N may be 0.
        """
        vectors = class_logits.float().softmax(dim=-1)  # (A, C + 1)
        probabilities = vectors[:, :-1].T  # (C, A)
        scores, index = probabilities.topk(min(self.topk_pre_nms, len(anchors)), dim=1)  # (C, k)
        keep = scores > self.score_threshold
        labels = torch.arange(len(scores), device=scores.device)[:, None].expand_as(scores)[keep]
        scores, index = scores[keep], index[keep]

        boxes = clip(decode(offsets[index].float(), anchors[index]), *size)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # a box outside the image is clipped to nothing
        boxes, labels, scores, index = boxes[inside], labels[inside], scores[inside], index[inside]

        # sorted by falling score
        kept = batched_nms(boxes, scores, labels, self.nms_threshold, len(probabilities))
        kept = kept[_rank_in_class(labels[kept], len(probabilities)) < self.topk_per_class][: self.topk]
        index = index[kept]
        return boxes[kept], labels[kept], scores[kept], vectors[index], index


def _rank_in_class(labels: Tensor, num_classes: int) -> Tensor:
    """(N,) how many earlier entries have the same label."""
    same = torch.nn.functional.one_hot(labels, num_classes)
    return same.cumsum(dim=0).gather(1, labels[:, None])[:, 0] - 1
