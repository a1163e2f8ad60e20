"""Images a second of one worker: our full augmentation against MMSegmentation's, on the same files, and with the files
kept in memory against without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ..config import get_cfg
from ..data.mapper import Mapper
from ..data.records import Dataset
from ..registry import register
from ..sampling import record_index
from .material import voc_images
from .measure import Row, Times, interleave, spread
from .options import Options, worker_threads

NAME = "data"


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """From file to tensors, one thread, at 300 and 512 px; from memory (``DATASETS.CACHE_MB``) at 300."""
    from ..engines.benchmark_peers import mmseg_pipeline

    dataset = voc_images(options)
    dataset.records = [record for record in dataset.records if record.sem_seg_file is not None]
    count = min(len(dataset), options.pick(60, 12, 2))
    material = "voc_mini" if options.data is not None else "scenes at 375 × 500"
    draws = [(draw,) for draw in range(count)]
    for side in (300, 512):
        mapper = _mapper(dataset, side)
        pipeline = mmseg_pipeline(side)
        shown = [dataset.records[record_index(mapper.seed, draw, len(dataset))] for draw in range(count)]
        files = [(record.file_name, str(record.sem_seg_file)) for record in shown]
        times = _in_turn(options, partial(_each, mapper, draws), partial(_each, pipeline, files))
        rates = [count / side_seconds for side_seconds in (spread(times.ours)[0], spread(times.peer)[0])]
        detail = f"{count} images of {material}: ours {rates[0]:.1f} images/s, MMSegmentation {rates[1]:.1f}"
        detail += "; ours: image, mask, boxes, coordinates; MMSegmentation: image and mask"
        yield Row(NAME, f"images/s a worker against MMSegmentation, {side} px", *times.speedup, detail=detail)
    keeps, reads = _mapper(dataset, 300, megabytes=1024), _mapper(dataset, 300)
    _each(keeps, draws)  # the first epoch reads
    times = _in_turn(options, partial(_each, keeps, draws), partial(_each, reads, draws))
    name = "images/s a worker, files kept in memory against read again, 300 px"
    yield Row(NAME, name, *times.speedup, detail=f"{count} images of {material}, after the first epoch")


def _mapper(dataset: Dataset, side: int, *, megabytes: int = 0) -> Mapper:
    cfg = get_cfg()
    cfg.INPUT.SIZE, cfg.DATASETS.CACHE_MB = side, megabytes
    return Mapper(dataset, cfg, train=True)


def _in_turn(options: Options, ours: Callable[[], None], peer: Callable[[], None]) -> Times:
    with worker_threads():
        return interleave(ours, peer, repeats=options.repeats(), min_seconds=0)


def _each(work: Callable[..., object], arguments: Sequence[tuple[Any, ...]]) -> None:
    for one in arguments:
        work(*one)
