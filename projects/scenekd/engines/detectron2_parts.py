"""Trainer, hook and evaluator through which detectron2 drives a run of ours."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch
from detectron2.engine import HookBase, SimpleTrainer, create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..evaluation.evaluator import Evaluator
from ..recorder import Recorder


class SceneKDTrainer(SimpleTrainer):
    """detectron2's trainer with mixed precision and accumulated parts in one step.

    Args:
        accumulate: parts that a batch is run in.
        amp: what mixed precision computes in; None for none of it.
        grad_scaler: scales the losses, as float16 needs.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        amp: torch.dtype | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.accumulate, self.amp, self.grad_scaler = accumulate, amp, grad_scaler
        self._kind = next(model.parameters()).device.type
        self.losses: dict[str, Tensor] = {}

    def before_train(self) -> None:
        """Start the loader: that draws a random number, which must not fall between a step's seed and its dropout."""
        super().before_train()
        self._data_loader_iter  # noqa: B018 - made when first asked for

    def run_step(self) -> None:
        """One optimizer step."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        size = len(data) // self.accumulate
        self.losses = {}
        self.optimizer.zero_grad()
        for part in range(self.accumulate):
            last = part == self.accumulate - 1
            with self._unsynchronised(not last):
                self._backward(data[part * size : (part + 1) * size])
        self._write_metrics(self.losses, data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _unsynchronised(self, wanted: bool) -> Any:
        # Gradients are all-reduced once a step, with the last part.
        if wanted and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _backward(self, part: list[dict[str, Any]]) -> None:
        with torch.autocast(self._kind, dtype=self.amp, enabled=self.amp is not None):
            losses = self.model(part)
        total = sum(losses.values()) / self.accumulate
        if self.grad_scaler is not None:
            total = self.grad_scaler.scale(total)
        total.backward()
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value.detach() / self.accumulate


class SceneKDHook(HookBase):
    """Sets the learning rate, logs and saves resume state through the Recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def before_train(self) -> None:
        """Open the progress bar."""
        self.recorder.start()

    def before_step(self) -> None:
        """Learning rate and random state of the step."""
        lr = self.recorder.before_step(self.trainer.iter)
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)

    def after_step(self) -> None:
        """Log the step."""
        self.recorder.after_step(self.trainer.iter, self.trainer.losses)
        if self.recorder.checkpoint_due(self.trainer.iter):
            scaler = self.trainer.grad_scaler
            self.recorder.save(self.trainer.iter, scaler.state_dict() if scaler is not None else None)

    def after_train(self) -> None:
        """Close the progress bar."""
        self.recorder.close()


def wrap_for_processes(model: nn.Module) -> nn.Module:
    """detectron2's DistributedDataParallel where there are several processes, on CPU too."""
    if comm.get_world_size() > 1 and next(model.parameters()).device.type == "cpu":
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    return create_ddp_model(model, broadcast_buffers=False)


class SceneKDEvaluator(DatasetEvaluator):
    """Our evaluator under detectron2's interface; records are keyed by image and merged over processes."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def reset(self) -> None:
        """Forget all records."""
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Record each image's prediction at its original size."""
        for item, output in zip(inputs, outputs):
            boxes, dense = output.get("instances"), output.get("sem_seg")
            self.evaluator.add_arrays(
                item["image_id"],
                boxes=None if boxes is None else boxes.pred_boxes.tensor.cpu().numpy(),
                labels=None if boxes is None else boxes.pred_classes.cpu().numpy(),
                scores=None if boxes is None else boxes.scores.cpu().numpy(),
                masks=boxes.pred_masks.cpu().numpy()
                if boxes is not None and boxes.has("pred_masks")
                else None,
                sem_seg=None if dense is None else dense.argmax(0).cpu().numpy(),
                class_scores=output.get("class_scores"),
            )

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """The results of all processes, in every process."""
        self.evaluator.merge(comm.all_gather(self.evaluator.state()))
        return self.evaluator.summarize()
