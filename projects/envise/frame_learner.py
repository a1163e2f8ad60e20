"""A student that segments a video and learns it from its teacher at key frames, as JITNet does (Mullapudi et al., ICCV
2019).

H, W: size of a frame; S: side of the student's input; h, w: its logits' grid; K: dense classes, background first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.losses.distill import hinton_kd
from scenekd.losses.positions import resized
from scenekd.optim import build_optimizer, set_lr
from scenekd.predictor import Predictor
from scenekd.sampling import seed_iteration
from scenekd.teachers.live_build import OnlineTeacher

from .key_frames import KEY, FrameOptions, KeyFrames, mask_agreement


@dataclass(frozen=True)
class FrameAnswer:
    """What became of a frame.

    Attributes:
        logits: (K, h, w) float32 of whoever answered, on its own grid, which covers the frame. asked: whether the
            teacher was, whose answer it then is. updates: steps on this frame. stride: from here to the next key frame.
        seconds: of everything, and teacher_seconds: of that the teacher's answer.
        before, after: agreement of the masks, 0…1, before and after the updates; None where the teacher was not asked.
    """

    logits: Tensor
    asked: bool
    stride: int
    seconds: float
    teacher_seconds: float = 0.0
    updates: int = 0
    before: float | None = None
    after: float | None = None


class FrameLearner:
    """Student, teacher and the stride between key frames.

    Args:
        predictor: of the student, a network whose ``outputs`` have ``sem_seg``; on its device.
        teacher: of the same classes. cfg: of envise, for ``SOLVER``, ``ONLINE``'s loss, and ``SEED``.
        num_classes: K.

    Attributes:
        student_config: what the student was built from. key_frames: see there. step: optimizer steps so far.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(
        self, predictor: Predictor, teacher: OnlineTeacher, cfg: CfgNode, *, num_classes: int
    ) -> None:
        self.options = FrameOptions.from_config(cfg)
        self.student: nn.Module = predictor.net
        self.student_config = predictor.cfg
        self.teacher, self.num_classes = teacher, num_classes
        self._predictor, self._cfg, self._device = predictor, cfg, torch.device(predictor.device)
        self._loss = _Loss(cfg, self.options.object_weight)
        self.optimizer = build_optimizer(self.student, cfg)
        options = self.options
        self.key_frames = KeyFrames(options.threshold, options.min_stride, options.max_stride)
        self.step = 0

    def process(self, frame: np.ndarray, position: int) -> FrameAnswer:
        """Answer an (H, W, 3) uint8 RGB frame; a key frame is also learnt.

        Raises:
            UserError: a loss that is not finite, or one frame is too little for the student's batch norms.
        """
        start, keys = time.perf_counter(), self.key_frames
        pixels = self._predictor.prepare(frame).to(self._device)
        if not keys.is_due(position):
            logits = self._look(pixels)
            class_map(logits, pixels.shape[2:])
            return FrameAnswer(logits[0], False, keys.stride, time.perf_counter() - start)
        asked = time.perf_counter()
        said, mask = self.ask(frame, pixels.shape[2:])
        teacher_seconds = time.perf_counter() - asked
        updates, before, after = self._learn(pixels, said, mask, position)
        keys.passed(position, after)
        seconds = time.perf_counter() - start
        return FrameAnswer(said[0], True, keys.stride, seconds, teacher_seconds, updates, before, after)

    def ask(self, frame: np.ndarray, size: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
        """The teacher's logits (1, K, h, w) of the frame as it comes, and its mask at ``size``."""
        image = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))[None].to(self._device)
        said = self.teacher.logits(image.float())
        return said, class_map(said, size)

    def _learn(
        self, pixels: Tensor, said: Tensor, mask: np.ndarray, position: int
    ) -> tuple[int, float, float]:
        """Steps on a key frame; how many, and the agreement before and after them."""
        kept, updates, before = self.options.statistics == "kept", 0, -1.0
        labels = torch.from_numpy(mask).to(self._device)[None]
        while True:
            may = updates < self.options.max_updates
            logits = self._look(pixels, gradients=kept and may)
            own = class_map(logits, mask.shape)
            agreement = mask_agreement(own, mask, self.num_classes, background=self.options.background)
            before = agreement if not updates else before
            if not may or self.key_frames.is_good(agreement):
                return updates, before, agreement
            self._update(pixels, logits if kept else None, said, labels, position)
            updates += 1

    def _look(self, pixels: Tensor, *, gradients: bool = False) -> Tensor:
        """The student's logits (1, K, h, w) as it stands."""
        self.student.eval()
        with torch.set_grad_enabled(gradients):
            return _outputs(self.student, pixels)

    def _update(
        self, pixels: Tensor, logits: Tensor | None, said: Tensor, labels: Tensor, position: int
    ) -> None:
        """One step of the optimizer; ``logits`` are what the student has said with gradients, None: ask it."""
        seed_iteration(self._cfg.SEED, self.step, 0)
        set_lr(self.optimizer, self._cfg, self.step)
        if logits is None:
            logits = self._trained_look(pixels)
        loss = self._loss(logits, said, labels)
        if not torch.isfinite(loss):
            raise UserError(
                f"frame {position}: loss {float(loss.detach()):g}; not finite, lower SOLVER.BASE_LR"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def _trained_look(self, pixels: Tensor) -> Tensor:
        """With the statistics of this frame."""
        self.student.train()
        try:
            return _outputs(self.student, pixels)
        except (ValueError, UserError) as error:  # torch's own for one value a channel, or a network's
            raise UserError(
                f"{KEY}.STATISTICS: frame: one frame is too little for this student ({error}); set it to kept"
            ) from None

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on, in tensors and plain values."""
        state = {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | self.light_state_dict()

    def light_state_dict(self) -> dict[str, Any]:
        """What changes without learning."""
        return {"step": self.step, "key_frames": self.key_frames.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` gave, in a learner of the same configuration."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.key_frames.load_state_dict(state["key_frames"])
        self.step = int(state["step"])


class _Loss:
    """``ONLINE.CE_WEIGHT`` · cross-entropy with the teacher's classes, objects weighted, + ``KD_WEIGHT`` · T² · KL.

    Raises:
        UserError: both weights are 0, one is below, or T is not above.
    """

    def __init__(self, cfg: CfgNode, object_weight: float) -> None:
        node = cfg.ONLINE
        self._ce, self._kd, self._temperature = node.CE_WEIGHT, node.KD_WEIGHT, node.KD_TEMPERATURE
        self._object_weight = object_weight
        if min(self._ce, self._kd) < 0 or not self._ce + self._kd or not self._temperature > 0:
            raise UserError(
                "ONLINE: CE_WEIGHT and KD_WEIGHT must be at least 0, one above, and KD_TEMPERATURE too"
            )

    def __call__(self, logits: Tensor, said: Tensor, labels: Tensor) -> Tensor:
        """Of the student's (1, K, h, w), the teacher's on its own grid, and its classes (1, S, S); a scalar."""
        logits = resized(logits, tuple(labels.shape[1:]))
        loss = logits.new_zeros(())
        if self._ce:
            labels = labels.long()
            weights = torch.where(labels > 0, self._object_weight, 1.0)
            each = F.cross_entropy(logits, labels, reduction="none")
            loss = loss + self._ce * (weights * each).sum() / weights.sum()
        if self._kd:
            dense = resized(said, tuple(labels.shape[1:]))
            loss = loss + self._kd * hinton_kd(logits, dense, temperature=self._temperature, alpha=1.0)
        return loss


def _outputs(student: nn.Module, pixels: Tensor) -> Tensor:
    said: Tensor = student.outputs(pixels)["sem_seg"]  # type: ignore[operator]
    return said.float()


def class_map(logits: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """(1, K, h, w) logits → (height, width) uint8 class numbers, on the CPU."""
    found: np.ndarray = resized(logits, tuple(size))[0].argmax(0).to(torch.uint8).cpu().numpy()
    return found
