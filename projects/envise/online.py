"""Online distillation: the student learns from the teacher's answers on a stream, then answers in its place.

N: samples of a batch; M: of an optimizer's step, N and the replayed; S: side of an image; C: classes; D, h, w: a
feature map. Free of any framework: an engine calls :meth:`OnlineDistiller.process` batch by batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor

from scenekd.errors import UserError
from scenekd.losses.distill import hinton_kd
from scenekd.optim import build_optimizer, set_lr
from scenekd.sampling import STREAM_AUDIT, draw_rng, seed_iteration

from .counts import Counts
from .options import OnlineOptions
from .phases import ANSWER, CALIBRATE, LEARN, Phases
from .replay import ReplayBuffer
from .scores import OutlierScore, build_score, fit_score, look, scores_of
from .step import Answers, AskedTeacher, ExtraLoss, StepView
from .stream import StreamBatch
from .students import StreamStudent


class OnlineDistiller:
    """Student, teacher and the state between them.

    Args:
        student: on its device; its optimizer is made here by ``cfg.SOLVER``. teacher: of the same classes.
        num_classes: C. score: default that of ``ONLINE.SCORE``. extra_loss: beside cross-entropy and distillation.

    Attributes:
        phases, replay, counts: see there. step: optimizer steps so far. passes: samples in them, each time.

    Raises:
        UserError: a value of ``ONLINE`` out of its range.
    """

    def __init__(
        self,
        student: StreamStudent,
        teacher: AskedTeacher,
        num_classes: int,
        cfg: CfgNode,
        *,
        score: OutlierScore | None = None,
        extra_loss: ExtraLoss | None = None,
    ) -> None:
        self.options = OnlineOptions.from_config(cfg)
        self.student, self.teacher = student, teacher
        self.score: OutlierScore = build_score(cfg, student) if score is None else score
        self.extra_loss, self._cfg = extra_loss, cfg
        self.optimizer = build_optimizer(student, cfg)
        self.phases = Phases(self.options, num_classes)
        self.replay = ReplayBuffer(self.options.replay_size, cfg.SEED)
        self.counts = Counts()
        self.step = self._schedule_start = self.passes = 0
        self._device = next(student.parameters()).device

    @property
    def batch_size(self) -> int:
        """How many samples are to come together next."""
        answering = self.phases.phase == ANSWER
        return self.options.answer_batch_size if answering else self.options.batch_size

    @property
    def replayed(self) -> tuple[Tensor, Tensor] | None:
        """All images that are replayed now, and the teacher's logits; None where there are none."""
        return self.replay.draw(self.replay.capacity, self.step)

    def process(self, batch: StreamBatch) -> Answers:
        """Answer a batch, learn from it where that is the phase, and let the phase change after it.

        Raises:
            UserError: a loss that is not finite, or what :class:`.phases.Phases` raises.
        """
        phase = self.phases.phase
        run = {LEARN: self._learn, CALIBRATE: self._calibrate, ANSWER: self._answer}[phase]
        answers = run(batch)
        self.counts.add(answers)
        return answers

    def _learn(self, batch: StreamBatch) -> Answers:
        images = batch.images.to(self._device).float()
        _, logits = look(self.student, images)
        if self.extra_loss is None:
            teacher_features, teacher_logits = None, self.teacher.logits(images)
        else:
            teacher_features, teacher_logits = self.teacher.features_and_logits(images)
        said = teacher_logits.detach()
        losses = {}
        for _ in range(self.options.updates):
            losses = self._update(batch, teacher_features, teacher_logits)
        self.replay.add(batch.images.cpu(), said.float().cpu())
        student, teacher = _top(logits), _top(said)
        everything, nothing = np.ones(len(batch), bool), np.full(len(batch), np.nan)
        answers = Answers(
            LEARN, batch.positions, teacher, everything, everything, student, teacher, nothing, losses
        )
        self.phases.learnt(int(batch.positions[-1]), answers.agreed, teacher)
        if self.phases.phase == CALIBRATE:
            fit_score(self.score, self.student, self.replayed)
        return answers

    def _update(
        self, batch: StreamBatch, teacher_features: Tensor | None, teacher_logits: Tensor
    ) -> dict[str, float]:
        """One step of the optimizer, on the batch and on replayed samples; the losses."""
        options, solver = self.options, self._cfg
        images, said = batch.images.to(self._device), teacher_logits.detach()
        replayed = self.replay.draw(options.replay_batch, self.step)
        if len(images) == 1 and replayed is None:
            return {}  # the variance of one sample tells nothing; the last batch of a stream may have no other
        if replayed is not None:
            images = torch.cat([images, replayed[0].to(self._device)])
            said = torch.cat([said, replayed[1].to(self._device)])
        images, labels = images.float(), said.argmax(1)
        seed_iteration(solver.SEED, self.step, 0)
        set_lr(self.optimizer, solver, self.step - self._schedule_start)
        self.student.train()
        features, logits = self.student.features_and_logits(images)
        losses: dict[str, Tensor] = {}
        if options.ce_weight:
            losses["loss_ce"] = options.ce_weight * F.cross_entropy(logits, labels)
        if options.kd_weight:
            kd = hinton_kd(logits, said, temperature=options.kd_temperature, alpha=1.0)
            losses["loss_kd"] = options.kd_weight * kd
        if self.extra_loss is not None and teacher_features is not None:
            view = StepView(images, features, logits, teacher_features, teacher_logits, labels)
            losses |= self.extra_loss(view)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            told = ", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items())
            raise UserError(f"sample {int(batch.positions[0])}: {told}; not finite, lower SOLVER.BASE_LR")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.step += 1
        self.passes += len(images)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _calibrate(self, batch: StreamBatch) -> Answers:
        images = batch.images.to(self._device).float()
        seen = look(self.student, images)
        scores, logits = scores_of(self.score, self.student, images, seen), seen[1]
        student, teacher = _top(logits), _top(self.teacher.logits(images))
        everything = np.ones(len(batch), bool)
        self.phases.calibrated(int(batch.positions[-1]), scores, teacher, student)
        return Answers(CALIBRATE, batch.positions, teacher, everything, everything, student, teacher, scores)

    def _answer(self, batch: StreamBatch) -> Answers:
        images = batch.images.to(self._device).float()
        seen = look(self.student, images)
        scores, logits = scores_of(self.score, self.student, images, seen), seen[1]
        student = _top(logits)
        unfamiliar = self.phases.is_unfamiliar(scores, student)
        draws = [draw_rng(self._cfg.SEED, int(at), STREAM_AUDIT).random() for at in batch.positions]
        audited = ~unfamiliar & (np.array(draws) < self.options.audit_share)
        asked = unfamiliar | audited
        teacher = np.full(len(batch), -1)
        if asked.any():
            teacher[asked] = _top(self.teacher.logits(images[torch.from_numpy(asked).to(self._device)]))
        # An audited answer has been given already: it stays the student's, so that the audit tells how good those are.
        answers = np.where(unfamiliar, teacher, student)
        agreed = [bool(one) for one in (student == teacher)[audited]]
        if self.phases.answered(int(batch.positions[-1]), unfamiliar, agreed):
            self.replay.renew()
            self._schedule_start = self.step
        return Answers(ANSWER, batch.positions, answers, unfamiliar, asked, student, teacher, scores)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on, in tensors and plain values."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "score": dict(self.score.fitted),
            **self.light_state_dict(),
        }

    def light_state_dict(self) -> dict[str, Any]:
        """What changes without learning: all but weights, optimizer, replay and score."""
        return {
            "phases": self.phases.state_dict(),
            "counts": self.counts.state_dict(),
            "step": self.step,
            "passes": self.passes,
            "schedule_start": self._schedule_start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` gave, in a distiller of the same configuration."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.phases.load_state_dict(state["phases"])
        self.counts.load_state_dict(state["counts"])
        self.step, self._schedule_start = int(state["step"]), int(state["schedule_start"])
        self.passes = int(state["passes"])
        self.score.load_fitted(state["score"])


def _top(logits: Tensor) -> np.ndarray:
    """(N,) int64."""
    return np.asarray(logits.detach().argmax(1).cpu().numpy())
