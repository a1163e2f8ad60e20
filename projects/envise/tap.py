"""Hearing the output of one layer while a network runs.

N: images; D, h, w: the layer's feature map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Heard:
    """What a layer said in the last forward pass."""

    def __init__(self) -> None:
        self._output: Tensor | None = None

    def keep(self, output: Tensor) -> None:
        """Remember it."""
        self._output = output

    @property
    def output(self) -> Tensor:
        """(N, D, h, w).

        Raises:
            RuntimeError: the layer did not run.
        """
        if self._output is None:
            raise RuntimeError("the layer that is listened to has not run")
        return self._output


class LayerTap:
    """Listens to one layer of a network, only while it is asked to.

    Args:
        network: as it stands. layer: path of a module in it.
        root: the layer's output is cut off from what is before it and asks for gradients: those of the logits with
            respect to it can be had from a network that is itself frozen.

    Raises:
        ValueError: no such module.
    """

    def __init__(self, network: nn.Module, layer: str, *, root: bool = False) -> None:
        try:
            self._module = (network.get_submodule(layer),)  # in a tuple: no module of whoever keeps the tap
        except AttributeError:
            raise ValueError(f"the network has no layer {layer!r}") from None
        self._root = root

    @contextmanager
    def listening(self) -> Iterator[Heard]:
        """Inside, each forward pass leaves the layer's output in what is given."""
        heard = Heard()

        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            if self._root and torch.is_grad_enabled():
                output = output.detach().requires_grad_()
            heard.keep(output)
            return output

        handle = self._module[0].register_forward_hook(hook)
        try:
            yield heard
        finally:
            handle.remove()
