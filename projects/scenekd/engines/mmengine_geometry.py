"""MMSegmentation's own geometric transforms, with boxes and teachers' dense outputs moved along exactly.

MMSegmentation moves the image and the fields in ``seg_fields``, the latter to the nearest pixel, which is too
coarse for a teacher's output, and boxes only in some of its transforms. Every transform in ``SUPPORTED`` is one
affine map of pixels, though. :class:`SceneKDGeometry` runs each of them a second time, with the same random
numbers, on an image that holds its own pixel indices, and reads the map off the result.

H, W: size before a transform; h, w: after. Pixel (0, 0) is the first pixel's centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import DefaultScope
from mmseg.registry import TRANSFORMS as SEG_TRANSFORMS

from ..errors import UserError
from ..sampling import seeded
from .mmengine_track import BOXES, SUPPORTED, TRACK, WITNESS, Track, renew_witness

_MARK = -7.25  # third channel of the probe: no padding value that anyone would choose
_TOLERANCE = 0.2  # pixels: area averages are up to 1/8 off a straight line, nearest pixels from 1/4 on
_FIT_PIXELS = 4096


class SceneKDGeometry(BaseTransform):
    """Runs geometric transforms of MMSegmentation; boxes and teachers' dense outputs follow.

    A moved box is the box around its moved corners, clipped; one whose centre leaves the image is dropped.

    Args:
        transforms: configurations of transforms in ``SUPPORTED``, in order.
        min_box_side: boxes with a side under so many pixels are dropped.

    Raises:
        UserError: a transform that is not supported, or one that turns out to be no affine map, for example
            ``interpolation='nearest'``.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]], min_box_side: float = 0.0) -> None:
        self.min_box_side = min_box_side
        self.transforms = [_build(config) for config in transforms]

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The moved image with all that belongs to it."""
        for transform in self.transforms:
            results = self._move(transform, results)
        return results

    def _move(self, transform: Any, results: dict[str, Any]) -> dict[str, Any]:
        track: Track | None = results.pop(TRACK, None)
        boxes = {key: results.pop(key) for key in list(results) if key.startswith(BOXES)}
        if track is None and not boxes:
            return transform(results)
        if results.pop(WITNESS, None) is not None:
            results["seg_fields"].remove(WITNESS)
        size = results["img"].shape[:2]
        draw = int(np.random.randint(2**31))  # noqa: NPY002 - MMEngine seeds this generator
        probe = {**results, "img": _probe(*size), "seg_fields": []}
        with seeded(np.random.default_rng(draw)):
            probe = transform(probe)
        with seeded(np.random.default_rng(draw)):
            results = transform(results)
        after = results["img"].shape[:2]
        results["img_shape"] = after  # RandomRotate leaves the old one
        back = _fit(probe["img"], *size, name=type(transform).__name__)
        if track is not None:
            if back is None:
                results[TRACK] = Track(track.matrix, np.ones(after, bool))
            else:
                results[TRACK] = track.moved(back, after)
            renew_witness(results)
        if boxes:
            results.update(self._move_boxes(boxes, back, after))
        return results

    def _move_boxes(
        self, boxes: dict[str, np.ndarray], back: np.ndarray | None, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        if back is None:
            return {key: value[:0] for key, value in boxes.items()}
        height, width = size
        forth = np.linalg.inv(np.vstack([back, [0, 0, 1]]))[:2]
        # Box corners lie between pixels: half a pixel off the indices that the map is about.
        corners = boxes[BOXES][:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) - 0.5
        corners = corners @ forth[:, :2].T + forth[:, 2] + 0.5
        low, high = corners.min(axis=1), corners.max(axis=1)
        centre = (low + high) / 2
        limit = np.array([width, height])
        moved = np.clip(np.concatenate([low, high], axis=1), 0, np.tile(limit, 2)).astype(np.float32)
        keep = ((centre > 0) & (centre < limit)).all(axis=1)
        keep &= (moved[:, 2:] - moved[:, :2] >= self.min_box_side).all(axis=1)
        return {key: (moved if key == BOXES else value)[keep] for key, value in boxes.items()}


def _build(config: dict[str, Any]) -> Any:
    name = str(config.get("type", "")).rsplit(".", 1)[-1]
    if name not in SUPPORTED:
        raise UserError(
            f"SceneKDGeometry: cannot follow {name or config}; it takes {', '.join(SUPPORTED)}; leave "
            "transforms of colours outside it"
        )
    if config.get("backend", "cv2") != "cv2":
        raise UserError(f"SceneKDGeometry: {name} with backend={config['backend']!r}; leave it at 'cv2'")
    with DefaultScope.overwrite_default_scope("mmseg"):  # whatever scope the configuration runs in
        return SEG_TRANSFORMS.build(config)


def _probe(height: int, width: int) -> np.ndarray:
    probe = np.full((height, width, 3), _MARK, np.float32)
    probe[..., 0], probe[..., 1] = np.arange(width), np.arange(height)[:, None]
    return probe


def _fit(probe: np.ndarray, height: int, width: int, *, name: str) -> np.ndarray | None:
    """(2, 3) from a result pixel to the (x, y) it shows; None where only padding is seen."""
    x, y, mark = probe.reshape(-1, 3).T
    seen = np.flatnonzero(np.abs(mark - _MARK) < 1e-3)
    if not len(seen):
        return None
    # Resizing repeats the outermost pixels, so what lies near the border may show less than its place.
    margin = (min(4, (width - 1) // 4), min(4, (height - 1) // 4))
    deep = (x[seen] > margin[0]) & (x[seen] < width - 1 - margin[0])
    deep &= (y[seen] > margin[1]) & (y[seen] < height - 1 - margin[1])
    chosen = seen[deep] if deep.sum() >= 16 else seen
    if len(chosen) > _FIT_PIXELS:  # at random, as a stride might pick one column
        chosen = chosen[np.random.default_rng(0).integers(len(chosen), size=_FIT_PIXELS)]
    rows, columns = np.divmod(chosen, probe.shape[1])
    places = np.stack([columns, rows, np.ones_like(rows)], axis=1).astype(np.float64)
    wanted = np.stack([x[chosen], y[chosen]], axis=1).astype(np.float64)
    back, _, rank, _ = np.linalg.lstsq(places, wanted, rcond=None)
    if rank < 3 or np.abs(places @ back - wanted).max() > _TOLERANCE:
        raise UserError(
            f"SceneKDGeometry: {name} moved the pixels by no affine map (bilinear or area interpolation "
            "are followed, nearest is not)"
        )
    return np.asarray(back.T)
