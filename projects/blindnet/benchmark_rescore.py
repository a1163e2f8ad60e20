"""Re-scoring the detections of an image: passes of the trunk shared by them, against one forward for each.

Both sides start from the decoded image and end with the context's distribution for each detection; the single forward
that costs are counted in is the network's own for one hidden detection, prepared alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.benchmark.measure import Row, interleave
from scenekd.benchmark.options import Options
from scenekd.config import get_cfg
from scenekd.models import build_model
from scenekd.predictor import Predictor
from scenekd.registry import register

from .region_context import RegionContext

NAME = "rescore"
DETECTIONS = 20
_SIZE = (480, 640)  # of the image


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """ResNet-18 at 384 pixels, as on COCO, and 20 detections: the default's passes, one fewer and one more."""
    cfg = config(options)
    usual = cfg.MODEL.BLINDNET.RESCORE.GROUPS
    for device in options.devices:
        predictor = Predictor(build_model(cfg, pretrained=False).to(device).eval(), cfg, device)
        for groups in (usual - 1, usual, usual + 1):
            yield from _rows(options, predictor, device, groups, asked=groups == usual)


def config(options: Options) -> CfgNode:
    """Of the timed network."""
    cfg = get_cfg("blindnet")
    cfg.INPUT.SIZE = options.pick(384, 384, 64)
    cfg.MODEL.BLINDNET.TRUNK_WIDTH = options.pick(64, 64, 4)
    return cfg


def detections(count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) boxes as a detector gives them, some about one object, and (N,) scores; always the same."""
    rng = np.random.default_rng(0)
    high, wide = size
    objects = rng.uniform(0.1, 0.9, (max(1, count // 3), 2)) * [wide, high]
    centres = objects[rng.integers(0, len(objects), count)] + rng.normal(0, 0.03, (count, 2)) * [wide, high]
    sides = rng.uniform(0.08, 0.35, (count, 2)) * [wide, high]
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return boxes.clip(0, [wide, high, wide, high]), rng.uniform(0.05, 1, count)


def _rows(options: Options, predictor: Predictor, device: str, groups: int, *, asked: bool) -> Iterator[Row]:
    image = np.random.default_rng(1).integers(0, 256, (*_SIZE, 3), dtype=np.uint8)
    boxes, scores = detections(DETECTIONS, _SIZE)
    each, shared = RegionContext(predictor), RegionContext(predictor, groups=groups)
    run = partial(shared, [image], [boxes], [scores])
    about = f"{_SIZE[1]} × {_SIZE[0]} to {predictor.cfg.INPUT.SIZE} px, {DETECTIONS} detections, {device}: "
    times = interleave(run, partial(each, [image], [boxes], [scores]), repeats=options.repeats())
    ways = f"{groups} shared pass{'es' if groups > 1 else ''}"
    yield Row(
        NAME,
        f"images/s of {ways} against one forward per detection, {device}",
        *times.speedup,
        target=(">=", 5.0) if asked else None,
        detail=about + times.describe("one forward per detection"),
    )
    times = interleave(run, partial(each, [image], [boxes[:1]], [scores[:1]]), repeats=options.repeats())
    yield Row(
        NAME,
        f"time of {ways} in single forwards, {device}",
        *times.cost,
        target=("<=", 3.0) if asked else None,
        detail=about + times.describe("one forward"),
    )
