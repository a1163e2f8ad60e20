"""Anchor matching against torchvision's ``SSDMatcher`` over ``box_iou``.

The layout is BlitzNet512's: 32,766 anchors, six shapes a cell on seven maps. Both sides deliver what their
library's loss takes: ours the sparse matches of the batch, torchvision a box index for each anchor and image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from ..anchor_grid import AnchorGrid
from ..matching import AnchorMatch, match_batch
from ..registry import register
from .measure import Row, interleave, peak_bytes
from .options import Options

NAME = "matching"
THRESHOLD = 0.5


def paper_grid() -> AnchorGrid:
    """The layout at 512 px."""
    scales = [0.04, *(0.10 + 0.17 * i for i in range(7))]
    shapes = []
    for scale, following in zip(scales, scales[1:]):
        side = 512 * scale
        cell = [(side * math.sqrt(r), side / math.sqrt(r)) for r in (1, 2, 1 / 2, 3, 1 / 3)]
        shapes.append((*cell, (512 * math.sqrt(scale * following),) * 2))
    return AnchorGrid((512, 512), tuple((m, m) for m in (64, 32, 16, 8, 4, 2, 1)), tuple(shapes))


def random_boxes(count: int, seed: int, anchors: Tensor) -> Tensor:
    """(count, 4) boxes at 512 px. None overlaps nothing, shares its best anchor with another or ties with
    one: there, by the two libraries' rules, results may differ."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(0, 4)
    while len(boxes) < count:
        centre = torch.rand(count, 2, generator=generator) * 512
        half = torch.exp(torch.rand(count, 2, generator=generator) * 3.5 + 1.6) / 2
        boxes = torch.cat([boxes, torch.cat([centre - half, centre + half], 1).clamp(0, 512)])
        best, anchor = box_iou(boxes, anchors).topk(2, dim=1)
        first = [anchor[:i, 0].ne(a).all().item() for i, a in enumerate(anchor[:, 0])]
        boxes = boxes[torch.tensor(first) & (best[:, 0] > best[:, 1]) & (best[:, 1] > 0)]
    return boxes[:count]


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """Time and peak memory, on every device."""
    images, count = options.pick((32, 100), (8, 100), (2, 10))
    grid = paper_grid()
    anchors = grid.anchors()
    boxes = [random_boxes(count, seed, anchors) for seed in range(images)]
    what = f"{images} images × {len(anchors):,} anchors × {count} boxes"
    for device in options.devices:
        yield from _on_device(options, grid, anchors.to(device), [b.to(device) for b in boxes], what, device)


def ours(anchors: Tensor, boxes: list[Tensor], grid: AnchorGrid) -> list[AnchorMatch]:
    """Our matching of a batch."""
    labels = [torch.zeros(len(own), dtype=torch.int64, device=own.device) for own in boxes]
    confidences = [torch.ones(len(own), device=own.device) for own in boxes]
    return match_batch(anchors, boxes, labels, confidences, iou_threshold=THRESHOLD, grid=grid)


def torchvisions(anchors: Tensor, boxes: list[Tensor]) -> list[Tensor]:
    """torchvision's, image by image as its SSD does."""
    matcher = SSDMatcher(THRESHOLD)
    return [matcher(box_iou(own, anchors)) for own in boxes]


def _on_device(
    options: Options, grid: AnchorGrid, anchors: Tensor, boxes: list[Tensor], what: str, device: str
) -> Iterator[Row]:
    def sparse() -> list[AnchorMatch]:
        return ours(anchors, boxes, grid)

    def dense() -> list[Tensor]:
        return [match.matched_box for match in sparse()]

    def peer() -> list[Tensor]:
        return torchvisions(anchors, boxes)

    differing = sum(int((a != b).sum()) for a, b in zip(dense(), peer()))
    yield Row(
        NAME,
        f"anchors matched otherwise than by SSDMatcher, {device}",
        differing,
        unit="anchors",
        target=("<=", 0),
        detail=f"{what}, without ties and boxes that overlap nothing",
    )
    for name, work, target in (("", sparse, (">=", 10.0)), (", box index of every anchor", dense, None)):
        times = interleave(work, peer, repeats=options.repeats())
        yield Row(
            NAME,
            f"speed against SSDMatcher{name}, {device}",
            *times.speedup,
            target=target,
            detail=f"{what}: {times.describe('torchvision')}",
        )
    own, theirs = peak_bytes(sparse, device), peak_bytes(peer, device)
    yield Row(
        NAME,
        f"peak memory against SSDMatcher, {device}",
        own / theirs,
        target=("<=", 0.1),
        detail=f"ours {own / 2**20:.1f} MiB, torchvision {theirs / 2**20:.1f} MiB",
    )
