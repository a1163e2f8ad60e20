"""Which object may be hidden, and hiding it.

N: boxes; S: shapes; H, W: the network input, on which everything here happens: the picture is hidden after it was
augmented and resized, so that no interpolation carries an object's pixels out of its hole.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.data.geometry import identity_coordinates
from scenekd.data.holes import (
    FILLS,
    SHAPES,
    areas,
    covered_shares,
    draw_hole,
    extents,
    fill_hole,
    hole_shares,
)
from scenekd.data.instance_masks import sample_masks
from scenekd.data.mapper import network_pixels
from scenekd.errors import UserError
from scenekd.hidden import HiddenObject, HiddenRegion
from scenekd.sample import Sample
from scenekd.sampling import STREAM_HIDE, draw_rng
from scenekd.teachers.options import our_classes

from .augmentation import build_augmentation
from .config import KEY
from .hole_groups import also_hidden

OTHERS = ("keep", "skip", "multi_label")
DRAWS = ("image", "object")


@dataclass(frozen=True)
class Hider:
    """The rules of ``MODEL.BLINDNET.MASK``, see :func:`.config.add_blindnet_config` for what its keys mean.

    Attributes:
        num_classes: C. shapes … difficult, also: the keys of these names. start, steps: of the curriculum.
    """

    num_classes: int
    shapes: tuple[str, ...] = ("box",)
    fill: str = "zero"
    margin: int = 0
    max_area: float = 0.5
    others: str = "keep"
    others_covered: float = 0.5
    difficult: bool = True
    start: float = 1.0
    steps: int = 0
    also: int = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Hider:
        """From ``cfg.MODEL.BLINDNET.MASK``.

        Raises:
            UserError: a value out of its range.
        """
        mask = cfg.MODEL.BLINDNET.MASK
        choices: list[tuple[str, str, tuple[str, ...]]]
        choices = [("SHAPES", name, SHAPES) for name in mask.SHAPES or ("",)]
        choices += [("FILL", mask.FILL, FILLS), ("OTHERS", mask.OTHERS, OTHERS), ("DRAW", mask.DRAW, DRAWS)]
        for key, value, known in choices:
            if value not in known:
                raise UserError(f"{KEY}.MASK.{key}: {value!r} is none of {', '.join(known)}")
        for key in ("MAX_AREA", "PARTIAL_START"):
            if not 0 < mask[key] <= 1:
                raise UserError(f"{KEY}.MASK.{key}: {mask[key]} is no share above 0, up to 1")
        if not 0 <= mask.OTHERS_COVERED <= 1:
            raise UserError(f"{KEY}.MASK.OTHERS_COVERED: {mask.OTHERS_COVERED} is no share between 0 and 1")
        for key in ("MARGIN", "PARTIAL_ITERS", "ALSO"):
            if mask[key] < 0:
                raise UserError(f"{KEY}.MASK.{key}: {mask[key]}; it must be at least 0")
        return cls(
            len(our_classes(cfg)),
            shapes=tuple(mask.SHAPES),
            fill=mask.FILL,
            margin=mask.MARGIN,
            max_area=mask.MAX_AREA,
            others=mask.OTHERS,
            others_covered=mask.OTHERS_COVERED,
            difficult=mask.DIFFICULT,
            start=mask.PARTIAL_START,
            steps=mask.PARTIAL_ITERS,
            also=mask.ALSO,
        )

    def share(self, iteration: int) -> float:
        """The share of a hole's bounds that is covered in a training iteration (0-based)."""
        if iteration >= self.steps:
            return 1.0
        return self.start + (1 - self.start) * iteration / self.steps

    def admissible(self, boxes: np.ndarray, difficult: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(S, N) bool: which object may be hidden, by a hole of which shape.

        Args:
            boxes: (N, 4) in a picture of ``size`` (H, W). difficult: (N,) bool.
        """
        allowed = np.zeros((len(self.shapes), len(boxes)), bool)
        for row, shape in enumerate(self.shapes):
            bounds = extents(boxes, shape, size, self.margin)
            allowed[row] = (areas(bounds) > 0) & (areas(bounds) <= self.max_area * size[0] * size[1])
            if self.others == "skip":
                covered = covered_shares(bounds, boxes) > self.others_covered
                np.fill_diagonal(covered, False)
                allowed[row] &= ~covered.any(axis=1)
        return allowed if self.difficult else allowed & ~difficult

    def cases(
        self,
        picture: str,
        boxes: np.ndarray,
        labels: np.ndarray,
        difficult: np.ndarray,
        size: tuple[int, int],
        *,
        places: np.ndarray | None = None,
        scene: str = "",
    ) -> list[HiddenObject]:
        """One case for each object of a picture that can be hidden, in their order.

        Args:
            picture: image id. boxes: (N, 4) in a picture of ``size`` (H, W). labels, difficult: (N,).
            places: (N,) what the objects are numbered by; by default 0…N−1.
            scene: type of scene.
        """
        numbers = np.arange(len(boxes)) if places is None else places
        found = []
        for i, (place, shapes) in enumerate(zip(numbers, self.admissible(boxes, difficult, size).T)):
            rows = np.flatnonzero(shapes)
            if not len(rows):
                continue
            shape = self.shapes[rows[stable_number(f"{picture}#{place}") % len(rows)]]
            bounds = extents(boxes[i][None], shape, size, self.margin)
            seen = covered_shares(bounds[0], np.delete(boxes, i, axis=0)) <= self.others_covered
            case = HiddenObject(
                picture=picture,
                place=int(place),
                label=int(labels[i]),
                shape=shape,
                ratio=float(areas(bounds)[0] / (size[0] * size[1])),
                visible=int(seen.sum()),
                scene=scene,
            )
            found.append(case)
        return found

    def choose(self, sample: Sample, rng: np.random.Generator) -> tuple[int, str] | None:
        """An object of a sample, and the shape of its hole, at random: any shape that has a candidate, then any of its
        candidates; None where there is none."""
        size = sample.image.shape[:2]
        allowed = self.admissible(sample.boxes, sample.difficult, (size[0], size[1]))
        rows = np.flatnonzero(allowed.any(axis=1))
        if not len(rows):
            return None
        row = rng.choice(rows)
        return int(rng.choice(np.flatnonzero(allowed[row]))), self.shapes[row]

    def hide(
        self,
        sample: Sample,
        place: int,
        shape: str,
        rng: np.random.Generator,
        share: float = 1.0,
        *,
        also: int = 0,
    ) -> Sample:
        """The sample without its object ``place``; its own arrays stay as they are.

        Args:
            share: of the hole's bounds that is covered.
            also: up to so many other regions are hidden, too.
        """
        size = (sample.image.shape[0], sample.image.shape[1])
        segment = self._segment(sample, place, size) if shape == "segment" else None
        hole = draw_hole(
            sample.boxes[place], shape, size, rng, margin=self.margin, segment=segment, share=share
        )
        covered = hole_shares(hole, sample.boxes) > self.others_covered
        covered[place] = True
        classes = np.zeros(self.num_classes, np.float32)
        classes[sample.labels[covered] if self.others == "multi_label" else sample.labels[place]] = 1
        more = also_hidden(sample.boxes, place, shape, size, rng, most=also, margin=self.margin)
        hidden = hole if more is None else hole | more
        if more is not None:
            covered |= hole_shares(hidden, sample.boxes) > self.others_covered
        return dataclasses.replace(
            sample,
            image=fill_hole(sample.image, hidden, self.fill, rng),
            masks=None,
            hidden=HiddenRegion(hole, place, ~covered, classes, more),
        )

    @staticmethod
    def _segment(sample: Sample, place: int, size: tuple[int, int]) -> np.ndarray | None:
        if sample.masks is None:
            return None
        field = sample.coordinates if sample.coordinates is not None else identity_coordinates(*size)
        return np.asarray(sample_masks(sample.masks[place][None], field)[0] == 1)


def hide_boxes(image: np.ndarray, boxes: np.ndarray, cfg: CfgNode) -> tuple[np.ndarray, np.ndarray]:
    """See :meth:`scenekd.hooks.Hooks.hide_boxes`. The hole has the first of ``SHAPES`` that a box alone tells; a box
    under the cap of ``MAX_AREA`` can be hidden, whatever else its hole covers.

    Raises:
        UserError: every shape needs the object's outline.
    """
    hider = dataclasses.replace(Hider.from_config(cfg), others="keep")
    shapes = [shape for shape in hider.shapes if shape != "segment"]
    if not shapes:
        raise UserError(
            f"{KEY}.MASK.SHAPES: a box has no outline to hide it by; train the network with box, too"
        )
    hider = dataclasses.replace(hider, shapes=(shapes[0],))
    sample = build_augmentation(cfg, train=False)(plain_sample(image, boxes), np.random.default_rng(0))
    side = cfg.INPUT.SIZE
    hidden = hider.admissible(sample.boxes, sample.difficult, (side, side))[0]
    pixels = [
        network_pixels(hider.hide(sample, place, shapes[0], np.random.default_rng(place)))
        for place in np.flatnonzero(hidden).tolist()
    ]
    return np.stack(pixels) if pixels else np.zeros((0, 4, side, side), np.uint8), hidden


def plain_sample(image: np.ndarray, boxes: np.ndarray, name: str = "") -> Sample:
    """A picture (H, W, 3) with regions (N, 4) of it, of which nothing else is known."""
    none = np.zeros(len(boxes), np.int64)
    return Sample(
        image=image,
        image_id=name,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=none,
        confidences=np.ones(len(boxes), np.float32),
        from_teacher=none > 0,
        difficult=none > 0,
    )


def stable_number(key: str) -> int:
    """A number that follows from a name alone, for choices that must not depend on the order of a list."""
    return zlib.crc32(key.encode())


def case_rng(seed: int, name: str) -> np.random.Generator:
    """What is drawn for a case of an evaluation follows from its name alone."""
    return draw_rng(seed, stable_number(name), STREAM_HIDE)
