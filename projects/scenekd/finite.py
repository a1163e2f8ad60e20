"""The stop at a loss or a gradient that is not finite: which term, which iteration, which images.

B: images of this process's batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .losses.reduce import alone
from .sample import Target

_NAMED = 8  # images or parameters named in the one line


def not_finite(what: str, iteration: int, images: str = "", advice: str = "") -> UserError:
    """The error of a training that diverged."""
    return UserError(
        f"{what} at iteration {iteration}{images and f' in {images}'}; "
        + (
            advice
            or "lower SOLVER.BASE_LR, add SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED True"
        )
    )


class FiniteGuard:
    """Looks at every step's losses before the backward pass, while weights and outputs are still those of the step
    (on CUDA this waits for the forward pass), and, where asked, at its gradients before they are clipped.

    The images at fault are found after the fact: the network's ``criterion(outputs, targets, ...)`` is asked again
    for each image alone, on the outputs of the step, in evaluation mode and without the other processes. A
    network without such a module has its whole batch named.

    Args:
        net: watched from now on; its outputs are kept until its losses have been looked at.

    Attributes:
        iteration: of the step being taken; set by who drives the run.
    """

    def __init__(self, net: nn.Module) -> None:
        self.iteration = 0
        self._names = {id(parameter): name for name, parameter in net.named_parameters()}
        self._images: list[str] = []
        self._call: tuple[nn.Module, tuple[Any, ...]] | None = None
        criterion = getattr(net, "criterion", None)
        if isinstance(criterion, nn.Module):
            criterion.register_forward_hook(self._keep)

    def _keep(self, criterion: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        self._call = criterion, args

    def check_losses(self, losses: Mapping[str, Tensor], targets: Sequence[Target]) -> None:
        """Look at the losses of a forward pass.

        Raises:
            UserError: one is not finite.
        """
        call, self._call = self._call, None
        self._images = [target.image_id for target in targets]
        values = torch.stack([value.detach().double() for value in losses.values()]).tolist()
        for name, value in zip(losses, values):
            if not math.isfinite(value):
                images, advice = f"the batch of {_listed(self._images)}", ""
                if call is not None:
                    images, advice = _at_fault(name, *call)
                raise not_finite(f"{name} became {value}", self.iteration, images, advice)

    def check_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Look at the gradients that ``optimizer`` is about to take; a hook before its step.

        Raises:
            UserError: one is not finite.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        if bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            return
        # A norm may overflow where every number is finite still.
        bad = [self._names[id(p)] for p in parameters if not bool(p.grad.isfinite().all())]
        if bad:
            more = f" and of {len(bad) - 1} other parameters" if len(bad) > 1 else ""
            what = f"the gradient of {bad[0]}{more} became infinite or NaN"
            raise not_finite(what, self.iteration, f"the batch of {_listed(self._images)}")


def _at_fault(name: str, criterion: nn.Module, call: tuple[Any, ...]) -> tuple[str, str]:
    """The images whose own loss ``name`` is not finite, in words, and what to do about it."""
    outputs, targets, *rest = call
    bad, diverged = [], False
    for i, target in enumerate(targets):
        own = {key: value[i : i + 1].detach() for key, value in outputs.items()}
        with _looking(criterion):
            value = criterion.forward(own, [target], *rest)[name]
        if not bool(value.isfinite()):
            bad.append(target.image_id)
            diverged |= not all(bool(output.isfinite().all()) for output in own.values())
    if not bad:
        ids = _listed([target.image_id for target in targets])
        return f"the batch of {ids}, though in none of its images alone", ""
    where = f"all {len(bad)} images" if len(bad) == len(targets) > 1 else f"image{'s' * (len(bad) > 1)}"
    if diverged:
        return f"{where} {_listed(bad)}, where the network's outputs are not finite", ""
    advice = "look at the labels and the teacher's output there"
    return f"{where} {_listed(bad)}, where the network's outputs are finite", advice


@contextmanager
def _looking(criterion: nn.Module) -> Iterator[None]:
    training = criterion.training
    criterion.eval()
    try:
        with torch.no_grad(), alone():
            yield
    finally:
        criterion.train(training)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
