"""A stream of images, batch by batch. What a learner gets holds no label; the labels, where there are some, ride apart
in :class:`Truth`, for the report alone.

N: samples of a batch; S: ``INPUT.SIZE``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from scenekd.data.catalog import load_datasets
from scenekd.data.records import Dataset
from scenekd.data.transforms import Compose, build_transforms
from scenekd.errors import BadRecordError, UserError
from scenekd.sample import Sample

from .prior import Prior, draw_plan, read_priors
from .sources import CropMask, RecordSource, Source, object_crops, open_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamBatch:
    """Samples that are looked at together.

    Attributes:
        positions: (N,) of the stream, rising. image_ids: of each.
        images: (N, 3, S, S) uint8 RGB.
    """

    positions: np.ndarray
    image_ids: tuple[str, ...]
    images: Tensor

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Truth:
    """What is known of the samples, for the report alone.

    Attributes:
        labels: (S,) int64 by position, −1 where unknown; empty where nothing is known.
        outlier: (S,) bool by position, whether the class was an outlier of the pair at that time; empty likewise.
        records: (S,) int64 by position, which of the data's images is shown; empty likewise. data: these, or None.
    """

    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    outlier: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    records: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    data: Dataset | None = None

    @property
    def is_known(self) -> bool:
        return bool(len(self.labels))

    def mask(self, position: int) -> np.ndarray | None:
        """The mask of the object that a sample was cut out for, (S, S) uint8 at the network's input size: 1 on the
        object, 0 elsewhere, 255 where that is not known; None where nothing of it is.

        Raises:
            BadRecordError: it cannot be read.
        """
        record = None if self.data is None else self.data.records[int(self.records[position])]
        if self.data is None or record is None or not isinstance(record.object_masks, CropMask):
            return None
        mask = self.data.read_instance_masks(record)[0]
        return mask if (mask == 1).any() else None


class Stream:
    """Batches of a source, from the first sample on or from where a run was cut.

    Args:
        source: of images. prepare: brings one to the network's input size.
        samples: at most so many; 0: to the source's end.
        max_unreadable: images that may fail; one more is an error.
        classes: names, where the source tells them. truth, priors: of the report.

    Attributes:
        position: of the next sample. unreadable: one line for each image passed over.
        can_reread: whether samples that have been seen can be had again; not the frames of a video or camera.
        image_ids: of the batch that was given last.
    """

    def __init__(
        self,
        source: Source,
        prepare: Compose,
        *,
        samples: int = 0,
        max_unreadable: int = 0,
        classes: tuple[str, ...] = (),
        truth: Truth | None = None,
        priors: tuple[Prior, ...] = (),
    ) -> None:
        self._source, self._prepare, self._max_unreadable = source, prepare, max_unreadable
        self.samples = min(samples or source.length, source.length) if source.length else samples
        self.classes, self.truth, self.priors = classes, truth or Truth(), priors
        self.position, self.unreadable = 0, list[str]()
        self.can_reread = isinstance(source, RecordSource)
        self.image_ids: tuple[str, ...] = ()

    def next_batch(self, size: int) -> StreamBatch | None:
        """The next ``size`` samples that can be read, fewer at the end; None after it.

        Raises:
            UserError: there never was one, or too many cannot be read.
        """
        positions: list[int] = []
        names: list[str] = []
        images: list[np.ndarray] = []
        while len(positions) < size and (not self.samples or self.position < self.samples):
            try:
                found = self._source.read(self.position)
            except BadRecordError as error:
                self._pass_over(str(error))
                continue
            if found is None:
                break
            sample = Sample(image=found[1], image_id=found[0])
            images.append(self._prepare(sample, np.random.default_rng(0)).image)
            positions.append(self.position)
            names.append(found[0])
            self.position += 1
        if not positions:
            if self.position == len(self.unreadable):
                raise UserError(
                    "STREAM: holds no image that can be read; check STREAM.SOURCE or DATASETS.TRAIN"
                )
            return None
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        self.image_ids = tuple(names)
        return StreamBatch(np.array(positions), self.image_ids, pixels)

    def read(self, positions: Iterable[int]) -> Tensor:
        """(N, 3, S, S) uint8 RGB of samples that have been seen; of sources whose images can be had again.

        Raises:
            BadRecordError: one cannot be read.
        """
        found = []
        for position in positions:
            image = self._source.read(int(position))
            if image is None:
                raise IndexError(f"the stream has no sample {position}")
            found.append(
                self._prepare(Sample(image=image[1], image_id=image[0]), np.random.default_rng(0)).image
            )
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()

    def _pass_over(self, why: str) -> None:
        if len(self.unreadable) >= self._max_unreadable:
            raise UserError(
                f"{why} (image {len(self.unreadable) + 1} of the stream that cannot be read; STREAM.MAX_UNREADABLE "
                f"{self._max_unreadable} allows no more)"
            )
        logger.warning("sample %d is passed over: %s", self.position, why)
        self.unreadable.append(why)
        self.position += 1

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"position": self.position, "unreadable": list(self.unreadable)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.position, self.unreadable = int(state["position"]), list(state["unreadable"])


def stream_dataset(cfg: CfgNode) -> Dataset:
    """The labelled images that ``DATASETS.TRAIN`` names, or their objects.

    Raises:
        UserError: no such data, or images without a class.
    """
    dataset = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True)
    if cfg.STREAM.OBJECT_CROPS:
        return object_crops(dataset, cfg)
    if not any(record.has_class_label for record in dataset.records):
        raise UserError(
            f"DATASETS.TRAIN: the images of {dataset.name} have no class each; set STREAM.OBJECT_CROPS True to cut out "
            "their objects, or name a folder in STREAM.SOURCE"
        )
    return dataset


def build_stream(cfg: CfgNode, dataset: Dataset | None = None) -> Stream:
    """The stream of ``STREAM``: of ``STREAM.SOURCE``, or of ``dataset`` (default: :func:`stream_dataset`) by the prior.

    Raises:
        UserError: nothing there, or a prior that the data cannot have.
    """
    node, options = cfg.STREAM, _bounds(cfg)
    prepare = build_transforms(cfg, train=False)
    if node.SOURCE:
        for key in ("PAIRS", "SHIFTS"):
            if node[key]:
                raise UserError(f"STREAM.{key}: the images of {node.SOURCE} have no classes; leave it empty")
        return Stream(open_source(node.SOURCE), prepare, **options)
    dataset = stream_dataset(cfg) if dataset is None else dataset
    priors = read_priors(node, dataset)
    of_record = np.array([-1 if r.class_label is None else r.class_label for r in dataset.records])
    samples = node.SAMPLES or len(dataset)
    plan = draw_plan(priors, of_record, cfg.SEED, samples)
    labels, outlier = of_record[plan], np.zeros(samples, bool)
    for prior in priors:
        outlier[prior.start :] = np.isin(labels[prior.start :], prior.pair.outliers)
    _tell_repeats(plan)
    source = RecordSource(dataset.records, plan)
    described: dict[str, Any] = {
        "classes": dataset.classes,
        "truth": Truth(labels, outlier, plan, dataset),
        "priors": tuple(priors),
    }
    return Stream(source, prepare, **options, **described)


def build_frames(cfg: CfgNode, dataset: Dataset | None = None) -> Stream:
    """Whole frames at their own size, one after the other: of ``dataset``, or of ``STREAM.SOURCE``. Batches are to be
    of one frame.

    Raises:
        UserError: nothing there.
    """
    source = open_source(cfg.STREAM.SOURCE) if dataset is None else RecordSource(dataset.records)
    return Stream(source, Compose([]), **_bounds(cfg))


def _bounds(cfg: CfgNode) -> dict[str, Any]:
    node = cfg.STREAM
    if node.SAMPLES < 0 or node.MAX_UNREADABLE < 0:
        raise UserError("STREAM: SAMPLES and MAX_UNREADABLE must be at least 0")
    return {"samples": node.SAMPLES, "max_unreadable": node.MAX_UNREADABLE}


def _tell_repeats(plan: np.ndarray) -> None:
    repeated = len(plan) - len(np.unique(plan))
    if repeated:
        logger.info("the stream of %d samples shows %d of them again", len(plan), repeated)
