"""Silhouettes of the synthetic classes, made of parts.

A part is a polygon in a unit frame (x to the right, y down, roughly −1…1) with a surface: 0 main, 1 second,
2 detail. Later parts cover earlier ones. Each call draws a new individual of its class.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Part = tuple[np.ndarray, int]
Points = list[tuple[float, float]]


def draw_shape(rng: np.random.Generator, name: str) -> list[Part]:
    """Parts of a new individual of class ``name``, mirrored and turned at random."""
    make, turn = _SHAPES[name]
    parts = make(rng)
    angle = math.radians(rng.uniform(-turn, turn))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    flip = np.array([rng.choice((-1.0, 1.0)), 1.0])
    return [(np.asarray(points, float) * flip @ rotation.T, surface) for points, surface in parts]


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    angles = np.radians(np.linspace(start, stop, 20))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _arch(x: float, y: float, outer: float, inner: float, start: float, stop: float) -> np.ndarray:
    """Part of a ring."""
    return np.concatenate(
        [_ellipse(x, y, outer, outer, start, stop), _ellipse(x, y, inner, inner, stop, start)]
    )


def _rect(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def _limb(x: float, y: float, length: float, angle: float, thick: float) -> np.ndarray:
    """A bar from (x, y), hanging down and swung out by ``angle`` degrees."""
    along = np.array([math.sin(math.radians(angle)), math.cos(math.radians(angle))])
    across = np.array([along[1], -along[0]]) * thick / 2
    root, tip = np.array([x, y]), np.array([x, y]) + along * length
    return np.stack([root - across, root + across, tip + across, tip - across])


def _person(rng: np.random.Generator) -> list[Part]:
    legs = rng.uniform(3, 20)
    left, right = rng.uniform(10, 60), rng.uniform(10, 60)
    return [
        (_limb(-0.12, 0.15, 0.85, -legs, 0.20), 1),
        (_limb(0.12, 0.15, 0.85, legs, 0.20), 1),
        (_limb(-0.22, -0.42, 0.62, -left, 0.14), 0),
        (_limb(0.22, -0.42, 0.62, right, 0.14), 0),
        (np.array([(-0.28, -0.50), (0.28, -0.50), (0.22, 0.22), (-0.22, 0.22)]), 0),
        (_ellipse(0, -0.74, 0.19, 0.22), 2),
        (_ellipse(0, -0.79, 0.20, 0.19, 180, 360), 1),
    ]


def _tree(rng: np.random.Generator) -> list[Part]:
    trunk: Part = (_rect(-0.12, 0.1, 0.12, 1), 1)
    if rng.random() < 0.4:  # a conifer
        steps = ((-1.0, -0.35, 0.42), (-0.65, 0.1, 0.58), (-0.25, 0.6, 0.75))
        return [
            trunk,
            *[(np.array([(0, top), (half, low), (-half, low)]), 0) for top, low, half in steps[::-1]],
        ]
    crown: list[Part] = [(_ellipse(0, -0.3, 0.55, 0.5), 0)]
    for angle in rng.uniform(0, 360, 3).tolist() + [20, 160, 270]:
        x, y = 0.42 * math.cos(math.radians(angle)), -0.3 + 0.38 * math.sin(math.radians(angle))
        crown.append((_ellipse(x, y, rng.uniform(0.24, 0.36), rng.uniform(0.22, 0.32)), 0))
    fruits = [(_ellipse(x, y, 0.07, 0.07), 2) for x, y in rng.uniform((-0.45, -0.65), (0.45, 0.1), (3, 2))]
    return [trunk, *crown, *fruits]


def _bird(rng: np.random.Generator) -> list[Part]:
    lift = rng.uniform(0.45, 0.85)
    wing = np.array([(-0.22, -0.05), (0.30, -0.05), (-0.05, -lift), (-0.45, -lift * 0.9)])
    return [
        (wing + (0.22, 0.02), 1),
        (np.array([(-0.45, 0.0), (-1.0, -0.22), (-0.92, 0.16), (-0.4, 0.2)]), 1),
        (_ellipse(0, 0.08, 0.55, 0.28), 0),
        (np.array([(0.68, -0.18), (1.0, -0.05), (0.66, 0.06)]), 2),
        (_ellipse(0.55, -0.10, 0.22, 0.21), 0),
        (wing, 1),
        (_ellipse(0.6, -0.15, 0.05, 0.06), 2),
    ]


def _car(rng: np.random.Generator) -> list[Part]:
    front, back = rng.uniform(0.30, 0.55), rng.uniform(-0.85, -0.45)
    roof: Points = [(back, -0.1), (back + 0.18, -0.52), (front - 0.22, -0.52), (front, -0.1)]
    parts: list[Part] = [
        (np.array(roof), 0),
        (np.array([(-1, -0.08), (0.9, -0.12), (1, 0.05), (1, 0.34), (-1, 0.34)]), 0),
        (np.array([(back + 0.12, -0.1), (back + 0.24, -0.42), (-0.12, -0.42), (-0.12, -0.1)]), 2),
        (np.array([(-0.02, -0.1), (-0.02, -0.42), (front - 0.27, -0.42), (front - 0.12, -0.1)]), 2),
    ]
    for x in (-0.56, 0.58):
        parts += [(_ellipse(x, 0.34, 0.24, 0.24), 1), (_ellipse(x, 0.34, 0.10, 0.10), 2)]
    return parts


def _house(rng: np.random.Generator) -> list[Part]:
    ridge, door = rng.uniform(-0.25, 0.25), rng.uniform(-0.45, 0.25)
    parts: list[Part] = [(_rect(0.38, -0.95, 0.58, -0.3), 2)] if rng.random() < 0.6 else []
    parts += [
        (_rect(-0.82, -0.25, 0.82, 1), 0),
        (np.array([(-1, -0.18), (ridge, -1), (1, -0.18)]), 1),
        (_rect(door, 0.4, door + 0.32, 1), 2),
    ]
    windows = [(x, y) for x in (-0.66, 0.4) for y in (0.02, 0.5) if rng.random() < 0.8]
    return parts + [
        (_rect(x, y, x + 0.28, y + 0.26), 2) for x, y in windows if y < 0.2 or abs(x - door) > 0.35
    ]


def _boat(rng: np.random.Generator) -> list[Part]:
    mast, tip = rng.uniform(-0.15, 0.15), rng.uniform(0.55, 0.85)
    parts: list[Part] = [
        (_rect(mast - 0.04, -1, mast + 0.04, 0.5), 2),
        (np.array([(mast + 0.07, -0.95), (mast + 0.07, 0.34), (tip, 0.34)]), 1),
        (np.array([(-1, 0.45), (1, 0.45), (0.66, 1), (-0.66, 1)]), 0),
    ]
    if rng.random() < 0.7:
        parts.append((np.array([(mast - 0.08, -0.7), (mast - 0.08, 0.34), (-tip, 0.34)]), 1))
    return [*parts, (np.array([(-0.93, 0.55), (0.93, 0.55), (0.86, 0.66), (-0.86, 0.66)]), 2)]


def _cup(rng: np.random.Generator) -> list[Part]:
    foot, ring = rng.uniform(0.38, 0.6), rng.uniform(0.32, 0.42)
    return [
        (_arch(0.55, 0.02, ring, ring - 0.15, -85, 85), 1),
        (np.array([(-0.72, -0.72), (0.62, -0.72), (foot, 0.85), (-foot - 0.1, 0.85)]), 0),
        (_ellipse(-0.05, 0.85, foot + 0.03, 0.12), 0),
        (_ellipse(-0.05, -0.72, 0.67, 0.17), 0),
        (_ellipse(-0.05, -0.70, 0.56, 0.11), 2),
    ]


def _bottle(rng: np.random.Generator) -> list[Part]:
    shoulder, neck = rng.uniform(-0.4, -0.1), rng.uniform(0.11, 0.17)
    body: Points = [
        (-0.34, 1), (-0.36, shoulder), (-neck, shoulder - 0.25), (-neck, -0.9),
        (neck, -0.9), (neck, shoulder - 0.25), (0.36, shoulder), (0.34, 1),
    ]  # fmt: skip
    label = rng.uniform(0.05, 0.3)
    return [
        (np.array(body), 0),
        (_rect(-0.36, label, 0.36, label + 0.42), 1),
        (_rect(-neck - 0.04, -1, neck + 0.04, -0.82), 2),
    ]


def _cow(rng: np.random.Generator) -> list[Part]:
    nod = rng.uniform(-0.15, 0.2)
    legs = [(_limb(x, 0.2, 0.72, rng.uniform(-8, 8), 0.15), 0) for x in (-0.62, -0.4, 0.22, 0.44)]
    return [
        *legs,
        (_limb(-0.7, -0.3, 0.75, rng.uniform(-35, -10), 0.07), 1),
        (np.array([(-0.76, -0.36), (0.5, -0.42), (0.62, 0.1), (0.5, 0.36), (-0.7, 0.36)]), 0),
        (_ellipse(-0.25, -0.08, 0.24, 0.18), 1),
        (np.array([(0.42, -0.38), (0.62, -0.5), (0.78, nod), (0.5, 0.1)]), 0),
        (np.array([(0.56, -0.62 + nod), (0.5, -0.88 + nod), (0.68, -0.66 + nod)]), 2),
        (np.array([(0.76, -0.64 + nod), (0.86, -0.9 + nod), (0.86, -0.6 + nod)]), 2),
        (_ellipse(0.72, -0.42 + nod, 0.2, 0.25), 0),
        (_ellipse(0.86, -0.30 + nod, 0.16, 0.13), 2),
    ]


def _kite(rng: np.random.Generator) -> list[Part]:
    corners: Points = [(0, -1), (0.62, -0.35), (0, 0.45), (-0.62, -0.35)]
    sway = rng.uniform(-0.25, 0.25)
    tail = np.array(
        [(0, 0.4), (sway, 0.68), (-sway, 1.0), (-sway + 0.09, 1.0), (sway + 0.09, 0.68), (0.09, 0.4)]
    )
    bows = [
        (
            np.array(
                [(x - 0.16, y - 0.09), (x + 0.16, y + 0.09), (x + 0.16, y - 0.09), (x - 0.16, y + 0.09)]
            ),
            2,
        )
        for x, y in ((sway, 0.68), (-sway, 0.95))
    ]
    quarters = [(np.array([(0, -0.35), corners[i], corners[(i + 1) % 4]]), (0, 1)[i % 2]) for i in range(4)]
    return [(tail, 1), *bows, *quarters]


# How an individual is made, and how far it may be turned to either side, in degrees.
_SHAPES: dict[str, tuple[Callable[[np.random.Generator], list[Part]], float]] = {
    "person": (_person, 8),
    "tree": (_tree, 5),
    "bird": (_bird, 22),
    "car": (_car, 6),
    "house": (_house, 3),
    "boat": (_boat, 9),
    "cup": (_cup, 10),
    "bottle": (_bottle, 12),
    "cow": (_cow, 5),
    "kite": (_kite, 35),
}
