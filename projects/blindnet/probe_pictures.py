"""What a probe found, as pictures: bars beside a hole, and heat maps over the picture.

C: classes; H, W: the picture. Colours are those of :data:`scenekd.visualize_curves.COLOURS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from scenekd.drawing import font

from .probe import Probed, Sweep

TOP = 10  # names beside a hole
FEW = 5  # classes that a sweep draws by itself
_SIDES = (360, 560)  # pixels of the picture's longer side, at least and at most
_TEXT, _ROW, _GAP = 14, 24, 12  # pixels
_BAR, _INK, _PALE, _RIM = (0, 114, 178), (40, 40, 40), (150, 150, 150), (255, 64, 64)
_FAINT = 0.05  # the least end of a heat map's scale: what is never likely has no strong colours
_TILE = 3.4  # inches, the width of a map
# From nothing to dark red, so that where little is expected the picture itself is seen.
_HEAT = ListedColormap(
    [(*colormaps["YlOrRd"](v)[:3], 0.9 * min(1.0, 2.5 * v)) for v in np.linspace(0, 1, 256)]
)
_SCALES = (0.1, 0.25, 0.5, 1.0)  # where the bars' axis may end


def draw_probe(found: Sequence[Probed], classes: Sequence[str], shares: np.ndarray | None) -> np.ndarray:
    """One row for each region: the picture with the hole's rim in red, and bars of the likeliest classes.

    Args:
        found: of one picture. classes: C names.
        shares: (C,) of the training objects, drawn as a mark on each bar; None: not known.
    """
    width = round(max(font(_TEXT).getlength(name) for name in classes))
    rows = []
    for number, probed in enumerate(found, start=1):
        picture = _with_rim(probed)
        title = f"hole {number}" if len(found) > 1 else "the hole"
        bars = _bars(probed, classes, shares, title, width, picture.shape[0])
        height = max(picture.shape[0], bars.shape[0])
        rows.append(np.concatenate([_padded(picture, height), _padded(bars, height)], axis=1))
    widest = max(row.shape[1] for row in rows)
    space = np.full((_GAP, widest, 3), 255, np.uint8)
    parts = [np.pad(row, [(0, 0), (0, widest - row.shape[1]), (0, 0)], constant_values=255) for row in rows]
    stacked = np.concatenate([part for row in parts for part in (row, space)][:-1])
    return np.pad(stacked, [(_GAP, _GAP), (_GAP, _GAP), (0, 0)], constant_values=255)


def _padded(part: np.ndarray, height: int) -> np.ndarray:
    return np.pad(part, [(0, height - part.shape[0]), (0, 0), (0, 0)], constant_values=255)


def _with_rim(probed: Probed) -> np.ndarray:
    height, width = probed.hole.shape
    scale = np.clip(max(height, width), *_SIDES) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(probed.shown, size, interpolation=smooth)
    hole = cv2.resize(probed.hole.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    # A hole at the picture's edge has a rim there too.
    inner = cv2.erode(hole, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    picture[(hole == 1) & (inner == 0)] = _RIM
    return picture


def _bars(
    probed: Probed,
    classes: Sequence[str],
    shares: np.ndarray | None,
    title: str,
    names: int,
    height: int,
) -> np.ndarray:
    """The likeliest classes as bars on an axis that ends at the next of 10, 25, 50 and 100 %."""
    order = np.argsort(-probed.probabilities, kind="stable")[:TOP]
    marked = shares is not None
    most = max(float(probed.probabilities[order].max()), float(shares[order].max()) if marked else 0.0)  # type: ignore[index]
    end = next(scale for scale in _SCALES if most <= scale or scale == 1)
    left, length, top = _GAP + names + 8, 240, 58
    need = top + len(order) * _ROW + 26 + (22 if marked else 0)
    canvas = Image.new("RGB", (left + length + 66, max(need, height)), "white")
    draw, letters, small = ImageDraw.Draw(canvas), font(_TEXT), font(_TEXT - 2)
    x1, y1, x2, y2 = (f"{value:.0f}" for value in probed.box)
    draw.text((_GAP, 0), f"What is behind {title}?", fill=_INK, font=font(_TEXT + 2))
    about = f"x {x1}–{x2}, y {y1}–{y2}; {100 * probed.share:.1f} % of the picture"
    draw.text((_GAP, 24), about, fill=_PALE, font=small)
    bottom = top + len(order) * _ROW
    for tick in np.linspace(0, end, 6 if end in (0.1, 0.25, 0.5) else 5):
        x = left + tick / end * length
        draw.line((x, top - 4, x, bottom), fill=(225, 225, 225))
        draw.text((x, bottom + 3), f"{100 * tick:g} %", fill=_PALE, font=small, anchor="ma")
    for row, k in enumerate(order.tolist()):
        middle, value = top + row * _ROW + _ROW // 2, float(probed.probabilities[k])
        draw.text((left - 8, middle), classes[k], fill=_INK, font=letters, anchor="rm")
        stop = left + value / end * length
        draw.rectangle((left, middle - 8, max(stop, left + 1), middle + 8), fill=_BAR)
        beside, said = stop, percent(value)
        if shares is not None:
            mark = left + float(shares[k]) / end * length
            draw.line((mark, middle - 11, mark, middle + 11), fill="black", width=3)
            if mark < stop + 12 + letters.getlength(said):
                beside = max(stop, mark + 2)
        draw.text((beside + 6, middle), said, fill=_INK, font=letters, anchor="lm")
    draw.line((left, top - 4, left, bottom), fill=_INK)
    if marked:
        draw.line((_GAP + 4, bottom + 27, _GAP + 4, bottom + 41), fill="black", width=3)
        key = "how common the class is among the training objects"
        draw.text((_GAP + 14, bottom + 34), key, fill=_INK, font=small, anchor="lm")
    return np.asarray(canvas)


def percent(value: float) -> str:
    """A probability in percent, with a digit behind the point below ten."""
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.1f} %"


def expected_most(sweeps: Sequence[Sweep], count: int = FEW) -> list[int]:
    """The ``count`` classes with the highest mean probability over all places and sizes."""
    mean = np.mean([sweep.probabilities.mean(axis=(0, 1)) for sweep in sweeps], axis=0)
    return np.argsort(-mean, kind="stable")[:count].tolist()


def sweep_figure(
    image: np.ndarray, sweep: Sweep, classes: Sequence[str], chosen: Sequence[int], title: str
) -> Figure:
    """The picture with the hole's outline, and a heat map over it for each class, all on one scale.

    Args:
        image: (H, W, 3) uint8 RGB. classes: C names. chosen: the classes drawn. title: of the picture.
    """
    height, width = image.shape[:2]
    columns = min(3, len(chosen) + 1)
    rows = math.ceil((len(chosen) + 1) / columns)
    tall = max(2.6, rows * (_TILE * height / width + 0.36) + 0.5)
    figure = Figure(figsize=(columns * (_TILE + 0.1) + 1.1, tall), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    _first(axes[0], image, sweep)
    likeliest = sweep.probabilities.argmax(axis=-1)
    maps = [sweep.over_picture(sweep.probabilities[..., k], (height, width)) for k in chosen]
    end = max(_FAINT, *(float(each.max()) for each in maps))
    faded = np.repeat(140 + 0.45 * image.mean(axis=2, keepdims=True), 3, axis=2) / 255
    drawn = None
    for axis, k, heat in zip(axes[1:], chosen, maps):
        axis.imshow(faded)
        drawn = axis.imshow(heat, cmap=_HEAT, vmin=0, vmax=end)
        first = sweep.over_picture(likeliest == k, (height, width))
        if 0 < first.mean() < 1:
            axis.contour(first, levels=[0.5], colors="black", linestyles="--", linewidths=1.2)
        low, high = (percent(float(f(sweep.probabilities[..., k]))) for f in (np.min, np.max))
        axis.set_title(f"{classes[k]}: {low} to {high}", fontsize=11)
    assert drawn is not None
    bar = figure.colorbar(drawn, ax=list(axes), shrink=0.85, pad=0.02, format=lambda v, _: f"{100 * v:g} %")
    bar.set_label("probability of the class behind a hole centred there", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    figure.suptitle(
        f"{title}: what the network expects where (dashed: more than any other class)", fontsize=12
    )
    return figure


def _first(axis: Axes, image: np.ndarray, sweep: Sweep) -> None:
    axis.imshow(image)
    corner = (sweep.x[0] - sweep.size[0] / 2, sweep.y[0] - sweep.size[1] / 2)
    axis.add_patch(Rectangle(corner, *sweep.size, fill=False, edgecolor="white", linewidth=4))
    axis.add_patch(Rectangle(corner, *sweep.size, fill=False, edgecolor="#FF4040", linewidth=2))
    width, height = (f"{side:.0f}" for side in sweep.size)
    axis.set_title(f"the picture; the hole: {width}×{height}", fontsize=11)
