"""Pictures of labels and predictions: boxes, masks, and panels that set several sources side by side.

H, W: image size; N: boxes; C: object classes. Boxes are xyxy pixels of the image, labels 0…C−1, masks 0…C and
255, all arrays numpy. Colours are an index → RGB table, VOC's by default; object class c has colour c + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data.images import voc_palette
from .sample import IGNORE_INDEX, Prediction

MIN_SCORE = 0.3  # boxes below are counted, not drawn
SUREST = 3  # boxes drawn where none scores so much: a young network is still to be seen
MAX_BOXES = 12  # drawn on one picture; more cannot be told apart
SIDE = 300  # pixels of a tile's longer side: small images are enlarged, so that names can be read

_MIN_TILE = 170  # pixels; room for the legend beside very long or very flat images
_GAP, _CAPTION, _TEXT = 6, 20, 12  # pixels
_GREY, _INK = (226, 226, 226), (40, 40, 40)


@dataclass
class View:
    """What one source (ground truth, a teacher, a student) says about an image; None: nothing of that task.

    Attributes:
        name: of the source.
        boxes (N, 4), labels (N,), scores (N,): ``scores`` is None for ground truth.
        sem_seg: (H, W) uint8 class indices.
    """

    name: str
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    sem_seg: np.ndarray | None = None

    @classmethod
    def of_prediction(cls, name: str, prediction: Prediction) -> View:
        """From a prediction at the image's own size."""
        boxes, labels, scores = (
            None if value is None else value.detach().float().cpu().numpy()
            for value in (prediction.boxes, prediction.labels, prediction.scores)
        )
        labels = None if labels is None else labels.astype(np.int64)
        logits = prediction.sem_seg
        mask = None if logits is None else logits.argmax(0).to("cpu").numpy().astype(np.uint8)
        return cls(name, boxes, labels, scores, mask)


def colourise(mask: np.ndarray, palette: np.ndarray | None = None) -> np.ndarray:
    """(H, W) indices 0…255 as (H, W, 3) uint8 RGB."""
    return (voc_palette() if palette is None else palette)[mask]


def blend_mask(
    image: np.ndarray, mask: np.ndarray, palette: np.ndarray | None = None, opacity: float = 0.65
) -> np.ndarray:
    """The mask's colours over the image in light grey, since many of VOC's colours are dark.

    Args:
        image: (H, W, 3) uint8 RGB. mask: (H, W) indices. opacity: of the colours, 0…1.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the image {image.shape[:2]}")
    faded = 140 + 0.45 * image.mean(axis=2, keepdims=True)
    mixed = (1 - opacity) * faded + opacity * colourise(mask, palette)
    return np.round(np.where(mask[..., None] > 0, mixed, faded)).astype(np.uint8)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    scores: np.ndarray | None = None,
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of the image with boxes, class names and scores; the surest box lies on top.

    Args:
        image: (H, W, 3) uint8 RGB. boxes: (N, 4) pixels of it. scores: (N,) in 0…1; none for ground truth.
        classes: C names.
    """
    colours = voc_palette() if palette is None else palette
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for i in order:
        colour = tuple(int(c) for c in colours[int(labels[i]) + 1])
        text = classes[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}")
        _draw_box(draw, picture.size, boxes[i], text, colour)
    return np.asarray(picture)


def _draw_box(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: np.ndarray, text: str, colour: tuple[int, ...]
) -> None:
    width, height = size
    left, top = (int(v) for v in np.clip(np.round(box[:2]), 0, [width - 1, height - 1]))
    right, bottom = (int(v) for v in np.clip(np.round(box[2:]) - 1, [left, top], [width - 1, height - 1]))
    # A white line around the coloured one: VOC's colours are dark, and so are many images.
    draw.rectangle((left, top, right, bottom), outline="white", width=4)
    if right - left > 2 and bottom - top > 2:
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=3)
    span = draw.textbbox((0, 0), text, font=_font(_TEXT))
    text_width, text_height = int(span[2]) + 6, int(span[3]) + 4
    # The name stands above its box where there is room, and inside the image always.
    x = max(0, min(left, width - text_width))
    y = top - text_height if top >= text_height else min(top, height - text_height)
    draw.rectangle((x, y, x + text_width, y + text_height), fill=colour, outline="white")
    draw.text((x + 3, y + 1), text, fill=_ink_on(colour), font=_font(_TEXT))


def _ink_on(colour: tuple[int, ...]) -> str:
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return "black" if luminance > 140 else "white"


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def panel(
    image: np.ndarray,
    views: Sequence[View],
    classes: Sequence[str],
    *,
    title: str = "image",
    palette: np.ndarray | None = None,
    side: int = SIDE,
    min_score: float = MIN_SCORE,
) -> np.ndarray:
    """One RGB picture: the image, and one column for each view with its boxes above its mask, and a legend.

    A task that no view has makes no row. A view without a task's labels gets a plain tile that says so. Where
    no box scores ``min_score``, the surest few are drawn all the same, and the caption says so.

    Args:
        image: (H, W, 3) uint8 RGB. views: see :class:`View`. classes: C names. title: caption of the image.
        side: longer side of a tile in pixels. min_score: predicted boxes below are not drawn.
    """
    colours = voc_palette() if palette is None else palette
    tiles = _Tiles(image, classes, colours, side, min_score)
    rows = []
    if any(view.boxes is not None for view in views):
        rows.append([tiles.boxes(view) for view in views])
    if any(view.sem_seg is not None for view in views):
        rows.append([tiles.mask(view) for view in views])
    first, legend = tiles.captioned(tiles.image, title), tiles.legend(views)
    if len(rows) == 2:
        rows[0].insert(0, first)
        rows[1].insert(0, legend)
    else:
        rows = [[first, *(rows[0] if rows else []), legend]]
    return stack_tiles(rows)


