#!/usr/bin/env python
"""Train a student: ``python tools/train_net.py --config-file projects/kd_mtl/blitznet_kd.yaml``.

A native configuration (MMEngine's ``.py``, detectron2's YAML with MODEL.META_ARCHITECTURE) is run by its framework.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from scenekd.command_line import config_overrides, config_parser
from scenekd.config import load_config
from scenekd.engines.native import NativeRun, native_framework, run_native
from scenekd.engines.select import choose_engine, launch
from scenekd.engines.session import evaluate_once, train_once
from scenekd.errors import run_cli


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = config_parser(__doc__)
    parser.add_argument("--engine", default="auto", help="auto, mmengine or detectron2")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")
    parser.add_argument("--launcher", default="none", choices=("none", "pytorch", "slurm"))
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR/last.pth")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    return parser.parse_intermixed_args()


def main() -> None:
    """Read the configuration, choose the engine, start its processes."""
    args = parse_args()
    native = native_framework(args.config_file)
    work: Callable[..., object]
    if native:
        run = NativeRun(
            args.config_file, tuple(args.overrides), args.output_dir or "", "", args.resume, args.eval_only
        )
        work, arguments = run_native, (native, run)
    else:
        cfg = load_config(args.config_file, config_overrides(args))
        engine = choose_engine(args.engine, cfg.OUTPUT_DIR, args.resume)
        work, arguments = (evaluate_once if args.eval_only else train_once), (cfg, engine, args.resume)
    launch(
        work,
        arguments,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        launcher=args.launcher,
    )


if __name__ == "__main__":
    run_cli(main)
