"""RetinaNet, RPN and the box head of Faster R-CNN whose matches weigh as much as their box is trusted.

Σ over matched anchors or proposals of confidence · loss, plus the negatives at weight 1, divided by what detectron2
divides by (which counts anchors, images or proposals, not confidences). Images without box labels are outside matching,
sampling, loss and normaliser. See :mod:`.detectron2_matching` for the fields of ``instances``.

N: images; R: anchors of an image, over all levels; K: object classes; P: matched anchors or proposals of unsure boxes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    RetinaNet,
    StandardROIHeads,
)
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from fvcore.common.config import CfgNode
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from ..errors import UserError
from .detectron2_matching import (
    box_terms,
    confidences_of,
    label_with_confidence,
    labelled,
    rows_of,
    zero_of,
)

Losses = dict[str, Tensor]


class _Matched:
    """What detectron2's dense losses take, of the images that have box labels; and the positives of unsure boxes.

    Args:
        anchors: of each level. outputs, deltas: of each level (N, anchors of the level, …).
        labels, matched: see :func:`label_with_confidence`.
    """

    def __init__(
        self, anchors: list[Boxes], outputs: list[Tensor], labels: Any, deltas: list[Tensor], matched: Any
    ) -> None:
        rows = [i for i, own in enumerate(labels) if own is not None]
        self.num_images = len(rows)
        self.all = (outputs, deltas)
        self.outputs, self.deltas = rows_of(outputs, rows), rows_of(deltas, rows)
        self.anchors, self.labels, self.matched = (
            anchors,
            [labels[i] for i in rows],
            [matched[i] for i in rows],
        )

    def arguments(self) -> tuple[Any, ...]:
        """As the losses of detectron2 take them."""
        boxes = [both[:, :4] for both in self.matched]
        return self.anchors, self.outputs, self.labels, self.deltas, boxes

    def zeros(self, *names: str) -> Losses:
        """The losses where no image has box labels."""
        return {name: zero_of(levels) for name, levels in zip(names, self.all)}

    def find_unsure(self, positive: Tensor) -> bool:
        """Whether there are positives of a confidence other than 1; they are kept in ``unsure`` (N, R).

        Args:
            positive: (N, R) bool.
        """
        together = torch.stack(self.matched)
        self.unsure = positive & (together[..., 4] != 1)
        chosen = together[self.unsure]
        self.boxes, self.lack = chosen[:, :4], 1 - chosen[:, 4]
        return len(chosen) > 0

    def unsure_outputs(self) -> Tensor:
        """(P, …) of ``outputs``."""
        return torch.cat(self.outputs, dim=1)[self.unsure]

    def unsure_boxes(self, module: Any) -> Tensor:
        """(P,) box losses."""
        anchors = Boxes.cat(self.anchors).tensor[self.unsure.nonzero()[:, 1]]
        return box_terms(module, anchors, torch.cat(self.deltas, dim=1)[self.unsure], self.boxes)


@META_ARCH_REGISTRY.register()
class SceneKDRetinaNet(RetinaNet):
    """detectron2's RetinaNet whose positive anchors take their box's confidence, in class (focal) and box loss."""

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> Any:
        """As detectron2's, with confidences; see :func:`label_with_confidence`."""
        return label_with_confidence(self, super().label_anchors, anchors, gt_instances)

    def losses(self, *arguments: Any) -> Losses:
        """``loss_cls`` and ``loss_box_reg``; detectron2's arguments, labels and boxes by :meth:`label_anchors`."""
        batch = _Matched(*arguments)
        if not batch.num_images:
            return batch.zeros("loss_cls", "loss_box_reg")
        losses: Losses = super().losses(*batch.arguments())
        labels = torch.stack(batch.labels)
        if batch.find_unsure((labels >= 0) & (labels != self.num_classes)):
            classes = F.one_hot(labels[batch.unsure], num_classes=self.num_classes)
            focal = sigmoid_focal_loss(
                batch.unsure_outputs(), classes, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
            )
            # what detectron2 has just divided by: a moving mean of the number of positives
            too_much = {"loss_cls": focal.sum(dim=1), "loss_box_reg": batch.unsure_boxes(self)}
            for name, terms in too_much.items():
                losses[name] = losses[name] - (batch.lack * terms).sum() / self.loss_normalizer
        return losses