def stack_tiles(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Equal tiles (h, w, 3) in rows of equal length, with white gaps."""
    height, width = rows[0][0].shape[:2]
    shape = (len(rows) * (height + _GAP) + _GAP, len(rows[0]) * (width + _GAP) + _GAP, 3)
    canvas = np.full(shape, 255, np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            y, x = _GAP + r * (height + _GAP), _GAP + c * (width + _GAP)
            canvas[y : y + height, x : x + width] = tile
    return canvas


class _Tiles:
    """The tiles of one panel: all of one size."""

    def __init__(
        self, image: np.ndarray, classes: Sequence[str], palette: np.ndarray, side: int, min_score: float
    ) -> None:
        height, width = image.shape[:2]
        self.scale = side / max(height, width)
        self.size = max(1, round(width * self.scale)), max(1, round(height * self.scale))
        smooth = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        self.image = cv2.resize(image, self.size, interpolation=smooth)
        self.classes, self.palette, self.min_score = classes, palette, min_score

    def boxes(self, view: View) -> np.ndarray:
        if view.boxes is None or view.labels is None:
            return self._plain(f"{view.name}: no boxes", "no boxes")
        chosen, caption = self._choose(view)
        picture = draw_boxes(
            self.image,
            view.boxes[chosen] * self.scale,
            view.labels[chosen],
            self.classes,
            None if view.scores is None else view.scores[chosen],
            self.palette,
        )
        return self.captioned(picture, caption)

    def _choose(self, view: View) -> tuple[np.ndarray, str]:
        """Indices of the boxes to draw, and the caption that says which they are."""
        assert view.labels is not None
        count = len(view.labels)
        if view.scores is None:
            chosen, caption = np.arange(count), f"{view.name}: {count} box{'' if count == 1 else 'es'}"
        else:
            order = np.argsort(-view.scores, kind="stable")
            chosen = order[view.scores[order] >= self.min_score]
            caption = f"{view.name}: {len(chosen)} of {count} boxes ≥ {self.min_score:g}"
            if count and not len(chosen):
                chosen = order[:SUREST]
                caption = f"{view.name}: {len(chosen)} surest of {count} boxes, all < {self.min_score:g}"
        if len(chosen) > MAX_BOXES:
            chosen, caption = chosen[:MAX_BOXES], f"{caption}; {MAX_BOXES} drawn"
        return chosen, caption

    def mask(self, view: View) -> np.ndarray:
        if view.sem_seg is None:
            return self._plain(f"{view.name}: no mask", "no mask")
        mask = cv2.resize(view.sem_seg, self.size, interpolation=cv2.INTER_NEAREST)
        return self.captioned(blend_mask(self.image, mask, self.palette), f"{view.name}: mask")

    def legend(self, views: Sequence[View]) -> np.ndarray:
        """Name and colour of every class that some view shows."""
        present: set[int] = set()
        for view in views:
            if view.labels is not None:
                present |= {int(label) + 1 for label in view.labels[self._choose(view)[0]]}
            if view.sem_seg is not None:
                present |= {int(k) for k in np.unique(view.sem_seg)}
        names = {k: self.classes[k - 1] for k in sorted(present - {0, IGNORE_INDEX})}
        if IGNORE_INDEX in present:
            names[IGNORE_INDEX] = "void"
        canvas = np.full((self.size[1], self.size[0], 3), 255, np.uint8)
        picture = Image.fromarray(self._padded(canvas))
        draw, line = ImageDraw.Draw(picture), _TEXT + 5
        room = max(1, picture.height // line)
        for place, (k, name) in enumerate(names.items()):
            x, y = 4 + place // room * picture.width // 2, 2 + place % room * line
            colour = tuple(int(c) for c in self.palette[k])
            draw.rectangle((x, y + 1, x + 18, y + _TEXT + 1), fill=colour, outline=_INK)
            draw.text((x + 24, y), name, fill=_INK, font=_font(_TEXT))
        return self.captioned(np.asarray(picture), "classes" if names else "no class")

    def captioned(self, picture: np.ndarray, caption: str) -> np.ndarray:
        """The picture below a line of text that is cut to its width."""
        picture = self._padded(picture)
        bar = Image.new("RGB", (picture.shape[1], _CAPTION), "white")
        font = _font(_TEXT)
        if font.getlength(caption) > bar.width:
            while caption and font.getlength(caption + "…") > bar.width:
                caption = caption[:-1]
            caption += "…"
        ImageDraw.Draw(bar).text((0, 2), caption, fill=_INK, font=font)
        return np.concatenate([np.asarray(bar), picture])

    def _padded(self, picture: np.ndarray) -> np.ndarray:
        missing = [max(0, _MIN_TILE - length) for length in picture.shape[:2]]
        return np.pad(picture, [(0, missing[0]), (0, missing[1]), (0, 0)], constant_values=255)

    def _plain(self, caption: str, text: str) -> np.ndarray:
        picture = Image.new("RGB", self.size, _GREY)
        middle = (self.size[0] / 2, self.size[1] / 2)
        ImageDraw.Draw(picture).text(middle, text, fill=(110, 110, 110), font=_font(20), anchor="mm")
        return self.captioned(np.asarray(picture), caption)
