"""One way to move a sample: a window of it (it may reach outside) becomes the new image, scaled and flipped.

Zoom-out, crop, flip, padding and resize are all windows; several in a row are composed and drawn once, so a
zoom-out to four times the size costs no canvas of that size.

H, W: size before; h, w: size after. Pixel j covers j…j+1, its centre is j + 0.5.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from ..sample import IGNORE_INDEX, Sample

MEAN_COLOUR = (123, 116, 103)  # ImageNet's mean, RGB


def identity_coordinates(height: int, width: int) -> np.ndarray:
    """The coordinate field of an image that was not moved: (H, W, 2) float32, (x, y) of pixel centres."""
    return _separable((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)


def _separable(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    field = np.empty((len(y), len(x), 2), np.float32)
    field[..., 0] = x
    field[..., 1] = y[:, None]
    return field


def move_coordinates(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The field at source indices ``x`` (w,) and ``y`` (h,), continued linearly outside: (h, w, 2) float32.

    Index 0 is the first pixel's centre. Linear interpolation is exact for every affine field.
    """
    return _along(_along(field, y, axis=0), x, axis=1)


def hide_padding(field: np.ndarray, padding: np.ndarray) -> None:
    """Make the field NaN, in place, where padding stands for a part of the image that was cut off earlier.

    There the linear continuation falls inside [0, 1], though nothing of the image is shown. Elsewhere padding
    is outside already, and keeping it linear lets later interpolation near the border stay exact.
    """
    field[padding & shown(field)] = np.nan


def shown(field: np.ndarray) -> np.ndarray:
    """(H, W) bool: where a field shows a part of the image, up to rounding of float32."""
    inside: np.ndarray = np.all((field >= -1e-6) & (field <= 1 + 1e-6), axis=2)
    return inside


def _along(field: np.ndarray, position: np.ndarray, axis: int) -> np.ndarray:
    length = field.shape[axis]
    if length == 1:
        # One pixel shows no slope; as pixels are even, its neighbours are unlikely to matter.
        return np.repeat(field, len(position), axis)
    first = np.clip(np.floor(position), 0, length - 2).astype(np.intp)
    share = (position - first).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    left, right = field.take(first, axis), field.take(first + 1, axis)
    return left + share * (right - left)


def centres_inside(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T, N) bool: whether the centre of each of N boxes lies inside each of T windows."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    x0, y0, x1, y1 = (side[:, None] for side in windows.T)
    return (x > x0) & (x < x1) & (y > y0) & (y < y1)


