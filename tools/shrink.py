#!/usr/bin/env python
"""Quantise a trained student, export it, and measure each step.

python tools/shrink.py --config-file F --weights W [--calibrate N] [--output DIR] [KEY VALUE ...]

Steps: float and int8, as TorchScript run by PyTorch and as ONNX run by onnxruntime; mIoU (or accuracy) on
DATASETS.TEST, latency of one image and size of each file. DIR gets the four files, shrink.json and shrink.html.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scenekd.command_line import add_int8_options, config_parser, int8_options
from scenekd.config import load_config
from scenekd.engines import datasets  # noqa: F401 - the frameworks' data sets by name
from scenekd.errors import UserError, run_cli
from scenekd.experiment import Experiment
from scenekd.shrink import shrink


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR/shrink")
    parser.add_argument(
        "--calibrate", type=int, default=32, metavar="N", help="training images for the scales"
    )
    add_int8_options(parser)
    parser.add_argument("--teacher", action="store_true", help="with the teacher that TEACHER names")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--repeat", type=int, default=15, metavar="N", help="samples of each step's time")
    return parser.parse_intermixed_args()


def main() -> None:
    """Write the files, measure them, print the table."""
    args = parse_args()
    if args.threads < 1:
        raise UserError(f"--threads: {args.threads}; give at least one")
    torch.set_num_threads(args.threads)
    pairs = ["MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu"]
    cfg = load_config(args.config_file, [*args.overrides, *pairs])
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST: names no data set to score on; name one")
    folder = Path(args.output or Path(args.output_dir or cfg.OUTPUT_DIR) / "shrink")
    ladder = shrink(
        Experiment(cfg, whole=True),
        folder,
        calibrate=args.calibrate,
        options=int8_options(args),
        repeats=args.repeat,
        teacher=args.teacher,
    )
    ladder.write(folder)
    print(ladder.text())
    print(f"{folder / 'shrink.html'}, {folder / 'shrink.json'}")


if __name__ == "__main__":
    run_cli(main)
