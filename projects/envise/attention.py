"""The attention triplet loss in a step of the stream: the student looks where its teacher looks."""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.attention_maps import last_linear, look_of
from scenekd.losses.attention_triplet import AttentionTripletLoss

from .step import ExtraLoss, StepView


class StreamAttention:
    """An :data:`.step.ExtraLoss`.

    Args:
        loss: with its settings. student_head, teacher_head: the last linear layers; where the logits are those of the
            feature map's mean, which is asked of the numbers, no backward pass is needed for the maps.
    """

    def __init__(
        self,
        loss: AttentionTripletLoss,
        student_head: nn.Linear | None,
        teacher_head: nn.Linear | None,
    ) -> None:
        self.loss, self._student_head, self._teacher_head = loss, student_head, teacher_head

    def __call__(self, view: StepView) -> dict[str, Tensor]:
        """``loss_attention``, of the new samples: nobody keeps the teacher's maps of replayed ones."""
        student = look_of(view.student_features, view.student_logits, self._student_head)
        teacher = look_of(view.teacher_features, view.teacher_logits, self._teacher_head)
        return {"loss_attention": self.loss(student, teacher, view.labels).loss}


def build_attention(cfg: CfgNode, student: nn.Module, teacher_head: nn.Linear | None) -> ExtraLoss | None:
    """The loss of ``ONLINE.ATTENTION``; None where its weight is 0.

    Raises:
        UserError: a value out of its range.
    """
    node = cfg.ONLINE.ATTENTION
    try:
        loss = AttentionTripletLoss(
            kind=node.KIND, distance=node.DISTANCE, margin=node.MARGIN, weight=node.WEIGHT
        )
    except ValueError as error:
        raise UserError(f"ONLINE.ATTENTION: {error}") from None
    return StreamAttention(loss, last_linear(student), teacher_head) if node.WEIGHT else None
