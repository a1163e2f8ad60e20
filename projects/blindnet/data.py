"""From a data set with boxes to cases with one hidden object each.

Training draws an image, augments it, and hides one of its objects; all of it follows from (seed, draw index).
Evaluation takes every object once: :func:`enumerate_objects` makes one record of each, ``<image id>#<place>``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.data.holes import areas
from scenekd.data.mapper import Mapper, no_crowd
from scenekd.data.records import Dataset, Record
from scenekd.errors import UserError
from scenekd.sample import Sample
from scenekd.sampling import STREAM_HIDE, STREAM_PERMUTE, draw_rng
from scenekd.teachers.options import our_classes

from .augmentation import build_augmentation, to_input
from .config import KEY
from .hiding import Hider, case_rng
from .truth import scene_types

logger = logging.getLogger(__name__)


def prepare_data(dataset: Dataset, cfg: CfgNode, *, train: bool) -> Dataset:
    """The data set without images in which nothing can be hidden, which are counted in the log. For evaluation, and
    with ``DRAW object`` for training, one record for each object that can be hidden.

    Raises:
        UserError: nothing can be hidden in any image, or its classes are not those of the network.
    """
    check_classes(dataset, cfg)
    if train and cfg.MODEL.BLINDNET.PERMUTE_TARGETS:
        if learns_masks(cfg):
            raise UserError(f"{KEY}.PERMUTE_TARGETS: masks are not permuted; set {KEY}.PIXEL_TARGET boxes")
        dataset = permute_labels(dataset, cfg.SEED)
    hider = Hider.from_config(cfg)
    cases = enumerate_objects(dataset, hider, cfg.INPUT.SIZE, cfg.MODEL.BLINDNET.AUGMENT.LETTERBOX)
    pictures = {case.hidden.picture for case in cases if case.hidden is not None}
    left_out = len(dataset) - len(pictures)
    if not cases:
        raise UserError(
            f"{dataset.name}: no image has an object that can be hidden; raise {KEY}.MASK.MAX_AREA, or choose a data "
            "set with boxes"
        )
    if left_out:
        logger.info(
            "%s: %d of %d images have no object that can be hidden (%s.MASK), and are left out",
            dataset.name,
            left_out,
            len(dataset),
            KEY,
        )
    if train and cfg.MODEL.BLINDNET.MASK.DRAW == "image":
        cases = [record for record in dataset.records if record.image_id in pictures]
    if train and learns_masks(cfg):
        if not any(record.has_sem_seg for record in cases):
            raise UserError(f"{dataset.name}: has no masks, which {KEY}.PIXEL_TARGET wants; set it to boxes")
    else:
        cases = list(without_masks(cases))
    return dataclasses.replace(dataset, records=cases)


def check_classes(dataset: Dataset, cfg: CfgNode) -> None:
    """Refuse a data set whose classes are not the network's."""
    if dataset.classes != our_classes(cfg):
        raise UserError(
            f"{dataset.name}: has {len(dataset.classes)} classes, the network {len(our_classes(cfg))}; "
            "set DATASETS.CLASSES to the data set's"
        )


def learns_masks(cfg: CfgNode) -> bool:
    """Whether the network learns from the masks of the data set."""
    return bool(cfg.MODEL.BLINDNET.NETWORK == "pixel_id" and cfg.MODEL.BLINDNET.PIXEL_TARGET == "masks")


def permute_labels(dataset: Dataset, seed: int) -> Dataset:
    """The data set with the classes of its objects dealt out anew among all of them, crowds left out; each class is as
    common as it was, and no picture tells of it any more."""
    boxed = [record for record in dataset.records if record.labels is not None]
    pool = [record.labels[no_crowd(record)] for record in boxed if record.labels is not None]
    dealt = draw_rng(seed, 0, STREAM_PERMUTE).permutation(
        np.concatenate(pool) if pool else np.zeros(0, np.int64)
    )
    records, start = [], 0
    for record in dataset.records:
        if record.labels is not None:
            labels, single = record.labels.copy(), no_crowd(record)
            labels[single] = dealt[start : start + single.sum()]
            start += int(single.sum())
            record = dataclasses.replace(record, labels=labels)
        records.append(record)
    return dataclasses.replace(dataset, records=records)


