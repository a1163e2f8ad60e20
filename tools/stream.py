#!/usr/bin/env python
"""Run the cascade on a live source: the student learns from the teacher's answers, then answers itself.

python tools/stream.py --config-file projects/envise/envise.yaml --source DIR|VIDEO|CAMERA_NUMBER
       [--weights W] [--output DIR] [--packed auto|on|off] [--max-samples N] [KEY VALUE ...]

Shows who answered, how far student and teacher agree, how often the teacher was asked, and what is saved; one block on
a terminal, lines elsewhere. Writes to DIR: answers.jsonl (a JSON object a sample), the state of the run, config.yaml,
log.txt, and results.json at its end. With MODEL.ENVISE.SEGMENTATION.CONFIG, as in projects/envise/segmentation.yaml, it
segments a video instead, and its student learns that from its teacher at key frames. Ctrl-C ends after the current
batch; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# OpenCV reports a missing camera or a broken video by itself, in several lines
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

from fvcore.common.config import CfgNode  # noqa: E402

from envise.live import LiveLog, open_folder, run_live  # noqa: E402
from envise.live_cascade import PACKED  # noqa: E402
from envise.live_tasks import build_task, live_overrides  # noqa: E402
from envise.live_view import view_for  # noqa: E402
from scenekd.config import load_config  # noqa: E402
from scenekd.errors import UserError, run_cli  # noqa: E402
from scenekd.results import describe_run, write_results  # noqa: E402


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--source",
        metavar="SOURCE",
        help="a folder of images, a video file, or a camera's number; default: the stream of the configuration",
    )
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="of the student: a checkpoint, or a stream's state"
    )
    parser.add_argument("--output", default="output/stream", metavar="DIR", help="default: output/stream")
    parser.add_argument(
        "--packed", default="auto", choices=PACKED, help="whether a binary student answers by packed bits"
    )
    parser.add_argument(
        "--max-samples", type=int, metavar="N", help="end after so many; default: at the end of the source"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = parser.parse_intermixed_args()
    if args.max_samples is not None and args.max_samples < 1:
        raise UserError(f"--max-samples: {args.max_samples} must be at least 1")
    return args


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Notes go to a file, and do not tear the block on the terminal."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()


def work(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Build everything, go on where a state is, and run."""
    folder = Path(cfg.OUTPUT_DIR)
    task = build_task(cfg, packed=args.packed)
    if task.resume():
        print(f"{folder}: goes on at sample {task.position}", flush=True)
    elif args.weights:
        task.load_weights(args.weights)
    view = view_for(sys.stdout, args.source or ", ".join(cfg.DATASETS.TRAIN))
    with LiveLog(folder, task.position) as log:
        ended = run_live(task, log, view, period=cfg.ONLINE.CHECKPOINT_PERIOD)
    write_results(folder / "results.json", task.results(), describe_run(cfg, "none", source=args.source))
    if ended:
        print(f"the stream has ended; see {log.path} and {folder / 'results.json'}")
    else:
        print(f"interrupted; the same command goes on at sample {task.position}; see {log.path}")


def main() -> None:
    """Read the command line, and run with the log in the output folder."""
    args = parse_args()
    overrides = live_overrides(args.source, args.max_samples)
    cfg = load_config(args.config_file, [*args.overrides, *overrides, "OUTPUT_DIR", args.output])
    if cfg.SYSTEM != "envise":
        raise UserError(
            f"{args.config_file}: SYSTEM is {cfg.SYSTEM}; a stream takes a configuration of envise"
        )
    open_folder(cfg)
    with logged_to(Path(cfg.OUTPUT_DIR) / "log.txt"):
        work(args, cfg)


if __name__ == "__main__":
    run_cli(main)
