"""What all teachers that are networks share: they are frozen, fed by images, and named by their weights'
hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def freeze(net: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """The network on its device, in evaluation mode, without gradients."""
    return net.to(device).eval().requires_grad_(False)


@contextmanager
def asking(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, whatever was done to the network meanwhile, and no gradients."""
    net.eval()
    with torch.inference_mode():
        yield


def to_tensor(image: np.ndarray, device: torch.device | str) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in 0…1."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device).float() / 255


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
