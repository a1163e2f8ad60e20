"""Runs over a stream, driven by detectron2: a trainer of ours, its hooks and event writers."""

from __future__ import annotations

from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils.events import CommonMetricPrinter, EventStorage, TensorboardXWriter

from ..streaming import StreamSession


class SceneKDStreamTrainer(TrainerBase):
    """detectron2's trainer over batches whose number is not known before; an iteration is a batch, whether the network
    learns from it or not."""

    def __init__(self, session: StreamSession) -> None:
        super().__init__()
        self.session = session

    def train(self) -> None:  # type: ignore[override, unused-ignore]
        """From ``session.start`` to the end of the stream; hooks as in :class:`TrainerBase`."""
        self.iter = self.start_iter = self.session.start
        # Hooks that ask for the end find one that does not come; nothing of ours ends by it.
        self.max_iter = self.session.total or 2**31
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                while (batch := self.session.next_batch()) is not None:
                    self.batch = batch
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            finally:
                self.after_train()

    def run_step(self) -> None:
        """Process the batch; its numbers go to the event storage."""
        numbers = self.session.process(self.batch)
        self.storage.put_scalar("lr", self.session.optimizer.param_groups[0]["lr"], smoothing_hint=False)
        self.storage.put_scalars(**{name: float(value) for name, value in numbers.items()})


class SceneKDStreamHook(HookBase):
    """Opens and closes what a session writes."""

    def before_train(self) -> None:
        """Begin the session."""
        self.trainer.session.begin()

    def after_train(self) -> None:
        """End it, also where the run was cut."""
        self.trainer.session.end()


def drive(session: StreamSession) -> None:
    """Run a session to the end of its stream."""
    cfg = session.cfg
    trainer = SceneKDStreamTrainer(session)
    writers = [CommonMetricPrinter(session.total or None), TensorboardXWriter(str(cfg.OUTPUT_DIR))]
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            SceneKDStreamHook(),
            hooks.PeriodicWriter(writers, period=cfg.SOLVER.LOG_PERIOD),
        ]
    )
    trainer.train()
