"""Runs over a stream, driven by MMEngine: its Runner, a loop of ours, its hooks and visualisation back ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from ..streaming import StreamSession
from .mmengine_run import QuietRunner, make_runner, register_mmseg

NO_END = 10**9  # batches, where nobody knows


class StreamBatches:
    """A session's batches under the interface of a data loader, one pass; its length is what there are at most."""

    def __init__(self, session: StreamSession) -> None:
        self.session = self.dataset = session

    def __iter__(self) -> Iterator[Any]:
        while (batch := self.session.next_batch()) is not None:
            yield batch

    def __len__(self) -> int:
        return self.session.total or NO_END


@LOOPS.register_module()
class SceneKDStreamLoop(BaseLoop):
    """One pass over :class:`StreamBatches`; an iteration is a batch, whether the network learns from it or not.

    Args:
        dataloader: the batches.
    """

    def __init__(self, runner: Runner, dataloader: StreamBatches) -> None:
        super().__init__(runner, dataloader)
        self.session = dataloader.session
        self.iter, self.max_iters = self.session.start, len(dataloader)
        self.epoch, self.max_epochs = 0, 1

    def run(self) -> nn.Module:
        """To the end of the stream."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        for batch in self.dataloader:
            runner.call_hook("before_train_iter", batch_idx=self.iter, data_batch=batch)
            outputs = dict(self.session.process(batch))
            runner.call_hook("after_train_iter", batch_idx=self.iter, data_batch=batch, outputs=outputs)
            self.iter += 1
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model


@HOOKS.register_module()
class SceneKDStreamHook(Hook):
    """Opens and closes what a session writes."""

    def __init__(self, session: StreamSession) -> None:
        self.session = session

    def before_train(self, runner: Runner) -> None:
        """Begin the session."""
        self.session.begin()


class StreamModel(BaseModel):
    """A session's network as a Runner holds it; the session, not the Runner, takes its steps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """What the network says."""
        return self.net(inputs)


class _StreamRunner(QuietRunner):
    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """The network stays on the device of its session, where its optimizer is."""
        return model


def drive(session: StreamSession) -> None:
    """Run a session to the end of its stream."""
    register_mmseg()
    runner = make_runner(
        session.cfg,
        StreamModel(session.net),
        kind=_StreamRunner,
        # Without a known end there is no time to arrival to tell.
        default_hooks={} if session.total else {"timer": None},
        train_dataloader=StreamBatches(session),
        train_cfg={"type": "SceneKDStreamLoop"},
        optim_wrapper=OptimWrapper(session.optimizer),
        custom_hooks=[SceneKDStreamHook(session)],
        log_processor={"by_epoch": False},
    )
    try:
        runner.train()
    finally:
        session.end()
