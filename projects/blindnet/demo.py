"""tools/demo.py for a network of blindnet: regions of any picture hidden, or a hole moved over it."""

from __future__ import annotations

import argparse
import difflib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scenekd.data.images import read_image
from scenekd.errors import BadRecordError, UserError
from scenekd.files import write_bytes, write_text
from scenekd.predictor import Predictor
from scenekd.visualize_curves import png

from .config import KEY
from .probe import Probe, Probed
from .probe_pictures import TOP, draw_probe, expected_most, percent, sweep_figure
from .regions import EXAMPLE, HoleSize, Region

_SIZE, _STRIDES = "0.25", 4  # a hole by default; strides of a hole's side by default


def add_options(parser: argparse.ArgumentParser) -> None:
    """--region, --sweep and what belongs to it."""
    group = parser.add_argument_group(
        "networks of blindnet", "hide a part of the picture, and tell what was there"
    )
    group.add_argument(
        "--region", nargs="+", default=[], metavar="x1,y1,x2,y2", help=f"each hidden alone; {EXAMPLE}"
    )
    group.add_argument(
        "--sweep", action="store_true", help="move a hole over the picture, and draw heat maps"
    )
    group.add_argument(
        "--size",
        nargs="+",
        default=[],
        metavar="S",
        help=f"with --sweep: sides of holes, S or W,H; default {_SIZE}",
    )
    group.add_argument("--stride", metavar="T", help="with --sweep: default a quarter of the hole")
    group.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="with --sweep: those drawn")


def wanted(args: argparse.Namespace) -> bool:
    """Whether the command line asks for a probe; what it says of one is checked.

    Raises:
        UserError: a malformed or empty region, no length, or an option of --sweep without it.
    """
    for option in ("size", "stride", "classes"):
        if getattr(args, option) and not args.sweep:
            raise UserError(f"--{option}: belongs to --sweep; add --sweep")
    args.region = [Region.read(text) for text in args.region]
    args.size = [HoleSize.read(text) for text in args.size or (_SIZE,)]
    args.stride = HoleSize.read(args.stride, "--stride") if args.stride else None
    return bool(args.region or args.sweep)


class ProbeDemo:
    """Probes pictures and writes what it finds below ``output``: ``probe/<name>.png`` and ``probe.json``,
    ``sweep/<name>_<W>x<H>.png`` and ``sweep.json``.

    Args:
        args: of :func:`add_options`, after :func:`wanted`.

    Raises:
        UserError: as :class:`.probe.Probe`; a class that the network does not know.
    """

    def __init__(self, predictor: Predictor, output: Path, args: argparse.Namespace) -> None:
        self.probe, self.output, self.args = Probe(predictor), output, args
        self.chosen = [self._class(name) for name in args.classes]
        shares = self.probe.shares
        # A network of a framework's own run was never told how common the classes are.
        self.shares = None if np.ptp(shares) == 0 else shares
        self.found: dict[str, list[dict[str, Any]]] = {"probe": [], "sweep": []}

    @property
    def pictures(self) -> str:
        """Where they are, in words."""
        return " and ".join(str(self.output / kind) for kind, rows in self.found.items() if rows)

    def _class(self, name: str) -> int:
        known = self.probe.classes
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[:10]
            raise UserError(
                f"--classes: the network knows no {name!r} among its {len(known)} classes; such as {', '.join(near)}"
            )
        return known.index(name)

    def __call__(self, name: str, file: Path) -> str:
        """Process one picture; returns the line about it."""
        if not file.is_file():
            raise BadRecordError(f"{file}: no such file")
        image = read_image(str(file))
        said = [f"{image.shape[1]}×{image.shape[0]}"]
        if self.args.region:
            said += self._regions(image, name, file)
        if self.args.sweep:
            said.append(self._sweeps(image, name, file))
        return f"{file}: {'; '.join(said)}"

    def _regions(self, image: np.ndarray, name: str, file: Path) -> list[str]:
        size = (image.shape[0], image.shape[1])
        boxes = np.stack([region.box(size, str(file)) for region in self.args.region])
        found = self.probe.regions(image, boxes, name)
        stream = io.BytesIO()
        Image.fromarray(draw_probe(found, self.probe.classes, self.shares)).save(stream, format="PNG")
        write_bytes(self.output / "probe" / f"{name}.png", stream.getvalue())
        said = []
        for region, probed in zip(self.args.region, found):
            row = self._row(probed, name, file)
            self.found["probe"].append(row)
            best = ", ".join(f"{each['class']} {percent(each['probability'])}" for each in row["top"][:3])
            note = ""
            if row["above_max_area"]:
                note = (
                    f" (the hole is {percent(probed.share)} of the picture, above {KEY}.MASK.MAX_AREA "
                    f"{self.probe.hider.max_area:g}: the network was never shown so large a one)"
                )
            said.append(f"behind {region.text}: {best}{note}")
        return said

    def _row(self, probed: Probed, name: str, file: Path) -> dict[str, Any]:
        top = np.argsort(-probed.probabilities, kind="stable")[:TOP].tolist()
        return {
            "image": name,
            "file": str(file),
            "region": [round(float(value), 2) for value in probed.box],
            "shape": self.probe.shape,
            "fill": self.probe.hider.fill,
            "share": probed.share,
            "above_max_area": probed.share > self.probe.hider.max_area,
            "top": [
                {"class": self.probe.classes[k], "probability": float(probed.probabilities[k])} for k in top
            ],
        }

    def _sweeps(self, image: np.ndarray, name: str, file: Path) -> str:
        picture = (image.shape[0], image.shape[1])
        sizes = [size.within(picture, str(file)) for size in self.args.size]
        sweeps = []
        for size in sizes:
            step = (size[0] / _STRIDES, size[1] / _STRIDES)
            if self.args.stride is not None:
                step = self.args.stride.pixels(picture)
            sweeps.append(self.probe.sweep(image, size, step, name))
        chosen = self.chosen or expected_most(sweeps)
        for sweep in sweeps:
            sides = "x".join(f"{side:.0f}" for side in sweep.size)
            chart = png(sweep_figure(image, sweep, self.probe.classes, chosen, name))
            write_bytes(self.output / "sweep" / f"{name}_{sides}.png", chart)
            row: dict[str, Any] = {"image": name, "file": str(file), "size": list(sweep.size)}
            row |= {"fill": self.probe.hider.fill, "x": sweep.x.tolist(), "y": sweep.y.tolist()}
            row["maps"] = {self.probe.classes[k]: sweep.probabilities[..., k].tolist() for k in chosen}
            self.found["sweep"].append(row)
        holes = sum(len(sweep.x) * len(sweep.y) for sweep in sweeps)
        names = ", ".join(self.probe.classes[k] for k in chosen)
        return f"{holes} holes; {'drawn' if self.chosen else 'most expected'}: {names}"

    def finish(self) -> None:
        """Write what was found as json."""
        for kind, rows in self.found.items():
            if rows:
                write_text(self.output / f"{kind}.json", json.dumps(rows, indent=1))
