"""The paper's figures 1, 4 and 5 drawn again, as kinds of figures of the study.

``inputs``: the picture of a case, and the four channels that each of some rows sees of it. ``top_n``: the true class
among the first n, rows with the class prior and on drawn scenes the Bayes oracle. ``classes``: the share of each class
in training, in validation, and among what is hidden.

H, W: network input; C: classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from scenekd.data.catalog import load_datasets
from scenekd.data.images import read_image
from scenekd.data.records import Dataset
from scenekd.errors import UserError
from scenekd.study.rows import Figure, Table
from scenekd.visualize_curves import COLOURS, png

from .data import HidingMapper, class_shares, prepare_data
from .references import top_n_chart

Finished = Mapping[str, Mapping[int, Any]]  # row id → seed → scenekd.study.runs.Run
_CHANNELS = ("red", "green", "blue", "the hole")
_REFERENCES = ("class_prior", "oracle")


def draw_top_n(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """The mean over seeds of each row's curve. The references are those of the first row that was run."""
    curves: dict[str, list[float]] = {}
    references: dict[str, list[float]] = {}
    for name in figure.series:
        results = [run.results() for run in finished.get(name, {}).values()]
        found = [one["hidden_object"]["top_n"] for one in results if "hidden_object" in one]
        if not found:
            continue
        curves[name] = np.mean(found, axis=0).tolist()
        for key in _REFERENCES:
            if key in results[0]:
                references.setdefault(key.replace("_", " "), results[0][key]["top_n"])
    return top_n_chart({**curves, **references}) if curves else None


def draw_classes(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """Of the first row that was run and whose data can be read."""
    for run in _runs(figure, finished):
        try:
            train, test = (_load(run.cfg, train=train) for train in (True, False))
            cases = prepare_data(test, run.cfg, train=False)
        except UserError:
            continue
        hidden = np.bincount(
            [record.hidden.label for record in cases.records if record.hidden is not None],
            minlength=len(test.classes),
        )
        shares = {
            "training objects": class_shares(train),
            "validation objects": class_shares(test),
            "hidden in validation": hidden / hidden.sum(),
        }
        return _class_chart(shares, train.classes)
    return None


def _class_chart(shares: Mapping[str, np.ndarray], classes: Sequence[str]) -> bytes:
    """Bars for each class, the commonest training class first; those that are never there are left out."""
    first, *_ = shares.values()
    order = [k for k in np.argsort(-first, kind="stable") if any(values[k] > 0 for values in shares.values())]
    canvas = Canvas(figsize=(max(6.4, 2 + 0.16 * len(shares) * len(order)), 3.8), layout="constrained")
    axis, width = canvas.subplots(), 0.8 / len(shares)
    for place, (name, values) in enumerate(shares.items()):
        x = np.arange(len(order)) + width * (place - (len(shares) - 1) / 2)
        axis.bar(
            x,
            100 * values[order],
            width,
            color=COLOURS[place],
            label=f"{name}, commonest {100 * values.max():.1f} %",
        )
    axis.set_xticks(
        range(len(order)), [classes[k] for k in order], rotation=90 if len(order) > 12 else 30, fontsize=8
    )
    axis.set_xlim(-0.6, len(order) - 0.4)
    axis.set_ylabel("share in %")
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return png(canvas)


def draw_inputs(figure: Figure, table: Table, finished: Finished) -> bytes | None:
    """The first case of the test set that each row has, one line a row."""
    lines = []
    for name in figure.series:
        for run in _runs(figure, finished, name):
            try:
                lines.append((f"{name}\n{table.row(name).title}", *_case(run.cfg)))
            except UserError:  # the data have gone since
                continue
    if not lines:
        return None
    canvas = Canvas(figsize=(11.5, 0.4 + 1.75 * len(lines)), layout="constrained")
    rows = canvas.subplots(len(lines), 2 + len(_CHANNELS), squeeze=False)
    for axes, (title, picture, shown) in zip(rows, lines):
        _image(axes[0], picture, "the picture")
        axes[0].set_ylabel(
            "\n".join(_wrapped(title)), fontsize=8, rotation=0, ha="right", va="center", labelpad=8
        )
        _image(axes[1], shown[..., :3], "what is seen")
        for axis, plane, channel in zip(axes[2:], np.moveaxis(shown, 2, 0), _CHANNELS):
            _image(axis, plane, channel)
    for axes in rows[1:]:
        for axis in axes:
            axis.set_title("")
    return png(canvas)


def _wrapped(title: str, width: int = 22) -> list[str]:
    return [line for part in title.split("\n") for line in wrap(part, width)]


def _image(axis: Axes, pixels: np.ndarray, title: str) -> None:
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def _case(cfg: Any) -> tuple[np.ndarray, np.ndarray]:
    """The picture of the first case, and (H, W, 4) uint8, what a network is shown of it."""
    mapper = HidingMapper(prepare_data(_load(cfg, train=False), cfg, train=False), cfg, train=False)
    pixels, _ = mapper(0)
    return read_image(mapper.dataset.records[0].file_name), pixels.numpy().transpose(1, 2, 0)


def _load(cfg: Any, *, train: bool) -> Dataset:
    return load_datasets(cfg.DATASETS.TRAIN if train else cfg.DATASETS.TEST, cfg, train=train)


def _runs(figure: Figure, finished: Finished, only: str = "") -> list[Any]:
    """The first run of each row of the figure that has one, or of ``only`` it."""
    names = [only] if only else figure.series
    return [next(iter(finished[name].values())) for name in names if finished.get(name)]


DRAWERS = {"inputs": draw_inputs, "top_n": draw_top_n, "classes": draw_classes}
