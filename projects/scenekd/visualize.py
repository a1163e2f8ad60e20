"""Panels that set the labels and predictions of several sources side by side; shapes as in :mod:`.drawing`."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .data.images import voc_palette
from .data.instance_masks import match_boxes
from .drawing import (
    ERRORS,
    TEXT,
    VOID,
    blend_mask,
    colourise,
    draw_boxes,
    draw_errors,
    draw_masks,
    font,
    object_colours,
)
from .sample import IGNORE_INDEX
from .view import View

__all__ = ["View", "blend_mask", "colourise", "draw_boxes", "panel", "stack_tiles"]

MIN_SCORE = 0.3  # boxes below are counted, not drawn
SUREST = 3  # boxes drawn where none scores so much: a young network is still to be seen
MAX_BOXES = 12  # drawn on one picture; more cannot be told apart
SIDE = 300  # pixels of a tile's longer side: small images are enlarged, so that names can be read

_MIN_TILE = 170  # pixels; room for the legend beside very long or very flat images
_GAP, _CAPTION = 6, 20  # pixels
_GREY, _INK, _WRONG = (226, 226, 226), (40, 40, 40), (190, 30, 30)


def panel(
    image: np.ndarray,
    views: Sequence[View],
    classes: Sequence[str],
    *,
    title: str = "image",
    palette: np.ndarray | None = None,
    side: int = SIDE,
    min_score: float = MIN_SCORE,
    errors: bool = False,
) -> np.ndarray:
    """One RGB picture: the image, and one column for each view with its boxes above its mask, and a legend. Classes
    of the whole image are written into one more tile.

    With ``errors`` the first view is ground truth, and what is wrong in the masks of the others stands in one more
    row, below a key to its colours.

    A task that no view has makes no row. A view without a task's labels gets a plain tile that says so. Where
    no box scores ``min_score``, the surest few are drawn all the same, and the caption says so. Where a view has
    masks of its boxes, they are drawn with them, and all boxes of the panel have colours that tell objects apart: a
    view's box that is the same object as one of the first view (same class, IoU of ½ or more) has its colour.

    Args:
        image: (H, W, 3) uint8 RGB. views: see :class:`View`. classes: C names. title: caption of the image.
        side: longer side of a tile in pixels. min_score: predicted boxes below are not drawn.
    """
    colours = voc_palette() if palette is None else palette
    tiles = _Tiles(image, classes, colours, side, min_score)
    by_object = any(view.masks is not None for view in views)
    rows = []
    if any(view.boxes is not None for view in views):
        shades = tiles.shades(views) if by_object else [None] * len(views)
        rows.append([tiles.boxes(view, own) for view, own in zip(views, shades)])
    if any(view.sem_seg is not None for view in views):
        rows.append([tiles.mask(view) for view in views])
        if errors:
            rows.append([tiles.key(), *(tiles.errors(view, views[0]) for view in views[1:])])
    first, legend = tiles.captioned(tiles.image, title), tiles.legend(views, boxes=not by_object)
    whole = [tiles.whole(views)] if any(view.class_label is not None for view in views) else []
    if len(rows) > 1:
        for row, head in zip(rows, (first, legend, tiles.captioned(np.full_like(tiles.image, 255), ""))):
            row.insert(0, head)
    elif by_object:  # colours say nothing of classes
        rows[0].insert(0, first)
    elif rows or not whole:
        rows = [[first, *(rows[0] if rows else []), legend]]
    else:
        rows = [[first]]
    for row in rows:
        row += whole
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

    def shades(self, views: Sequence[View]) -> list[np.ndarray | None]:
        """(n, 3) uint8 RGB colours of the n boxes drawn of each view that has boxes, equal for equal objects."""
        shades: list[np.ndarray | None] = []
        first = None
        for view in views:
            if view.boxes is None or view.labels is None:
                shades.append(None)
                continue
            chosen = self._choose(view)[0]
            own = view.boxes[chosen], view.labels[chosen]
            first = first or own
            places = match_boxes(*own, *first)
            new = places < 0
            places[new] = len(first[1]) + np.arange(new.sum())
            shades.append(object_colours(len(first[1]) + len(places))[places])
        return shades

    def boxes(self, view: View, shades: np.ndarray | None = None) -> np.ndarray:
        """The view's boxes and their masks; ``shades``: colours of those drawn, by default their classes'."""
        if view.boxes is None or view.labels is None:
            return self._plain(f"{view.name}: no boxes", "no boxes")
        chosen, caption = self._choose(view)
        picture = self.image
        if view.masks is not None and shades is not None:
            picture = draw_masks(picture, [self._enlarged(mask) for mask in view.masks[chosen]], shades)
        picture = draw_boxes(
            picture,
            view.boxes[chosen] * self.scale,
            view.labels[chosen],
            self.classes,
            None if view.scores is None else view.scores[chosen],
            self.palette,
            shades,
        )
        return self.captioned(picture, caption)

    def _enlarged(self, mask: np.ndarray) -> np.ndarray:
        """An object's (H, W) bool mask at the tile's size; smooth, as the image under it is."""
        return cv2.resize(mask.astype(np.float32), self.size, interpolation=cv2.INTER_LINEAR) > 0.5

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

    def errors(self, view: View, truth: View) -> np.ndarray:
        """What is wrong in the view's mask; its share is of the whole image, not of the tile's pixels."""
        if view.sem_seg is None or truth.sem_seg is None:
            missing = "no mask" if view.sem_seg is None else "no ground truth"
            return self._plain(f"{view.name}: {missing}", missing)
        whole = np.zeros((*truth.sem_seg.shape, 3), np.uint8)
        share = draw_errors(whole, view.sem_seg, truth.sem_seg)[1]
        small = (
            cv2.resize(mask, self.size, interpolation=cv2.INTER_NEAREST)
            for mask in (view.sem_seg, truth.sem_seg)
        )
        text = "all is void" if np.isnan(share) else f"{100 * share:.1f} % wrong"
        return self.captioned(draw_errors(self.image, *small)[0], f"{view.name}: {text}")

    def key(self) -> np.ndarray:
        """What the colours of an error map mean."""
        entries = [*ERRORS.items(), ("void: not counted", VOID), ("right: the image, faded", (225, 225, 225))]
        return self._listed(entries, "what is wrong:")

    def whole(self, views: Sequence[View]) -> np.ndarray:
        """The class of the whole image by each view; wrong ones, where the first tells ground truth, in red."""
        picture = Image.fromarray(self._padded(np.full((self.size[1], self.size[0], 3), 255, np.uint8)))
        draw, line = ImageDraw.Draw(picture), TEXT + 5
        truth = views[0].class_label if views[0].probability is None else None
        for place, view in enumerate(views):
            said, ink = "no class", _INK
            if view.class_label is not None:
                said = self.classes[view.class_label]
                ink = _WRONG if truth is not None and view.class_label != truth else _INK
            if view.probability is not None:
                said += f" {100 * view.probability:.0f} %"
            for row, text in enumerate((f"{view.name}:", f"  {said}")):
                draw.text((4, 4 + (2 * place + row) * line), text, fill=ink if row else _INK, font=font(TEXT))
        return self.captioned(np.asarray(picture), "class of the image")

    def legend(self, views: Sequence[View], boxes: bool = True) -> np.ndarray:
        """Name and colour of every class that some view shows, in a mask or (``boxes``) in the colour of a box."""
        present: set[int] = set()
        for view in views:
            if boxes and view.labels is not None:
                present |= {int(label) + 1 for label in view.labels[self._choose(view)[0]]}
            if view.sem_seg is not None:
                present |= {int(k) for k in np.unique(view.sem_seg)}
        names = {k: self.classes[k - 1] for k in sorted(present - {0, IGNORE_INDEX})}
        if IGNORE_INDEX in present:
            names[IGNORE_INDEX] = "void"
        entries = [(name, tuple(int(c) for c in self.palette[k])) for k, name in names.items()]
        return self._listed(entries, "classes" if names else "no class")

    def _listed(self, entries: Sequence[tuple[str, tuple[int, ...]]], caption: str) -> np.ndarray:
        """Names beside their colours, in two columns where one does not hold them."""
        canvas = np.full((self.size[1], self.size[0], 3), 255, np.uint8)
        picture = Image.fromarray(self._padded(canvas))
        draw, line = ImageDraw.Draw(picture), TEXT + 5
        room = max(1, picture.height // line)
        for place, (name, colour) in enumerate(entries):
            x, y = 4 + place // room * picture.width // 2, 2 + place % room * line
            draw.rectangle((x, y + 1, x + 18, y + TEXT + 1), fill=colour, outline=_INK)
            draw.text((x + 24, y), name, fill=_INK, font=font(TEXT))
        return self.captioned(np.asarray(picture), caption)

    def captioned(self, picture: np.ndarray, caption: str) -> np.ndarray:
        """The picture below a line of text that is cut to its width."""
        picture = self._padded(picture)
        bar = Image.new("RGB", (picture.shape[1], _CAPTION), "white")
        letters = font(TEXT)
        if letters.getlength(caption) > bar.width:
            while caption and letters.getlength(caption + "…") > bar.width:
                caption = caption[:-1]
            caption += "…"
        ImageDraw.Draw(bar).text((0, 2), caption, fill=_INK, font=letters)
        return np.concatenate([np.asarray(bar), picture])

    def _padded(self, picture: np.ndarray) -> np.ndarray:
        missing = [max(0, _MIN_TILE - length) for length in picture.shape[:2]]
        return np.pad(picture, [(0, missing[0]), (0, missing[1]), (0, 0)], constant_values=255)

    def _plain(self, caption: str, text: str) -> np.ndarray:
        picture = Image.new("RGB", self.size, _GREY)
        middle = (self.size[0] / 2, self.size[1] / 2)
        ImageDraw.Draw(picture).text(middle, text, fill=(110, 110, 110), font=font(20), anchor="mm")
        return self.captioned(np.asarray(picture), caption)
