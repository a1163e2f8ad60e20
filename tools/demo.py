#!/usr/bin/env python
"""Show what a trained network says about any images.

python tools/demo.py --weights output/model_final.pth --input photo.jpg holiday/ [--output DIR]

Writes to DIR: panels/<name>.png (image, boxes with their masks, mask), segmentation/<name>.png (class indices) and
detections.json (COCO's results format, image_id is the name; with the masks of boxes where the network has them).
tools/test.py --predictions DIR scores them.
A folder stands for the images in it.

A network of blindnet looks at holes: --region hides parts of each picture, with or without an object there, and --sweep
moves a hole over it. Writes probe/<name>.png (the picture with its hole, the ten likeliest classes) and probe.json,
sweep/<name>_<W>x<H>.png (where each class is expected) and sweep.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blindnet.demo import ProbeDemo, add_options, wanted
from blindnet.regions import EXAMPLE
from scenekd.command_line import checkpoint_config, checkpoint_parser
from scenekd.data.images import image_files, read_image, voc_palette
from scenekd.errors import BadRecordError, UserError, run_cli
from scenekd.evaluation.coco_results import result_entries
from scenekd.predictor import Predictor, open_predictor
from scenekd.teachers.options import our_classes
from scenekd.visualize import MIN_SCORE, View, panel


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="FILE", help="images, or folders of them"
    )
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="default: output/demo")
    parser.add_argument(
        "--min-score",
        type=float,
        default=MIN_SCORE,
        metavar="SCORE",
        help=f"boxes below are not drawn; in 0…1, default {MIN_SCORE:g}",
    )
    add_options(parser)
    args = parser.parse_args()
    if not 0 <= args.min_score <= 1:
        raise UserError(f"--min-score: {args.min_score:g} is no score; give one in 0…1")
    return args


def named(files: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """(name, file); a stem that is there already gets a number, so that no output is overwritten."""
    taken: set[str] = set()
    for file in files:
        name, count = file.stem, 2
        while name in taken:
            name, count = f"{file.stem}_{count}", count + 1
        taken.add(name)
        yield name, file


class Demo:
    """Asks the network and writes what it says below ``output``."""

    def __init__(self, predictor: Predictor, output: Path, min_score: float) -> None:
        self.predictor, self.output, self.min_score = predictor, output, min_score
        self.classes = our_classes(predictor.cfg)
        self.detections: list[dict[str, Any]] = []
        self.has_boxes = False

    @property
    def pictures(self) -> Path:
        """Where the panels are."""
        return self.output / "panels"

    def __call__(self, name: str, file: Path) -> str:
        """Process one image; returns the line about it."""
        if not file.is_file():
            raise BadRecordError(f"{file}: no such file")
        image = read_image(str(file))
        view = View.of_prediction("network", self.predictor(image))
        side = int(np.clip(max(image.shape[:2]), 360, 640))
        drawn = panel(image, [view], self.classes, title=name, side=side, min_score=self.min_score)
        self._save(Image.fromarray(drawn), "panels", name)
        said = [f"{image.shape[1]}×{image.shape[0]}"]
        if view.boxes is not None:
            said.append(self._boxes(name, view))
        if view.sem_seg is not None:
            said.append(self._mask(name, view.sem_seg))
        return f"{file}: {'; '.join(said)}"

    def _boxes(self, name: str, view: View) -> str:
        assert view.boxes is not None and view.labels is not None and view.scores is not None
        self.has_boxes = True
        self.detections += result_entries(name, view.boxes, view.labels, view.scores, view.masks)
        sure = [
            f"{self.classes[label]} {score:.2f}"
            for label, score in zip(view.labels, view.scores)
            if score >= self.min_score
        ]
        more = f", … {len(sure) - 5} more" if len(sure) > 5 else ""
        return ", ".join(sure[:5]) + more if sure else f"no box with a score of {self.min_score:g} or more"

    def _mask(self, name: str, mask: np.ndarray) -> str:
        indexed = Image.fromarray(mask, mode="P")
        indexed.putpalette(voc_palette().ravel().tolist())
        self._save(indexed, "segmentation", name)
        shares = np.bincount(mask.ravel(), minlength=len(self.classes) + 1) / mask.size
        parts = [f"{self.classes[k - 1]} {shares[k]:.1%}" for k in np.argsort(-shares) if k and shares[k] > 0]
        return f"mask: {', '.join(parts[:5]) or 'background only'}"

    def _save(self, picture: Image.Image, folder: str, name: str) -> None:
        path = self.output / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        picture.save(temporary, format="PNG")
        os.replace(temporary, path)

    def finish(self) -> None:
        """Write ``detections.json``, where the network has boxes."""
        if self.has_boxes:
            temporary = self.output / ".detections.json.tmp"
            temporary.write_text(json.dumps(self.detections), encoding="utf-8")
            os.replace(temporary, self.output / "detections.json")


def main() -> None:
    """Process every image; those that cannot be read are told and make the exit code 2."""
    args = parse_args()
    probes = wanted(args)
    files = image_files(args.input)
    cfg = checkpoint_config(args)
    if cfg.SYSTEM == "blindnet" and not probes:
        raise UserError(f"--region: a network of blindnet looks at a hole; give one, {EXAMPLE}, or --sweep")
    predictor, output = open_predictor(args.weights, cfg), Path(args.output)
    demo: Demo | ProbeDemo = (
        ProbeDemo(predictor, output, args) if probes else Demo(predictor, output, args.min_score)
    )
    bad = 0
    for name, file in named(files):
        try:
            print(demo(name, file), flush=True)
        except BadRecordError as error:
            bad += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    demo.finish()
    if bad == len(files):
        raise UserError(f"--input: none of the {bad} files is an image")
    print(f"{len(files) - bad} of {len(files)} images done; see {demo.pictures}")
    if bad:
        raise UserError(f"--input: {bad} of {len(files)} files could not be read")


if __name__ == "__main__":
    run_cli(main)
