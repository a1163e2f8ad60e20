#!/usr/bin/env python
"""Measure SceneKD against its peers: ``python tools/benchmark.py [--suite matching] [--json FILE]``.

Each number is a ratio of two sides timed in turn in one run. Real data is found through the environment
variable SCENEKD_TEST_DATA; what needs it, or a package or checkpoint that is missing, says so.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that measures memory is chatty

import cv2  # noqa: E402
import torch  # noqa: E402

from blindnet import benchmark_rescore  # noqa: E402, F401 - it registers
from envise import benchmark_binary, benchmark_cascade, benchmark_trained  # noqa: E402, F401 - they register
from fcn_kd import benchmark_distill  # noqa: E402, F401 - it registers
from kd_mtl import benchmark_model, benchmark_train  # noqa: E402, F401 - they register
from scenekd.benchmark import cache, data, evaluation, losses, matching  # noqa: E402, F401 - they register
from scenekd.benchmark.options import Options, machine  # noqa: E402
from scenekd.benchmark.table import header, run_suites, write_json  # noqa: E402
from scenekd.errors import UserError, run_cli  # noqa: E402
from scenekd.registry import names  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", action="append", default=[], choices=names("benchmark"))
    parser.add_argument("--json", metavar="FILE", help="write every number here too")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="samples of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--quick", action="store_true", help="small sizes: preliminary numbers")
    parser.add_argument("--checkpoint", metavar="FILE", help="a SceneKD checkpoint, for the error of warping")
    parser.add_argument("--run", metavar="DIR", help="a finished run of envise, for the suite deployed")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def main() -> None:
    """Run the suites and print their rows."""
    args = parse_args()
    if args.repeat < 0 or args.threads < 1:
        raise UserError("--repeat and --threads: give a positive number")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    folder = os.environ.get("SCENEKD_TEST_DATA")
    with tempfile.TemporaryDirectory(prefix="scenekd_benchmark_") as workdir:
        options = Options(
            workdir=Path(workdir),
            size="quick" if args.quick else "full",
            repeat=args.repeat,
            data=Path(folder) if folder else None,
            checkpoint=Path(args.checkpoint) if args.checkpoint else None,
            run=Path(args.run) if args.run else None,
        )
        about = machine(args.threads)
        print(header(about, options) + "\n", flush=True)
        rows = run_suites(args.suite, options, lambda text: print(text, flush=True))
    if args.json:
        write_json(Path(args.json), about, options, rows)


if __name__ == "__main__":
    run_cli(main)