@PROPOSAL_GENERATOR_REGISTRY.register()
class SceneKDRPN(RPN):
    """detectron2's RPN whose positive anchors take their box's confidence, in objectness and box loss."""

    @torch.no_grad()
    def label_and_sample_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> Any:
        """As detectron2's, with confidences; see :func:`label_with_confidence`."""
        return label_with_confidence(self, super().label_and_sample_anchors, anchors, gt_instances)

    def losses(self, *arguments: Any) -> Losses:
        """``loss_rpn_cls`` and ``loss_rpn_loc``; labels and boxes by :meth:`label_and_sample_anchors`."""
        batch = _Matched(*arguments)
        if not batch.num_images:
            return batch.zeros("loss_rpn_cls", "loss_rpn_loc")
        losses: Losses = super().losses(*batch.arguments())
        if batch.find_unsure(torch.stack(batch.labels) == 1):
            normaliser = self.batch_size_per_image * batch.num_images
            objectness = F.softplus(-batch.unsure_outputs().float())  # cross-entropy of a positive
            too_much = {"loss_rpn_cls": objectness, "loss_rpn_loc": batch.unsure_boxes(self)}
            for name, terms in too_much.items():
                lack = (batch.lack * terms).sum() / normaliser
                losses[name] = losses[name] - self.loss_weight.get(name, 1.0) * lack
        return losses


class SceneKDFastRCNNOutputLayers(FastRCNNOutputLayers):
    """detectron2's box predictor whose matched proposals take their box's confidence, in class and box loss.

    Raises:
        UserError: the federated loss, which draws other classes each time it is asked.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.use_fed_loss:
            raise UserError("MODEL.ROI_BOX_HEAD.USE_FED_LOSS: True has no confidences; set it to False")

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Losses:
        """``loss_cls`` and ``loss_box_reg`` of sampled proposals, which carry ``gt_confidences`` where known."""
        losses: Losses = super().losses(predictions, proposals)
        scores, deltas = predictions
        classes = torch.cat([p.gt_classes for p in proposals])
        confidence = torch.cat([confidences_of(p, scores) for p in proposals])
        chosen = ((classes >= 0) & (classes < self.num_classes) & (confidence != 1)).nonzero()[:, 0]
        if not len(chosen):
            return losses
        lack, wanted = 1 - confidence[chosen], classes[chosen]
        own = deltas[chosen]
        if own.shape[1] > 4:  # offsets for each class
            own = own.view(len(chosen), self.num_classes, 4)[torch.arange(len(chosen)), wanted]
        anchors, boxes = (
            torch.cat(
                [(p.gt_boxes if which and p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
            )
            for which in (False, True)
        )
        terms = {
            "loss_cls": self._class_terms(scores[chosen].float(), wanted),
            "loss_box_reg": box_terms(self, anchors[chosen], own, boxes[chosen]),
        }
        for name, values in terms.items():
            too_much = (lack * values).sum() / len(classes)
            losses[name] = losses[name] - self.loss_weight.get(name, 1.0) * too_much
        return losses

    def _class_terms(self, scores: Tensor, classes: Tensor) -> Tensor:
        if not self.use_sigmoid_ce:
            return F.cross_entropy(scores, classes, reduction="none")
        wanted = F.one_hot(classes, num_classes=self.num_classes).to(scores)
        return F.binary_cross_entropy_with_logits(scores[:, :-1], wanted, reduction="none").sum(dim=1)


@ROI_HEADS_REGISTRY.register()
class SceneKDROIHeads(StandardROIHeads):
    """detectron2's box, mask and keypoint heads, with :class:`SceneKDFastRCNNOutputLayers` for the boxes."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        # The same initial weights, and the same random numbers left, as in detectron2's own heads.
        with torch.random.fork_rng(devices=[]):
            predictor = SceneKDFastRCNNOutputLayers(cfg, parts["box_head"].output_shape)
        predictor.load_state_dict(parts["box_predictor"].state_dict())
        return {**parts, "box_predictor": predictor}

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """As detectron2's; an image without box labels gives no proposal."""
        sampled = [own[:0] for own in proposals]
        for own in sampled:
            own.gt_classes = torch.zeros(0, dtype=torch.int64, device=own.proposal_boxes.device)
        present = labelled(targets)
        if present:
            chosen = super().label_and_sample_proposals(
                [proposals[i] for i in present], [targets[i] for i in present]
            )
            for i, own in zip(present, chosen):
                sampled[i] = own
        return sampled
