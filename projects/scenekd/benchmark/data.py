"""Images a second of one worker: our full augmentation against MMSegmentation's, on the same files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ..config import get_cfg
from ..data.mapper import Mapper
from ..registry import register
from ..sampling import record_index
from .material import voc_images
from .measure import Row, interleave, spread
from .options import Options, worker_threads

NAME = "data"


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """From file to tensors, one thread, at 300 and 512 px."""
    from ..engines.benchmark_peers import mmseg_pipeline

    dataset = voc_images(options)
    dataset.records = [record for record in dataset.records if record.sem_seg_file is not None]
    count = min(len(dataset), options.pick(60, 12, 2))
    material = "voc_mini" if options.data is not None else "scenes at 375 × 500"
    for side in (300, 512):
        cfg = get_cfg()
        cfg.INPUT.SIZE = side
        mapper = Mapper(dataset, cfg, train=True)
        pipeline = mmseg_pipeline(side)
        shown = [dataset.records[record_index(cfg.SEED, draw, len(dataset))] for draw in range(count)]
        files = [(record.file_name, str(record.sem_seg_file)) for record in shown]

        with worker_threads():
            times = interleave(
                partial(_each, mapper, [(draw,) for draw in range(count)]),
                partial(_each, pipeline, files),
                repeats=options.repeats(),
                min_seconds=0,
            )
        rates = [count / side_seconds for side_seconds in (spread(times.ours)[0], spread(times.peer)[0])]
        detail = f"{count} images of {material}: ours {rates[0]:.1f} images/s, MMSegmentation {rates[1]:.1f}"
        detail += "; ours: image, mask, boxes, coordinates; MMSegmentation: image and mask"
        yield Row(NAME, f"images/s a worker against MMSegmentation, {side} px", *times.speedup, detail=detail)


def _each(work: Callable[..., object], arguments: Sequence[tuple[Any, ...]]) -> None:
    for one in arguments:
        work(*one)
