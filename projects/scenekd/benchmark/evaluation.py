"""VOC AP against detectron2's evaluator; mIoU accumulation against MMSegmentation and torchmetrics."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..evaluation.semantic import SegmentationRecords
from ..registry import register
from .evaluation_voc import voc_rows
from .measure import Row, interleave, spread
from .options import VOC_SIZE, Options

NAME = "evaluation"


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """AP, then mIoU."""
    yield from voc_rows(options, NAME)
    yield from _miou(options)


def random_maps(count: int, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """(prediction, label) pairs of int64 maps: blobs of 21 classes, a twentieth of the label void."""
    pairs = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randint(0, 21, (1, 1, 12, 16), generator=generator).float()
        label = torch.nn.functional.interpolate(coarse, size=size)[0, 0].long()
        wrong = torch.rand(size, generator=generator) < 0.2
        pred = torch.where(wrong, torch.randint(0, 21, size, generator=generator), label)
        label[torch.rand(size, generator=generator) < 0.05] = 255
        pairs.append((pred, label))
    return pairs


def our_counts(pairs: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """(21,) intersections, one record an image."""
    records = SegmentationRecords([str(k) for k in range(21)])
    for i, (pred, label) in enumerate(pairs):
        records.add(str(i), pred, label)
    return records.matrix().diagonal()


def torchmetrics_counts(pairs: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """The same by torchmetrics' confusion matrix, on which its Jaccard index rests."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    metric = MulticlassConfusionMatrix(21, ignore_index=255, validate_args=False)
    for pred, label in pairs:
        metric.update(pred[None], label[None])
    return metric.compute().diagonal().numpy()


def _miou(options: Options) -> Iterator[Row]:
    from ..engines.benchmark_peers import mmseg_accumulate

    size = options.pick(VOC_SIZE, VOC_SIZE, (20, 30))
    pairs = random_maps(options.pick(50, 10, 2), size)
    ours = our_counts(pairs)
    peers = (
        ("MMSegmentation's IoUMetric", mmseg_accumulate(21), 10.0),
        ("torchmetrics", torchmetrics_counts, 1.5),
    )
    for name, peer, target in peers:
        if name == "torchmetrics" and importlib.util.find_spec(name) is None:
            yield Row(NAME, f"speed of mIoU accumulation against {name}", detail=f"{name} is not installed")
            continue
        equal = bool((ours == peer(pairs)).all())
        times = interleave(partial(our_counts, pairs), partial(peer, pairs), repeats=options.repeats())
        value = times.speedup if equal else spread([float("nan")])
        counts = "equal counts" if equal else "COUNTS DIFFER"
        detail = f"{len(pairs)} maps {size[0]} × {size[1]}, int64, 21 classes, {counts}: "
        yield Row(
            NAME,
            f"speed of mIoU accumulation against {name}",
            *value,
            target=(">=", target),
            detail=detail + times.describe(name),
        )