def enumerate_objects(dataset: Dataset, hider: Hider, side: int, letterbox: bool = False) -> list[Record]:
    """One record for each object that can be hidden, in the order of the data set.

    Args:
        side: of the network's square input, on which areas are measured. letterbox: whether pictures are padded to a
            square, not stretched.
    """
    scenes = scene_types(dataset)
    cases = []
    for record in dataset.records:
        if record.boxes is None or record.labels is None or not len(record.boxes):
            continue
        boxes = to_input(record.boxes, record.size(), side, letterbox)
        difficult = np.zeros(len(boxes), bool) if record.difficult is None else record.difficult
        single = no_crowd(record)
        hidden = hider.cases(
            record.image_id,
            boxes[single],
            record.labels[single],
            difficult[single],
            (side, side),
            places=np.flatnonzero(single),
            scene=scenes.get(record.image_id, ""),
        )
        cases += [dataclasses.replace(record, image_id=case.name, hidden=case) for case in hidden]
    return cases


def without_masks(records: Iterable[Record]) -> Iterator[Record]:
    """The records without their semantic masks, which most networks do not learn from, and which are slow to read."""
    for record in records:
        yield dataclasses.replace(record, sem_seg_file=None, segmentation=None)


def class_shares(dataset: Dataset, by: str = "objects") -> np.ndarray:
    """(C,) share of each class among all objects of a data set, each picture counted once.

    Args:
        by: ``objects``, or ``pixels``: of the area of their boxes, relative to their pictures.
    """
    total = np.zeros(len(dataset.classes))
    pictures = {record.file_name: record for record in dataset.records}
    for record in pictures.values():
        if record.boxes is None or record.labels is None:
            continue
        single = no_crowd(record)
        weights = np.ones(int(single.sum()))
        if by == "pixels":
            weights = areas(record.boxes[single]) / float(np.prod(record.size()))
        np.add.at(total, record.labels[single], weights)
    return total / max(total.sum(), 1e-12)


class HidingMapper(Mapper):
    """Maps a draw to a picture with one object hidden, whose fourth channel is the hole.

    Args:
        dataset: of :func:`prepare_data`.
        options: of :class:`scenekd.data.mapper.Mapper`.
    """

    def __init__(self, dataset: Dataset, cfg: CfgNode, *, train: bool, **options: Any) -> None:
        self.hider = Hider.from_config(cfg)
        options["instance_masks"] = "segment" in self.hider.shapes
        options.setdefault("transforms", None)
        options["transforms"] = options["transforms"] or build_augmentation(cfg, train)
        super().__init__(dataset, cfg, train=train, **options)
        self._plain = build_augmentation(cfg, train=False)
        self._batch = cfg.SOLVER.IMS_PER_BATCH
        self._last: tuple[str, Sample] | None = None

    def _augment(self, sample: Sample, record: Record, index: int) -> Sample:
        if not self.train:
            return self._hide_case(super()._augment(sample, record, index), record)
        rng = draw_rng(self.seed, index, STREAM_HIDE)
        moved = super()._augment(sample, record, index)
        chosen = self.hider.choose(moved, rng)
        if chosen is None:  # the crop has left nothing that can be hidden; the whole picture has something
            moved = self._plain(sample, draw_rng(self.seed, index))
            chosen = self.hider.choose(moved, rng)
            assert chosen is not None
        share = self.hider.share(index // self._batch)
        return self.hider.hide(moved, *chosen, rng, share, also=self.hider.also)

    def _hide_case(self, sample: Sample, record: Record) -> Sample:
        """An evaluation's case: what is drawn follows from its name alone."""
        case = record.hidden
        assert case is not None
        place = int(no_crowd(record)[: case.place].sum())
        return self.hider.hide(sample, place, case.shape, case_rng(self.seed, record.image_id))

    def _read(self, record: Record, index: int) -> Sample:
        """As the base class; the cases of one picture follow one another, so an evaluation reads it once."""
        if self.train or record.hidden is None:
            return super()._read(record, index)
        if self._last is None or self._last[0] != record.file_name:
            self._last = record.file_name, super()._read(record, index)
        return dataclasses.replace(self._last[1], image_id=record.image_id)
