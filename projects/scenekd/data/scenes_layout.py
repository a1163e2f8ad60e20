"""Where the objects of a synthetic scene stand and how large they are.

Positions are drawn, and refused where they crowd, by zone and base side alone. Size and shape are drawn after
that, from the class. So positions say nothing about a class beyond its zone, as
:func:`scenekd.data.scenes_model.class_probabilities` takes for granted.
"""

from __future__ import annotations

import math

import numpy as np

from .scenes_model import ASPECT_SIGMA, ASPECTS, SCENES, SIDE_SIGMA, SIDES, SceneObject, Zone

MAX_OVERLAP = 0.30  # of two base squares, as a share of the smaller
_TRIES = 60
_EDGE = 0.04  # the anchor keeps this share of the width from the image's left and right edge


def draw_layout(
    rng: np.random.Generator, scene: int, labels: list[int], zones: list[int], size: tuple[int, int]
) -> list[SceneObject]:
    """Place objects of the given classes and zones in an image of ``size`` (H, W), in the order given."""
    kinds = [list(SCENES[scene].zones.values())[zone] for zone in zones]
    anchors = _draw_anchors(rng, kinds, size)
    return [
        _draw_object(rng, label, zone, kind, anchor)
        for label, zone, kind, anchor in zip(labels, zones, kinds, anchors)
    ]


def _draw_anchors(rng: np.random.Generator, kinds: list[Zone], size: tuple[int, int]) -> np.ndarray:
    """(n, 3) x, y and base side in pixels; the least crowded of several draws, or the first that is not."""
    height, width = size
    best, least = np.zeros((len(kinds), 3)), math.inf
    for _ in range(_TRIES):
        across = rng.uniform(_EDGE, 1 - _EDGE, len(kinds)) * width
        rows = np.array([rng.uniform(kind.top, kind.bottom) for kind in kinds])
        bases = np.array([kind.base(row) for kind, row in zip(kinds, rows)]) * min(size)
        anchors = np.stack([across, rows * height, bases], axis=1)
        crowding = _crowding(anchors, kinds)
        if crowding < least:
            best, least = anchors, crowding
        if least <= MAX_OVERLAP:
            break
    return best


def _crowding(anchors: np.ndarray, kinds: list[Zone]) -> float:
    """Largest overlap of two base squares, as a share of the smaller one."""
    x, y, side = anchors.T
    middle = y - np.where([kind.hangs for kind in kinds], 0.0, side / 2)
    reach = (side[:, None] + side) / 2
    smaller = np.minimum(side[:, None], side)
    across = np.clip(reach - abs(x[:, None] - x), 0, smaller)
    down = np.clip(reach - abs(middle[:, None] - middle), 0, smaller)
    share = across * down / smaller**2
    np.fill_diagonal(share, 0)
    return float(share.max())


def _draw_object(
    rng: np.random.Generator, label: int, zone: int, kind: Zone, anchor: np.ndarray
) -> SceneObject:
    x, y, base = (float(value) for value in anchor)
    side = base * float(SIDES[label]) * math.exp(rng.normal(0, SIDE_SIGMA))
    stretch = math.sqrt(float(ASPECTS[label]) * math.exp(rng.normal(0, ASPECT_SIGMA)))
    width, height = side * stretch, side / stretch
    bottom = y + height / 2 if kind.hangs else y
    return SceneObject(label, zone, base, (x - width / 2, bottom - height, x + width / 2, bottom))
