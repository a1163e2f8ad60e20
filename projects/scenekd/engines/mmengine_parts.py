"""Loop, hook and metric through which MMEngine drives a run of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, LOOPS, METRICS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor

from ..data.records import Record
from ..errors import UserError
from ..evaluation.evaluator import Evaluator
from ..recorder import Recorder
from ..results import flatten
from .mmengine_data import evaluator_of, image_id_of


@LOOPS.register_module()
class SceneKDTrainLoop(IterBasedTrainLoop):
    """MMEngine's loop, where one iteration is one optimizer step whatever the number of accumulated parts.

    Args:
        accumulate: parts that a batch is run in.
        start: first iteration; the data loader begins there.
    """

    def __init__(self, *args: Any, accumulate: int = 1, start: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, fast_forward_on_resume=True, **kwargs)
        self.accumulate = accumulate
        self._iter = start

    def run(self) -> Any:
        """Train from ``start``."""
        # The wrapper counts parts, the loop counts steps.
        self.runner.optim_wrapper.initialize_count_status(
            self.runner.model, self._iter * self.accumulate, self._max_iters * self.accumulate
        )
        return super().run()

    def run_iter(self, data_batch: Any) -> None:
        """One optimizer step."""
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        outputs: dict[str, Tensor] = {}
        for part in split_batch(data_batch, self.accumulate):
            losses = self.runner.model.train_step(part, optim_wrapper=self.runner.optim_wrapper)
            for name, value in losses.items():
                outputs[name] = outputs.get(name, 0.0) + value.detach() / self.accumulate
        self.runner.call_hook(
            "after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1


def split_batch(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """``batch`` in equal parts."""
    if parts == 1:
        return [batch]
    size = len(batch["data_samples"]) // parts
    return [
        {"inputs": batch["inputs"][i : i + size], "data_samples": batch["data_samples"][i : i + size]}
        for i in range(0, size * parts, size)
    ]


class Bfloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, on any device; MMEngine's AmpOptimWrapper asks for an accelerator, and scales the
    losses, of which bfloat16 has no need."""

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """The forward pass of ``model``, its losses included."""
        kind = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(kind, dtype=torch.bfloat16):
            yield


@HOOKS.register_module()
class SceneKDHook(Hook):
    """Sets the learning rate, logs, saves resume state and keeps the best network, through the Recorder."""

    priority = "LOW"

    def __init__(self, recorder: Recorder, metric: SceneKDMetric | None = None) -> None:
        self.recorder, self.metric = recorder, metric
        self._averaged = contextlib.ExitStack()

    def before_train(self, runner: Runner) -> None:
        """Open the progress bar."""
        self.recorder.start()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Learning rate and random state of the step."""
        self.recorder.before_step(batch_idx)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log the step."""
        losses = {name: value for name, value in outputs.items() if name != "loss"}
        self.recorder.after_step(batch_idx, losses)
        if self.recorder.checkpoint_due(batch_idx):
            scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
            self.recorder.save(batch_idx, scaler.state_dict() if scaler else None)

    def before_val_epoch(self, runner: Runner) -> None:
        """One set of batch statistics in every process; the averaged weights, where they are kept."""
        self.recorder.experiment.sync_buffers()
        self._averaged.enter_context(self.recorder.experiment.extras.averaged())

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Log the evaluation; the network's own weights come back."""
        self._averaged.close()
        if self.metric is not None:
            self.recorder.evaluated(runner.iter, self.metric.latest)

    def after_train(self, runner: Runner) -> None:
        """Close the progress bar."""
        self.recorder.close()


@METRICS.register_module()
class SceneKDMetric(BaseMetric):
    """Our evaluator as an MMEngine metric. Records are keyed by image, so nothing is padded or truncated.

    Args:
        evaluator: of the test set; or, from a configuration, what :func:`evaluator_of` takes. It finds its images by
            their ids, so the data loader may run any data set of MMSegmentation whose files are named by them.
        framework_metrics: metrics of MMSegmentation that replace ours for their task.
    """

    # Not used, as evaluate() names its numbers itself; MMEngine warns where there is none.
    default_prefix = "scenekd"

    def __init__(
        self,
        evaluator: Evaluator | dict[str, Any],
        framework_metrics: dict[str, BaseMetric] | None = None,
    ) -> None:
        super().__init__()
        self.evaluator = evaluator = evaluator_of(**evaluator) if isinstance(evaluator, dict) else evaluator
        self.framework_metrics = framework_metrics or {}
        self.latest: dict[str, dict[str, Any]] = {}
        self._records = {record.image_id: record for record in evaluator.dataset.records}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Record each image's prediction at its original size."""
        for sample in data_samples:
            boxes, dense = sample.get("pred_instances"), sample.get("pred_sem_seg")
            masks = None if boxes is None else boxes.get("masks")
            image_id = image_id_of(sample)
            if image_id not in self._records:
                raise UserError(
                    f"SceneKDMetric: {self.evaluator.dataset.name} has no image {image_id!r}; name in evaluator=dict("
                    "names=..., root=...) the images of the data loader"
                )
            self.evaluator.add_arrays(
                image_id,
                boxes=None if boxes is None else boxes["bboxes"].cpu().numpy(),
                labels=None if boxes is None else boxes["labels"].cpu().numpy(),
                scores=None if boxes is None else boxes["scores"].cpu().numpy(),
                masks=None if masks is None else masks.cpu().numpy(),
                sem_seg=None if dense is None else dense["data"][0].cpu().numpy(),
                class_scores=sample.get("class_scores"),
            )
            self._process_framework(data_batch, sample, self._records[image_id])

    def _process_framework(self, data_batch: Any, sample: dict[str, Any], record: Record) -> None:
        metric = self.framework_metrics.get("sem_seg")
        if metric is None or not record.has_sem_seg:
            return
        mask = torch.from_numpy(self.evaluator.dataset.read_sem_seg(record))
        metric.process(data_batch, [{**sample, "gt_sem_seg": {"data": mask[None].long()}}])

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Not used: :meth:`evaluate` merges over processes by image."""
        raise RuntimeError("SceneKDMetric merges by image; call evaluate")

    def evaluate(self, size: int) -> dict[str, Any]:
        """Merge over processes and summarise; the nested results stay in ``latest``."""
        states = all_gather_object(self.evaluator.state())
        self.evaluator.merge(states)
        self.latest = self.evaluator.summarize() if self.evaluator.tasks else {}
        for task, metric in self.framework_metrics.items():
            self.latest[task] = {name.split("/")[-1]: v for name, v in metric.evaluate(size).items()}
        self.evaluator.reset()
        return dict(flatten(self.latest))
