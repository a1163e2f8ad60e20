"""Features of named layers, taken from a network while it runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line

PROBE_SIDE = 64  # height and width of the image that is shown to a network to learn its layers' channels
_LISTED = 12  # names in an error


def named_layer(net: nn.Module, path: str, entry: str) -> nn.Module:
    """The module of ``net`` at ``path``, such as ``backbone.layer4``.

    Args:
        entry: how an error begins: which entry and key names the path.

    Raises:
        UserError: there is none; it names those that come closest, or, of a small network, all.
    """
    known = {name: module for name, module in net.named_modules() if name}
    if path in known:
        return known[path]
    if len(known) <= _LISTED:
        raise UserError(f"{entry}: {type(net).__name__} has no layer {path!r}; choose {', '.join(known)}")
    close = difflib.get_close_matches(path, known, n=_LISTED, cutoff=0.5)
    close = close or [name for name in known if name.count(".") <= 1][:_LISTED]
    raise UserError(
        f"{entry}: {type(net).__name__} has no layer {path!r}; of its {len(known)} layers the closest are "
        f"{', '.join(close)}"
    )


class FeatureTaps:
    """Keeps what some layers put out while :meth:`watch` is open, until it is taken.

    Args:
        layers: modules by a name of the caller's. They are no submodules of this, and hooks are on them inside
            :meth:`watch` alone. Of a layer that runs several times the last output counts.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._found: dict[str, Any] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, outputs are kept; what was kept before is let go."""
        self._found.clear()
        with ExitStack() as stack:
            for name, module in self._layers.items():
                handle = module.register_forward_hook(self._keeper(name))
                stack.callback(handle.remove)
            yield

    def take(self) -> dict[str, Tensor]:
        """What was kept, by the caller's names, and nothing is kept any more.

        Raises:
            UserError: a layer did not run, or put out something else than a map (N, C, H, W).
        """
        found, self._found = self._found, {}
        for name in self._layers:
            if name not in found:
                raise UserError(
                    f"{name}: the layer did not run while it was watched; name one that the forward pass uses"
                )
            value = found[name]
            if not isinstance(value, Tensor) or value.ndim != 4:
                what = f"{value.ndim}-D tensor" if isinstance(value, Tensor) else type(value).__name__
                raise UserError(
                    f"{name}: the layer puts out a {what}, no map (N, C, H, W); name a layer inside it"
                )
        return found

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._found[name] = output

        return keep


def channels_of(net: nn.Module, paths: Iterable[str], entry: str) -> dict[str, int]:
    """Channels that layers put out, by their paths, found by showing the network one gray image.

    The network is in evaluation mode meanwhile, without gradients, so its buffers stay as they are.

    Raises:
        UserError: the network does not take a plain image, or a layer puts out no map.
    """
    names = {f"{entry} {path}": path for path in paths}
    taps = FeatureTaps({name: named_layer(net, path, entry) for name, path in names.items()})
    modes = {module: module.training for module in net.modules()}
    example = next(net.parameters())
    image = example.new_zeros((1, 3, PROBE_SIDE, PROBE_SIDE))
    net.eval()
    try:
        with torch.no_grad(), taps.watch():
            net(image)
        return {names[name]: value.shape[1] for name, value in taps.take().items()}
    except UserError:
        raise
    except Exception as error:  # whatever a foreign network may raise
        raise UserError(
            f"{entry}: {type(net).__name__} does not take an image of {PROBE_SIDE} × {PROBE_SIDE} alone "
            f"({first_line(error)}); add STUDENT_CHANNELS and TEACHER_CHANNELS"
        ) from None
    finally:
        for module, training in modes.items():
            module.training = training
