"""Transforms that only choose a window of the image, see :mod:`.geometry`; several in a row are drawn in one go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..sample import IGNORE_INDEX, Sample
from .geometry import Frame, centres_inside


class Window:
    """A transform that only changes the frame."""

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        raise NotImplementedError

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        frame = Frame.of(sample)
        self.propose(frame, rng)
        return frame.render(sample)


class Windows(Window):
    """Window transforms in a row (zoom-out, crop, flip, resize, in this order), drawn once at the end.

    The draws are those of the transforms one after another; the pixels differ in rounding only.
    """

    def __init__(self, steps: Sequence[Window]) -> None:
        self.steps = list(steps)

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        for step in self.steps:
            step.propose(frame, rng)


class ZoomOut(Window):
    """Put the image at a random place of a larger canvas of the mean colour.

    Args:
        prob: chance for each image.
        min_factor, max_factor: the canvas is U(min, max) times as high and as wide.
        fill_seg: mask value of the canvas.
        per_run_seed: toss the coin once, for all images, from this seed (as the thesis's code does).
    """

    def __init__(
        self,
        prob: float = 0.5,
        *,
        min_factor: float = 1.05,
        max_factor: float = 4.0,
        fill_seg: int = IGNORE_INDEX,
        per_run_seed: int | None = None,
    ) -> None:
        if not 1.0 <= min_factor <= max_factor:
            raise ValueError(f"factors must be 1 ≤ min ≤ max, got {min_factor} and {max_factor}")
        self.prob, self.factors, self.fill_seg = prob, (min_factor, max_factor), fill_seg
        if per_run_seed is not None:
            self.prob = float(np.random.default_rng(per_run_seed).random() < prob)

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        if rng.random() >= self.prob:
            return
        factor = rng.uniform(*self.factors)
        right, down = rng.random(2)
        height, width = frame.y1 - frame.y0, frame.x1 - frame.x0
        new_height, new_width = round(height * factor), round(width * factor)
        frame.x0 -= int(right * (new_width - width + 1))
        frame.y0 -= int(down * (new_height - height + 1))
        frame.x1, frame.y1 = frame.x0 + new_width, frame.y0 + new_height
        frame.fill_seg = self.fill_seg


class IoUCrop(Window):
    """SSD's crop: a random window whose IoU with an object reaches a random minimum (or the whole image).

    The choices are the whole image, and each of ``min_overlaps``; a window must hold the centre of a box that
    it overlaps by that IoU. After ``tries`` windows that fail, the image stays whole. Boxes whose
    centre is outside are dropped, the others clipped. In an image without boxes the image itself (as against
    the zoom-out's canvas) is the object.

    Args:
        area: range of the window's share of the area. aspect: range of width over height, drawn evenly in its
            logarithm.
    """

    def __init__(
        self,
        prob: float = 1.0,
        *,
        min_overlaps: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        area: tuple[float, float] = (0.3, 1.0),
        aspect: tuple[float, float] = (0.5, 2.0),
        tries: int = 50,
    ) -> None:
        self.prob, self.min_overlaps, self.tries = prob, tuple(min_overlaps), tries
        self.area, self.log_aspect = area, (math.log(aspect[0]), math.log(aspect[1]))

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        if rng.random() >= self.prob:
            return
        choice = int(rng.integers(len(self.min_overlaps) + 1))
        if choice == len(self.min_overlaps):
            return
        windows = self._draw(frame, rng)
        boxes = frame.boxes[frame.keep] if frame.keep.any() else frame.picture[None]
        good = centres_inside(windows, boxes) & (_iou(windows, boxes) >= self.min_overlaps[choice])
        found = np.flatnonzero(good.any(axis=1))
        if not len(found):
            return
        window = windows[found[0]]
        frame.keep &= centres_inside(window[None], frame.boxes)[0]
        frame.x0, frame.y0, frame.x1, frame.y1 = (int(value) for value in window)

    def _draw(self, frame: Frame, rng: np.random.Generator) -> np.ndarray:
        """All the tries at once, (T, 4) whole pixels; those that do not fit the frame are left out."""
        height, width = frame.y1 - frame.y0, frame.x1 - frame.x0
        area = rng.uniform(*self.area, self.tries) * height * width
        aspect = np.exp(rng.uniform(*self.log_aspect, self.tries))
        right, down = rng.random((2, self.tries))
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (w <= width) & (h <= height) & (w >= 1) & (h >= 1)
        x0 = frame.x0 + np.floor(right * (width - w + 1))
        y0 = frame.y0 + np.floor(down * (height - h + 1))
        return np.stack([x0, y0, x0 + w, y0 + h], axis=1)[fits]


def _iou(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    low = np.maximum(windows[:, None, :2], boxes[:, :2])
    high = np.minimum(windows[:, None, 2:], boxes[:, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (windows, boxes)]
    return both / np.maximum(areas[0][:, None] + areas[1] - both, 1e-9)


class ScaleCrop(Window):
    """A square window of the image as it would be with a random short side; to be resized to ``size``.

    Where the scaled image is smaller than the window, it stands at the window's left or upper end, as in torchvision's
    training of FCN. Boxes whose centre is outside are dropped, the others clipped.

    Args:
        size: side of the window, in pixels of the scaled image.
        short_side: (min, max) of the image's short side, drawn evenly from the whole numbers.

    Raises:
        ValueError: a range that is empty or not above 0.
    """

    def __init__(self, size: int, short_side: tuple[int, int]) -> None:
        if not 0 < short_side[0] <= short_side[1]:
            raise ValueError(f"short_side must be 0 < min ≤ max, got {short_side}")
        self.size, self.short_side = size, (int(short_side[0]), int(short_side[1]))

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        short = int(rng.integers(self.short_side[0], self.short_side[1] + 1))
        right, down = rng.random(2)
        height, width = frame.y1 - frame.y0, frame.x1 - frame.x0
        side = max(1, round(self.size * min(height, width) / short))  # in pixels of the image as it is
        frame.x0 += int(right * (max(width - side, 0) + 1))
        frame.y0 += int(down * (max(height - side, 0) + 1))
        frame.x1, frame.y1 = frame.x0 + side, frame.y0 + side
        window = np.asarray([[frame.x0, frame.y0, frame.x1, frame.y1]], np.float32)
        frame.keep &= centres_inside(window, frame.boxes)[0]


class PadCrop(Window):
    """Move the window by up to ``pad`` pixels each way: the image padded on all sides, and a random crop of its own
    size (He et al., Deep Residual Learning, 2016, section 4.2). The padding has the mean colour.
    """

    def __init__(self, pad: int) -> None:
        if pad < 0:
            raise ValueError(f"pad must not be negative, got {pad}")
        self.pad = pad

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        if not self.pad:
            return
        right, down = (int(shift) for shift in rng.integers(-self.pad, self.pad + 1, 2))
        frame.x0, frame.x1 = frame.x0 + right, frame.x1 + right
        frame.y0, frame.y1 = frame.y0 + down, frame.y1 + down


class Letterbox(Window):
    """Widen the shorter side on both ends to the length of the longer, so that a resize to a square keeps proportions.
    The border has the mean colour, and is void in the mask."""

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        height, width = frame.y1 - frame.y0, frame.x1 - frame.x0
        side = max(height, width)
        frame.x0 -= (side - width) // 2
        frame.y0 -= (side - height) // 2
        frame.x1, frame.y1 = frame.x0 + side, frame.y0 + side


class Flip(Window):
    """Mirror left to right with probability ``prob``."""

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        frame.flip ^= bool(rng.random() < self.prob)


class Resize(Window):
    """Resize to (height, width): the image bilinearly, or by area averages where both sides shrink to
    less than half; the mask to the nearest pixel.

    Args:
        antialias: the image as Pillow resizes it, by a filter that widens as it shrinks.
    """

    def __init__(self, height: int, width: int, *, antialias: bool = False) -> None:
        self.size, self.antialias = (height, width), antialias

    def propose(self, frame: Frame, rng: np.random.Generator) -> None:
        frame.size, frame.antialias = self.size, self.antialias