@dataclass
class Frame:
    """What part of a sample will be seen, while transforms are still being drawn.

    Attributes:
        x0, y0, x1, y1: the window, in the sample's pixels; may reach outside.
        boxes: (N, 4) the sample's boxes, in its pixels. keep: (N,) bool.
        picture: (4,) the part of the sample that shows the image, not padding.
        flip: mirrored left to right at the end. size: (h, w) of the result, or None for the window's own.
        fill_seg: label of what lies outside.
        antialias: the image is drawn as Pillow does, see :func:`_resize`.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    boxes: np.ndarray
    keep: np.ndarray
    picture: np.ndarray
    flip: bool = False
    size: tuple[int, int] | None = None
    fill_seg: int = IGNORE_INDEX
    antialias: bool = False

    @classmethod
    def of(cls, sample: Sample) -> Frame:
        height, width = sample.image.shape[:2]
        picture = _picture(sample, height, width)
        return cls(0, 0, width, height, sample.boxes, np.ones(len(sample.boxes), bool), picture)

    def render(self, sample: Sample) -> Sample:
        """The sample as the frame shows it; boxes are clipped to the frame."""
        size = self.size or (self.y1 - self.y0, self.x1 - self.x0)
        height, width = sample.image.shape[:2]
        whole = (self.x0, self.y0, self.x1, self.y1) == (0, 0, width, height)
        if whole and size == (height, width) and not self.flip and self.keep.all():
            return sample
        across = _Axis.of(self.x0, self.x1, width, size[1], self.flip)
        down = _Axis.of(self.y0, self.y1, height, size[0], False)
        kept = sample if self.keep.all() else sample.select(self.keep)
        x, y = across.source(), down.source()
        if sample.coordinates is None:
            coordinates = _separable((x + 0.5) / width, (y + 0.5) / height)
        else:
            coordinates = move_coordinates(sample.coordinates, x, y)
            padding = ((y < -0.5) | (y > height - 0.5))[:, None] | (x < -0.5) | (x > width - 0.5)
            hide_padding(coordinates, padding)
        return dataclasses.replace(
            kept,
            image=_draw_image(sample.image, across, down, self.antialias),
            boxes=_move_boxes(kept.boxes, across, down),
            doubtful_boxes=None
            if sample.doubtful_boxes is None
            else _move_boxes(sample.doubtful_boxes, across, down),
            sem_seg=None
            if sample.sem_seg is None
            else _draw_labels(sample.sem_seg, across, down, self.fill_seg),
            coordinates=coordinates,
        )


def _picture(sample: Sample, height: int, width: int) -> np.ndarray:
    if sample.coordinates is None:
        return np.asarray([0, 0, width, height], np.float32)
    visible = shown(sample.coordinates)
    x, y = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
    if not len(x):
        return np.asarray([0, 0, width, height], np.float32)
    return np.asarray([x[0], y[0], x[-1] + 1, y[-1] + 1], np.float32)


@dataclass
class _Axis:
    """One axis: source pixels s0…s1 land on d0…d1 of ``out`` pixels (before the flip). All whole numbers.

    The borders of the visible part are rounded to whole pixels of the result; image, mask, boxes and
    coordinates use the same rounded map, so they agree to the last digit.
    """

    s0: int
    s1: int
    d0: int
    d1: int
    out: int
    flip: bool

    @classmethod
    def of(cls, start: int, stop: int, length: int, out: int, flip: bool) -> _Axis:
        s0, s1 = max(start, 0), min(stop, length)
        scale = out / (stop - start)
        if s1 <= s0:  # nothing of the image is in the window
            return cls(start, stop, 0, out, out, flip)
        d0 = min(round((s0 - start) * scale), out - 1)
        d1 = max(round((s1 - start) * scale), d0 + 1)
        return cls(s0, s1, d0, d1, out, flip)

    @property
    def scale(self) -> float:
        return (self.d1 - self.d0) / (self.s1 - self.s0)

    def source(self) -> np.ndarray:
        """The source index (pixel centre = whole number) that each result pixel shows."""
        index = np.arange(self.out)
        if self.flip:
            index = index[::-1]
        return self.s0 + (index + 0.5 - self.d0) / self.scale - 0.5

    def labels(self, length: int) -> np.ndarray:
        """The nearest source index for each result pixel of d0…d1, unflipped (torch's ``nearest-exact``)."""
        seen, shown = self.s1 - self.s0, self.d1 - self.d0
        return np.minimum(self.s0 + (2 * np.arange(shown) + 1) * seen // (2 * shown), length - 1)

    def outside(self, length: int) -> bool:
        """Whether nothing of a source of ``length`` pixels is seen."""
        return self.s0 >= length or self.s1 <= 0


def _draw_image(image: np.ndarray, across: _Axis, down: _Axis, antialias: bool) -> np.ndarray:
    height, width = image.shape[:2]
    result = np.empty((down.out, across.out, 3), np.uint8)
    covered = (across.d0, down.d0, across.d1, down.d1) == (0, 0, across.out, down.out)
    outside = across.outside(width) or down.outside(height)
    if outside or not covered:
        result[:] = MEAN_COLOUR
    if not outside:
        part = image[down.s0 : down.s1, across.s0 : across.s1]
        size = (across.d1 - across.d0, down.d1 - down.d0)
        if size != (part.shape[1], part.shape[0]):
            part = _resize(part, size, max(across.scale, down.scale) < 0.5, antialias)
        result[down.d0 : down.d1, across.d0 : across.d1] = part
    return cv2.flip(result, 1) if across.flip else result


def _resize(image: np.ndarray, size: tuple[int, int], shrinks: bool, antialias: bool) -> np.ndarray:
    """Bilinear; area averages where both axes shrink to less than half, as bilinear would skip pixels. With
    ``antialias`` Pillow's bilinear filter, which widens as the image shrinks, and skips none."""
    if antialias:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _draw_labels(sem_seg: np.ndarray, across: _Axis, down: _Axis, fill: int) -> np.ndarray:
    height, width = sem_seg.shape
    result = np.full((down.out, across.out), fill, np.uint8)
    if not (across.outside(width) or down.outside(height)):
        part = sem_seg.take(down.labels(height), axis=0).take(across.labels(width), axis=1)
        result[down.d0 : down.d1, across.d0 : across.d1] = part
    return cv2.flip(result, 1) if across.flip else result


def _move_boxes(boxes: np.ndarray, across: _Axis, down: _Axis) -> np.ndarray:
    moved = np.empty((len(boxes), 4), np.float32)
    for axis, columns in ((across, slice(0, 4, 2)), (down, slice(1, 4, 2))):
        moved[:, columns] = np.clip(axis.d0 + (boxes[:, columns] - axis.s0) * axis.scale, 0, axis.out)
    if across.flip:
        moved[:, 0::2] = across.out - moved[:, 2::-2]
    return moved


def wider(box: np.ndarray, margin: float, width: int, height: int) -> tuple[int, int, int, int]:
    """A box (xyxy) as whole pixels, wider by ``margin`` of its longer side on each side as far as an image goes."""
    more = margin * float(max(box[2] - box[0], box[3] - box[1]))
    low, high = np.floor(box[:2] - more), np.ceil(box[2:] + more)
    left, top, right, bottom = np.clip([*low, *high], 0, [width, height] * 2).astype(int).tolist()
    return left, top, right, bottom
