"""What all teachers that are networks share: they are frozen, fed by images, and named by their weights'
hash."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from .protocol import TeacherInfo, TeacherOutput


def freeze(net: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """The network on its device, in evaluation mode, without gradients."""
    return net.to(device).eval().requires_grad_(False)


@contextmanager
def asking(net: nn.Module, amp: bool = False) -> Iterator[None]:
    """Evaluation mode, whatever was done to the network meanwhile, and no gradients; ``amp`` is for CUDA."""
    net.eval()
    with torch.inference_mode(), torch.autocast("cuda", enabled=amp):
        yield


T = TypeVar("T")


def by_size(images: Sequence[np.ndarray], ask: Callable[[list[np.ndarray]], Sequence[T]]) -> list[T]:
    """What ``ask`` says of each image, asked of images of equal size together.

    Batches of unequal sizes are padded by the frameworks, and what lies in the padding reaches, through norms
    and biases, what a network says near the border: an answer would depend on the image's company.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.shape, []).append(place)
    answers: dict[int, T] = {}
    for places in groups.values():
        answers.update(zip(places, ask([images[place] for place in places])))
    return [answers[place] for place in range(len(images))]


RANDOM = "random"  # in place of a weight file: the seeded initial weights
GRIDS = (
    "own",
    "image",
)  # of dense outputs: the network's, or the image's, to which the framework enlarges them


def check_grid(grid: str) -> None:
    """A UserError where ``grid`` is none of :data:`GRIDS`."""
    if grid not in GRIDS:
        raise UserError(f"TEACHER.SEGMENTATION.GRID: {grid!r} is none of {', '.join(GRIDS)}")


class NetworkTeacher:
    """What the zoos' teachers share: images of equal size are asked about together, without gradients.

    A constructor calls :meth:`_take` and :meth:`_describe`; ``_ask`` answers for images of one size.
    """

    net: nn.Module
    device: torch.device | str
    amp: bool
    _info: TeacherInfo

    def _take(self, net: nn.Module, device: torch.device | str, amp: bool) -> None:
        """Have the network, frozen, with its weights loaded."""
        self.net, self.device, self.amp = freeze(net, device), device, amp

    def _describe(self, zoo: str, name: str, trained_on: Sequence[str], form: str, **extra: Any) -> None:
        """Say whose the outputs are, for the manifest; see :class:`.protocol.TeacherInfo`."""
        extra |= amp_note(self.amp)
        self._info = TeacherInfo(zoo, name, weights_sha256(self.net), tuple(trained_on), form, extra)

    def info(self) -> dict[str, Any]:
        """Fields of the teacher."""
        return self._info.as_dict()

    def predict(self, images: Sequence[np.ndarray]) -> list[TeacherOutput]:
        """One output for each (H, W, 3) uint8 RGB image, at its own size."""
        with asking(self.net, self.amp):
            return by_size(images, self._ask)

    def _ask(self, images: list[np.ndarray]) -> list[TeacherOutput]:
        raise NotImplementedError


def require(framework: str, how: str) -> None:
    """A UserError that says how to install a framework, where it is not."""
    if importlib.util.find_spec(framework) is None:
        raise UserError(f"TEACHER.<TASK>.TYPE: {framework} is not installed; {how}")


def amp_note(amp: bool) -> dict[str, bool]:
    """For a manifest: outputs in mixed precision are another teacher's; without it nothing is noted."""
    return {"amp": True} if amp else {}


def to_bytes(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) uint8."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def to_tensor(image: np.ndarray, device: torch.device | str) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in 0…1."""
    return to_bytes(image).to(device).float() / 255


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor's values as float32 in numpy."""
    return tensor.detach().float().cpu().numpy()


def weights_sha256(net: nn.Module) -> str:
    """Hash of all parameters and buffers, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
