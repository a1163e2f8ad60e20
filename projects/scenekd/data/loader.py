"""A mapper's samples as batches, through torch's loader."""

from __future__ import annotations

from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..sample import Target
from .mapper import Mapper, collate


class MappedDataset(TorchDataset[tuple[Tensor, Target]]):
    """A mapper as a map-style data set: draw indices in training, record indices in testing."""

    def __init__(self, mapper: Mapper) -> None:
        dataset = mapper.dataset
        self.mapper, self.dataset = mapper, dataset
        colours = [tuple(int(c) for c in colour) for colour in dataset.palette[: len(dataset.classes) + 1]]
        # What MMEngine's and MMSegmentation's visualisers look for.
        self.metainfo = {"classes": ("background", *dataset.classes), "palette": colours}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.mapper(index)


def make_loader(mapper: Mapper, cfg: Any, device: torch.device, **sampling: Any) -> DataLoader[Any]:
    """Batches of images and targets, see :func:`.mapper.collate`.

    Args:
        device: page-locked memory is used where it is CUDA.
        sampling: of torch's loader: a batch sampler, or a sampler and a batch size.
    """
    workers = cfg.DATALOADER.NUM_WORKERS
    return DataLoader(
        MappedDataset(mapper),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_one_thread,
        persistent_workers=workers > 0,
        **sampling,
    )


def _one_thread(_: int) -> None:
    # OpenCV would start as many threads in every worker as there are cores.
    cv2.setNumThreads(0)
