"""The images that the scales of a quantised network come from: training images, as its evaluation shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data.catalog import assert_disjoint, load_datasets
from .data.mapper import Mapper
from .errors import UserError


def calibration_batches(cfg: Any, count: int) -> list[Tensor]:
    """``count`` images of ``DATASETS.TRAIN``, or all where there are fewer, drawn by ``cfg.SEED``, resized and not
    augmented: batches (B, 3, S, S) uint8 RGB of at most ``TEST.BATCH_SIZE``.

    Raises:
        UserError: no training set, one that shares images with ``DATASETS.TEST`` (``DATASETS.ALLOW_OVERLAP`` does not
            count here), a count below 1, or an unreadable image.
    """
    if count < 1:
        raise UserError(f"--calibrate: {count}; give at least one image")
    if not cfg.DATASETS.TRAIN:
        raise UserError(
            "DATASETS.TRAIN: names no data set, and the scales of int8 come from training images; name one"
        )
    data = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True)
    if cfg.DATASETS.TEST:
        assert_disjoint(data, load_datasets(cfg.DATASETS.TEST, cfg, train=False))
    if not len(data):
        raise UserError(f"DATASETS.TRAIN: {data.name} holds no image to calibrate with; name another")
    mapper = Mapper(data, cfg, train=False)
    chosen = np.random.default_rng(cfg.SEED).permutation(len(data))[:count]
    images = [mapper(int(index))[0] for index in chosen]
    size = cfg.TEST.BATCH_SIZE
    return [torch.stack(images[start : start + size]) for start in range(0, len(images), size)]
