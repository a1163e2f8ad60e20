"""What stands in a synthetic scene: the generator's class model and the exact posterior under it.

z: scene type; t: theme, a hidden mixture component within a scene type; c: class; k: zone (the part of the
background on which an object stands); n: number of objects.

    z ~ prior,  n ~ COUNTS (the same for every z),  t ~ p(t | z)
    c_1 … c_n independent given (z, t);  k_i ~ p(k | c_i, z)
    positions of all objects ~ p(· | z, k_1 … k_n): the class has no say in them
    log side_i ~ N(log base_i + log SIDES[c_i], SIDE_SIGMA²),  base_i is known from zone and position
    log (width_i / height_i) ~ N(log ASPECTS[c_i], ASPECT_SIGMA²)

The hidden theme makes classes co-occur. Because positions do not depend on the classes, the posterior of one
object's class given all the rest has a closed form (:func:`class_probabilities`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

CLASSES = ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")
INDEX = {name: index for index, name in enumerate(CLASSES)}

COUNTS = (0.12, 0.24, 0.30, 0.22, 0.12)  # p(n) for n = 1 … 5
SIDES = np.array([0.95, 1.20, 0.75, 1.10, 1.25, 1.15, 0.80, 0.85, 1.05, 0.90])  # sqrt(area) relative to base
ASPECTS = np.array([0.50, 0.75, 1.25, 1.60, 1.00, 0.90, 1.05, 0.48, 1.35, 0.75])  # width / height
SIDE_SIGMA = 0.20  # wide enough that box and size of one class often fit another
ASPECT_SIGMA = 0.20


@dataclass(frozen=True)
class Zone:
    """Where objects stand: the foot of a box (or its centre, where ``hangs``) lies between two rows.

    ``top`` and ``bottom`` are fractions of the image's height; ``far`` and ``near`` the base side there, as
    fractions of the shorter image side. In between the base side is linear, as under a perspective.
    """

    top: float
    bottom: float
    far: float
    near: float
    hangs: bool = False

    def base(self, row: float) -> float:
        """Base side at ``row`` (fraction of the height)."""
        return self.far + (self.near - self.far) * (row - self.top) / (self.bottom - self.top)


@dataclass(frozen=True)
class SceneType:
    """One kind of scene. ``themes``: (weight, class weights); ``places``: p(zone | class) where a class does
    not simply stand in the first zone."""

    name: str
    prior: float
    themes: tuple[tuple[float, dict[str, float]], ...]
    zones: dict[str, Zone]
    places: dict[str, dict[str, float]] = field(default_factory=dict)

    @cached_property
    def theme_weights(self) -> np.ndarray:
        """p(t | z), (T,)."""
        weights = np.array([weight for weight, _ in self.themes])
        return weights / weights.sum()

    @cached_property
    def class_weights(self) -> np.ndarray:
        """p(c | z, t), (T, C)."""
        table = np.array([[classes.get(name, 0.0) for name in CLASSES] for _, classes in self.themes])
        return table / table.sum(axis=1, keepdims=True)

    @cached_property
    def zone_names(self) -> tuple[str, ...]:
        return tuple(self.zones)

    @cached_property
    def zone_weights(self) -> np.ndarray:
        """p(k | c, z), (C, zones)."""
        first = {self.zone_names[0]: 1.0}
        rows = [self.places.get(name, first) for name in CLASSES]
        table = np.array([[row.get(zone, 0.0) for zone in self.zone_names] for row in rows])
        return table / table.sum(axis=1, keepdims=True)


_SKY = Zone(0.10, 0.30, 0.24, 0.30, hangs=True)
_FLIES = {"sky": 0.65, "ground": 0.35}

SCENES: tuple[SceneType, ...] = (
    SceneType(
        "road",
        0.28,
        (
            (0.60, {"car": 0.64, "person": 0.14, "tree": 0.12, "house": 0.08, "bird": 0.02}),
            (0.40, {"house": 0.36, "person": 0.34, "tree": 0.20, "car": 0.06, "bird": 0.04}),
        ),
        {"ground": Zone(0.56, 0.95, 0.24, 0.40), "sky": _SKY},
        {"bird": {"sky": 0.8, "ground": 0.2}},
    ),
    SceneType(
        "field",
        0.18,
        (
            (0.40, {"cow": 0.55, "tree": 0.25, "bird": 0.10, "person": 0.06, "house": 0.04}),
            (0.40, {"tree": 0.42, "house": 0.28, "bird": 0.16, "person": 0.10, "cow": 0.04}),
            (0.20, {"person": 0.55, "kite": 0.20, "bird": 0.10, "tree": 0.15}),
        ),
        {"ground": Zone(0.52, 0.95, 0.22, 0.38), "sky": _SKY},
        {"bird": _FLIES, "kite": {"sky": 1.0}},
    ),
    SceneType(
        "sea",
        0.14,
        (
            (0.60, {"boat": 0.80, "bird": 0.16, "bottle": 0.03, "kite": 0.01}),
            (0.40, {"bird": 0.62, "boat": 0.28, "bottle": 0.08, "kite": 0.02}),
        ),
        {"ground": Zone(0.54, 0.93, 0.22, 0.40), "sky": _SKY},
        {"bird": {"sky": 0.6, "ground": 0.4}, "kite": {"sky": 1.0}},
    ),
    SceneType(
        "kitchen",
        0.16,
        (
            (0.55, {"cup": 0.68, "bottle": 0.14, "person": 0.17, "bird": 0.01}),
            (0.45, {"bottle": 0.60, "cup": 0.20, "person": 0.19, "bird": 0.01}),
        ),
        {
            "counter": Zone(0.58, 0.68, 0.30, 0.34),
            "shelf": Zone(0.33, 0.34, 0.24, 0.25),
            "floor": Zone(0.86, 0.97, 0.46, 0.52),
        },
        {
            "cup": {"counter": 0.65, "shelf": 0.35},
            "bottle": {"counter": 0.65, "shelf": 0.35},
            "bird": {"shelf": 0.6, "counter": 0.4},
            "person": {"floor": 1.0},
        },
    ),
    SceneType(
        "beach",
        0.12,
        (
            (0.60, {"person": 0.66, "bottle": 0.10, "cup": 0.05, "bird": 0.08, "kite": 0.05, "boat": 0.06}),
            (0.40, {"boat": 0.48, "bird": 0.28, "person": 0.18, "kite": 0.06}),
        ),
        {"ground": Zone(0.68, 0.96, 0.28, 0.40), "water": Zone(0.48, 0.58, 0.20, 0.24), "sky": _SKY},
        {
            "boat": {"water": 0.85, "ground": 0.15},
            "bird": {"sky": 0.5, "ground": 0.3, "water": 0.2},
            "kite": {"sky": 1.0},
        },
    ),
    SceneType(
        "park",
        0.12,
        (
            (0.50, {"person": 0.46, "bottle": 0.16, "cup": 0.16, "tree": 0.16, "bird": 0.06}),
            (0.50, {"tree": 0.52, "bird": 0.26, "person": 0.16, "kite": 0.03, "house": 0.03}),
        ),
        {"ground": Zone(0.55, 0.95, 0.24, 0.40), "sky": _SKY},
        {"bird": _FLIES, "kite": {"sky": 1.0}},
    ),
)


@dataclass(frozen=True)
class SceneObject:
    """One object as drawn from the model.

    ``box`` is the whole object's (x1, y1, x2, y2) in pixels, before anything is cut off or hidden; ``base``
    the base side in pixels at its position.
    """

    label: int
    zone: int
    base: float
    box: tuple[float, float, float, float]


def draw_classes(rng: np.random.Generator) -> tuple[int, list[int], list[int]]:
    """Draw a scene type, and class and zone of each of its objects."""
    scene = int(rng.choice(len(SCENES), p=[s.prior for s in SCENES]))
    kind = SCENES[scene]
    count = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    theme = rng.choice(len(kind.themes), p=kind.theme_weights)
    labels = rng.choice(len(CLASSES), size=count, p=kind.class_weights[theme])
    zones = [int(rng.choice(len(kind.zones), p=kind.zone_weights[label])) for label in labels]
    return scene, [int(label) for label in labels], zones


def class_probabilities(scene: int, objects: Sequence[SceneObject], index: int) -> dict[str, np.ndarray]:
    """p(class of object ``index`` | the rest), exactly, for four kinds of "rest"; each (C,), summing to 1.

    - ``given_scene``: the scene type and the classes of the other objects.
    - ``given_objects``: the classes of the other objects, the scene type being unknown.
    - ``given_scene_and_zone``: as ``given_scene``, and where the object stands.
    - ``given_scene_and_box``: as before, and the object's whole box. What can be seen of an image whose
      object is masked by its box tells no more than this about the class.

    The few layouts that are drawn again (:mod:`scenekd.data.scenes`; about 1 %) keep classes and zones, so
    they touch only the last kind, and hardly.
    """
    others = [o.label for i, o in enumerate(objects) if i != index]
    joint = np.stack([SCENES[z].prior * _weigh_themes(SCENES[z], others) for z in range(len(SCENES))])
    given_scene = joint[scene]
    with_zone = given_scene * SCENES[scene].zone_weights[:, objects[index].zone]
    # A shift of all logarithms alike, so that the classes that can stand here do not all underflow.
    fit = _log_box_fit(objects[index])
    with_box = with_zone * np.exp(fit - fit[with_zone > 0].max())
    return {
        "given_scene": given_scene / given_scene.sum(),
        "given_objects": joint.sum(axis=0) / joint.sum(),
        "given_scene_and_zone": with_zone / with_zone.sum(),
        "given_scene_and_box": with_box / with_box.sum(),
    }


def _weigh_themes(kind: SceneType, others: Sequence[int]) -> np.ndarray:
    """Σ_t p(t | z) Π_j p(c_j | z, t) · p(c | z, t): the joint of the others and each class c, (C,)."""
    evidence = kind.theme_weights * kind.class_weights[:, list(others)].prod(axis=1)
    return evidence @ kind.class_weights


def _log_box_fit(thing: SceneObject) -> np.ndarray:
    """log p(side, aspect | class), up to a constant that all classes share, (C,)."""
    x1, y1, x2, y2 = thing.box
    log_side = math.log((x2 - x1) * (y2 - y1)) / 2 - math.log(thing.base)
    log_aspect = math.log((x2 - x1) / (y2 - y1))
    side = ((log_side - np.log(SIDES)) / SIDE_SIGMA) ** 2
    aspect = ((log_aspect - np.log(ASPECTS)) / ASPECT_SIGMA) ** 2
    return -(side + aspect) / 2


def class_frequencies() -> np.ndarray:
    """p(class) of a random object, (C,)."""
    return np.sum([s.prior * (s.theme_weights @ s.class_weights) for s in SCENES], axis=0)
