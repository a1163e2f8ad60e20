#!/usr/bin/env python
"""Set students, and their teacher, side by side on the test set of a configuration.

python tools/compare.py --config-file F --models before=a/model_final.pth after=b/model_final.pth [--teacher]
       [--images ID ... | --worst N | --changed N | --spaced N] [--output DIR] [KEY VALUE ...]

Writes to DIR: compare.html (scores, gain of each class, cost table, pictures), compare.json, pictures/<image_id>.png.
A name may stand several times, with one checkpoint for each seed; results.json of a run may stand in place of a
checkpoint, for its numbers alone. Gains are over the first name.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that measures memory is chatty

import torch  # noqa: E402

from scenekd.command_line import split_words  # noqa: E402
from scenekd.compare.comparison import Wanted, compare  # noqa: E402
from scenekd.compare.cost import ROUNDS  # noqa: E402
from scenekd.compare.gains import MIN_IMAGES  # noqa: E402
from scenekd.compare.page import summary, write_comparison  # noqa: E402
from scenekd.compare.scoring import CHANGED, SPACED, WORST  # noqa: E402
from scenekd.compare.sources import TEACHER  # noqa: E402
from scenekd.config import load_config  # noqa: E402
from scenekd.engines import datasets  # noqa: E402, F401 - the frameworks' data sets by name
from scenekd.errors import UserError, run_cli  # noqa: E402

_COUNT = 6  # images shown


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="its test set, teacher, classes")
    parser.add_argument("--models", required=True, nargs="+", metavar="NAME=FILE")
    parser.add_argument("--teacher", action="store_true", help="show TEACHER.SEGMENTATION of FILE too")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--images", nargs="+", default=[], metavar="ID", help="show these images")
    for how, text in (
        (WORST, "where the last network is worst"),
        (CHANGED, f"where the last differs most from the first (default: {_COUNT})"),
        (SPACED, "evenly spaced over the test set: a fair sample"),
    ):
        images.add_argument(f"--{how}", type=int, metavar="N", help=f"show N images {text}")
    parser.add_argument(
        "--min-images",
        type=int,
        default=MIN_IMAGES,
        metavar="N",
        help=f"classes with fewer test images are set apart (default: {MIN_IMAGES})",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=ROUNDS,
        metavar="N",
        help="timed calls of each network; 0: no cost table",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--output", default="output/compare", metavar="DIR", help="default: output/compare")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser.parse_intermixed_args()


def named_files(words: list[str]) -> list[tuple[str, str]]:
    """(name, file) of each ``NAME=FILE``."""
    found = []
    for word in words:
        name, sign, file = word.partition("=")
        if not (name and sign and file):
            raise UserError(f"--models {word}: give NAME=FILE, such as before=output/none/model_final.pth")
        if name == TEACHER:
            raise UserError(f"--models {word}: {TEACHER} is the name of the teacher; choose another one")
        found.append((name, file))
    return found


def main() -> None:
    """Compare, write the page, print the main numbers."""
    args = parse_args()
    system = load_config(args.config_file).SYSTEM
    models, pairs = split_words(args.models, system)
    names, more = split_words(args.images, system)
    cfg = load_config(args.config_file, [*args.overrides, *pairs, *more])
    counts = [(how, getattr(args, how)) for how in (WORST, CHANGED, SPACED)]
    how, count = next(((how, n) for how, n in counts if n is not None), (CHANGED, _COUNT))
    for option, value, least in (
        (how, count, 0),
        ("min-images", args.min_images, 0),
        ("rounds", args.rounds, 0),
        ("threads", args.threads, 1),
    ):
        if value < least:
            raise UserError(f"--{option}: {value} is too few; give {least} or more")
    torch.set_num_threads(args.threads)
    comparison = compare(
        cfg,
        named_files(models),
        teacher=args.teacher,
        wanted=Wanted(tuple(names), how, count),
        min_images=args.min_images,
        rounds=args.rounds,
    )
    path = write_comparison(Path(args.output), comparison)
    print(summary(comparison))
    print(f"page: {path}")


if __name__ == "__main__":
    run_cli(main)
