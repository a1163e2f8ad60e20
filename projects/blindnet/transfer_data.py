"""Pictures with the classes that they show; and for a linear probe their features, taken once."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from scenekd.data.mapper import Mapper, collate
from scenekd.data.presence import SOURCES, presence_of
from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.sample import Sample, Target
from scenekd.sampling import record_index

from .config import KEY
from .data import check_classes, without_masks
from .transfer import TransferNet

logger = logging.getLogger(__name__)


def prepare_data(dataset: Dataset, cfg: CfgNode, *, train: bool) -> Dataset:
    """The pictures that have labels, with the classes they show. ``DATASETS.KEEP_BOXES`` (of masks ``KEEP_SEM_SEG``)
    is the share of the training pictures that keep them; the others are left out, and counted in the log.

    Raises:
        UserError: no picture has labels, or their classes are not those of the network.
    """
    source = cfg.MODEL.BLINDNET.LABELS
    if source not in SOURCES:
        raise UserError(f"{KEY}.LABELS: {source!r} is none of {', '.join(SOURCES)}")
    check_classes(dataset, cfg)
    shown = [presence_of(dataset, record, source) for record in dataset.records]
    records = [
        dataclasses.replace(record, presence=presence)
        for record, presence in zip(without_masks(dataset.records), shown)
        if presence is not None
    ]
    if not records:
        share = "KEEP_BOXES" if source == "boxes" else "KEEP_SEM_SEG"
        raise UserError(
            f"{dataset.name}: no picture has {source}; choose {KEY}.LABELS, or raise DATASETS.{share}"
        )
    if left_out := len(dataset) - len(records):
        logger.info("%s: %d of %d pictures have no %s", dataset.name, left_out, len(dataset), source)
    return dataclasses.replace(dataset, records=records)


def build_mapper(dataset: Dataset, cfg: CfgNode, *, train: bool, **options: Any) -> Mapper:
    """The mapper of :func:`prepare_data`'s records."""
    if train and cfg.MODEL.BLINDNET.FREEZE_TRUNK:
        return ProbeMapper(dataset, cfg, train=True, **options)
    return Mapper(dataset, cfg, train=train, **options)


class ProbeMapper(Mapper):
    """Tells which picture is drawn and what it shows, without reading it: the features are there."""

    def __call__(self, index: int) -> tuple[Tensor, Target]:
        """(3, 1, 1) uint8 without meaning, and the target."""
        record = self.dataset.records[record_index(self.seed, index, len(self))]
        pixels = torch.zeros(3, 1, 1, dtype=torch.uint8)
        sample = Sample(pixels.numpy().transpose(1, 2, 0), record.image_id, presence=record.presence)
        return pixels, self._target(sample)


@torch.no_grad()
def take_features(net: TransferNet, mapper: Mapper, at_once: int) -> None:
    """Give a probe the features of every picture of ``mapper``, as evaluation shows it.

    Args:
        at_once: pictures. The batches are the same in every run, so that a resumed one has the same features.
    """
    device, training = net.classes.weight.device, net.training
    net.eval()
    features: dict[str, Tensor] = {}
    for start in range(0, len(mapper), at_once):
        images, targets = collate([mapper(i) for i in range(start, min(start + at_once, len(mapper)))])
        rows = net.features(images.to(device))
        features |= {target.image_id: row for target, row in zip(targets, rows)}
    net.train(training)
    net.take_features(features)
