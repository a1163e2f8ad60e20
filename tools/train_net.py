#!/usr/bin/env python
"""Train a student: ``python tools/train_net.py --config-file projects/kd_mtl/blitznet_kd.yaml``.

A native configuration (MMEngine's ``.py``, detectron2's YAML with MODEL.META_ARCHITECTURE) is run by its framework.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from scenekd.config import load_config
from scenekd.engines.native import NativeRun, native_framework, run_native
from scenekd.engines.select import choose_engine, launch
from scenekd.engines.session import evaluate_once, train_once
from scenekd.errors import run_cli


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--engine", default="auto", help="auto, mmengine or detectron2")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0")
    parser.add_argument("--launcher", default="none", choices=("none", "pytorch", "slurm"))
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR/last.pth")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("--output-dir", metavar="DIR", help="the same as OUTPUT_DIR DIR")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser.parse_intermixed_args()


def main() -> None:
    """Read the configuration, choose the engine, start its processes."""
    args = parse_args()
    overrides = list(args.overrides)
    native = native_framework(args.config_file)
    work: Callable[..., object]
    if native:
        run = NativeRun(
            args.config_file, tuple(overrides), args.output_dir or "", "", args.resume, args.eval_only
        )
        work, arguments = run_native, (native, run)
    else:
        if args.output_dir:
            overrides += ["OUTPUT_DIR", args.output_dir]
        cfg = load_config(args.config_file, overrides)
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
