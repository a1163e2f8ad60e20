"""Class probabilities of the boxes that torchvision's detectors keep, from their own classification heads.

R: proposals or anchors of an image; N: boxes kept; L: the network's labels, background first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.ssd import SSD


class HeadProbabilities:
    """Listens to a detector's classification head, for one image at a time.

    The networks do not say which row of their head a box was taken from, but a box's score is one of the head's
    probabilities, bit for bit: it is looked up. (Of rows with the same score for a label the first is taken.)
    """

    def __init__(self, head: nn.Module) -> None:
        self._logits: Tensor | None = None
        head.register_forward_hook(self._note)

    @classmethod
    def of(cls, net: nn.Module) -> HeadProbabilities | None:
        """For a network whose scores are a softmax over classes and background (Faster and Mask R-CNN, SSD);
        None for others: RetinaNet and FCOS score each class by itself."""
        roi_heads = getattr(net, "roi_heads", None)
        if roi_heads is not None:
            return cls(roi_heads.box_predictor)
        return cls(net.head) if isinstance(net, SSD) else None

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._logits = output["cls_logits"][0] if isinstance(output, dict) else output[0]

    def rows(self, labels: Tensor, scores: Tensor) -> Tensor | None:
        """(N, L) probabilities behind each box of the image that was just asked; None where the head was not
        used for it.

        Raises:
            ValueError: a score is none of the head's probabilities.
        """
        if self._logits is None:
            return None
        probabilities, self._logits = self._logits.softmax(dim=-1), None
        if not len(labels):
            return probabilities[:0]
        distance, row = (probabilities[:, labels] - scores).abs().min(dim=0)
        if distance.max() > 1e-6:
            raise ValueError("a box's score is none of the probabilities of the network's head")
        return probabilities[row]
