"""Ask a network about single images of any size, as its own evaluation does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from . import checkpoint
from .config import config_from_text
from .data.transforms import build_transforms
from .errors import UserError
from .models import build_model, choose_device
from .sample import Prediction, Sample


class Predictor:
    """A network with the input preparation of its configuration.

    Args:
        net: follows the model contract: ``net(images)`` in evaluation mode gives a list of predictions.
        cfg: for ``INPUT``.
        device: where ``net`` is.
    """

    def __init__(self, net: nn.Module, cfg: CfgNode, device: torch.device | str = "cpu") -> None:
        self.net, self.cfg, self.device = net, cfg, device
        self._transforms = build_transforms(cfg, train=False)

    def __call__(self, image: np.ndarray) -> Prediction:
        """The prediction for an (H, W, 3) uint8 RGB image, at its own size; the network keeps its mode."""
        pixels = self.prepare(image)
        training = self.net.training
        self.net.eval()
        try:
            with torch.inference_mode():
                prediction: Prediction = self.net(pixels.to(self.device))[0]
                return prediction.resize(*image.shape[:2])
        finally:
            self.net.train(training)

    def prepare(self, image: np.ndarray) -> Tensor:
        """The network's input for an (H, W, 3) uint8 RGB image: (1, 3, S, S) float32 RGB in 0…255, on the CPU."""
        sample = self._transforms(Sample(image=image, image_id=""), np.random.default_rng(0))
        return torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))[None].float()


def open_config(weights: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration inside a checkpoint of ours, with ``KEY VALUE`` pairs over it.

    Raises:
        UserError: no such checkpoint, or it holds none.
    """
    text = checkpoint.config_of(weights)
    if text is None:
        raise UserError(f"{weights}: holds no configuration; give one with --config-file")
    return config_from_text(text, overrides, source=str(weights))


def open_predictor(weights: str | Path, cfg: CfgNode | None = None, *, strict: bool = False) -> Predictor:
    """The network of a checkpoint, on ``MODEL.DEVICE``.

    Args:
        cfg: instead of the configuration inside the checkpoint.
        strict: refuse a checkpoint that fills a part of the network alone.

    Raises:
        UserError: no such checkpoint, no configuration, or weights of another network.
    """
    cfg = open_config(weights) if cfg is None else cfg
    device = choose_device(cfg)
    net = build_model(cfg, pretrained=False)
    checkpoint.load_weights(net, weights, strict=strict)
    return Predictor(net.to(device).eval(), cfg, device)
