"""Class probabilities of the boxes that detectors keep, from their own classification heads: torchvision's, and
detectron2's, which are alike in this.

R: proposals or anchors of an image; N: boxes kept; L: the network's labels, background first.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.ssd import SSD


class HeadProbabilities:
    """Listens to a detector's classification head, for the images of one batch.

    The networks do not say which row of their head a box was taken from, but a box's score is one of the head's
    probabilities, bit for bit: it is looked up. (Of rows with the same score for a label the first is taken.)

    Args:
        head: gives (R, L) logits of all images' proposals first, or a dict with ``cls_logits`` (images, R, L).
        roi_heads: what calls such a head of proposals, to tell how many are each image's; None: one image's.
        proposals: place of the list of proposals among its arguments.
    """

    def __init__(self, head: nn.Module, roi_heads: nn.Module | None = None, proposals: int = 1) -> None:
        self._proposals = proposals
        self._logits: deque[Tensor] = deque()
        self._counts: list[int] | None = None
        head.register_forward_hook(self._note)
        if roi_heads is not None:
            roi_heads.register_forward_pre_hook(self._count)

    @classmethod
    def of(cls, net: nn.Module) -> HeadProbabilities | None:
        """For a network whose scores are a softmax over classes and background (Faster and Mask R-CNN, SSD);
        None for others: RetinaNet and FCOS score each class by itself."""
        roi_heads = getattr(net, "roi_heads", None)
        if roi_heads is not None:
            return cls(roi_heads.box_predictor, roi_heads)
        return cls(net.head) if isinstance(net, SSD) else None

    def _count(self, module: nn.Module, inputs: Any) -> None:
        self._counts = [len(proposals) for proposals in inputs[self._proposals]]

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, dict):
            self._logits = deque(output["cls_logits"])
        else:
            self._logits = deque(output[0].split(self._counts or len(output[0])))

    def rows(self, labels: Tensor, scores: Tensor) -> Tensor | None:
        """(N, L) probabilities behind each box of the next image of the batch that was just asked; None where the
        head was not used for it.

        Raises:
            ValueError: a score is none of the head's probabilities.
        """
        if not self._logits:
            return None
        probabilities = self._logits.popleft().softmax(dim=-1)
        if not len(labels):
            return probabilities[:0]
        distance, row = (probabilities[:, labels] - scores).abs().min(dim=0)
        if distance.max() > 1e-6:
            raise ValueError("a box's score is none of the probabilities of the network's head")
        return probabilities[row]
