"""detectron2's own augmentations as one of SceneKD's transforms: boxes, mask and teachers' dense outputs follow.

Every geometric transform of detectron2 and fvcore tells where a point goes (``apply_coords``); all of theirs are
affine, so three points tell the map, and nothing has to be measured on pixels.

H, W: size before a transform; h, w: after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from fvcore.common.config import CfgNode

from ..data.geometry import shown
from ..data.track import Track
from ..errors import UserError
from ..sample import IGNORE_INDEX, Sample
from ..sampling import seeded

_TOLERANCE = 1e-2  # pixels; some transforms count in float32
_SMALLEST_SIDE = 1e-5  # of a box that detectron2 keeps


class SceneKDAugmentation:
    """Moves a sample that was not moved yet, by detectron2's augmentations.

    Boxes are the boxes around their moved corners, clipped; those without area are dropped, as detectron2 does. What
    shows padding is void in the mask.

    Args:
        augmentations: of detectron2, in order.
        image_format: RGB or BGR, what the augmentations of colours see.
    """

    def __init__(
        self, augmentations: Sequence[T.Augmentation | T.Transform], image_format: str = "RGB"
    ) -> None:
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, train: bool) -> SceneKDAugmentation:
        """Those that detectron2's DatasetMapper takes from ``cfg.INPUT``: resize, and in training crop and flip."""
        augmentations = detection_utils.build_augmentation(cfg, train)
        if train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return cls(augmentations, cfg.INPUT.FORMAT)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The moved sample; detectron2 draws from ``rng`` alone.

        Raises:
            UserError: a transform that moves no points, or by no affine map where a teacher or a mask must follow.
        """
        size = sample.image.shape[:2]
        mask = np.full(size, IGNORE_INDEX, np.uint8) if sample.sem_seg is None else sample.sem_seg
        given = T.AugInput(self._flipped(sample.image), boxes=sample.boxes.astype(np.float64), sem_seg=mask)
        try:
            with seeded(rng):
                done = self.augmentations(given)
        except NotImplementedError:
            raise UserError(
                f"{self.augmentations}: one of them cannot say where points go; leave it out"
            ) from None
        boxes, keep = _clip(given.boxes, *given.image.shape[:2])
        moved = dataclasses.replace(
            sample, image=self._flipped(given.image), boxes=boxes, height=sample.height, width=sample.width
        ).select(keep)
        if sample.soft_seg is None and sample.sem_seg is None and sample.masks is None:
            return moved
        moved.coordinates = _follow(done, *size).coordinates()
        if sample.sem_seg is not None:
            moved.sem_seg = np.where(shown(moved.coordinates), given.sem_seg, IGNORE_INDEX).astype(np.uint8)
        return moved

    def _flipped(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image[..., ::-1] if self.image_format == "BGR" else image)


def _clip(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    clipped = np.clip(boxes.reshape(-1, 4), 0, [width, height, width, height]).astype(np.float32)
    return clipped, (clipped[:, 2:] - clipped[:, :2] > _SMALLEST_SIDE).all(axis=1)


def _follow(done: T.TransformList, height: int, width: int) -> Track:
    """Where the pixels come from after the transforms that were done."""
    track, blank = Track.start(height, width), np.zeros((height, width), np.uint8)
    for transform in done.transforms:
        back = _back(transform, *blank.shape)
        blank = transform.apply_segmentation(blank)  # for its size alone
        if blank.shape != track.hidden.shape or not np.array_equal(back, np.eye(2, 3)):
            track = track.moved(back, blank.shape)
    return track


def _back(transform: Any, height: int, width: int) -> np.ndarray:
    """(2, 3) from a pixel of the result to the pixel it shows."""
    y, x = (axis.ravel() for axis in np.meshgrid([0, 0.5, 1], [0, 0.5, 1], indexing="ij"))
    points = np.stack([x * width, y * height], axis=1)
    places = np.asarray(transform.apply_coords(points.copy()), np.float64)
    if np.array_equal(places, points):
        return np.eye(2, 3)
    known = np.column_stack([points, np.ones(len(points))])
    forth = np.vstack([np.linalg.lstsq(known, places, rcond=None)[0].T, [0, 0, 1]])
    error = np.abs(known @ forth[:2].T - places).max()
    if not error < _TOLERANCE or abs(np.linalg.det(forth)) < 1e-9:
        raise UserError(
            f"{type(transform).__name__}: moves points by no affine map, so masks and teachers cannot follow; "
            "leave it out of the augmentations"
        )
    # detectron2's points lie on pixels' edges, half a pixel off the indices of the track
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    back: np.ndarray = (np.linalg.inv(half) @ np.linalg.inv(forth) @ half)[:2]
    return back
