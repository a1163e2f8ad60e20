#!/usr/bin/env python
"""Ask the teachers once for every training image: ``python tools/cache_teacher.py --config-file FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from scenekd.command_line import config_overrides, config_parser
from scenekd.config import load_config
from scenekd.data.catalog import load_datasets
from scenekd.errors import UserError, run_cli
from scenekd.teachers.build import open_store
from scenekd.teachers.cache import CacheStore, verify
from scenekd.teachers.caching import cache_teachers
from scenekd.teachers.options import KINDS, NETWORKS, cache_folder, teacher_node
from scenekd.teachers.protocol import TASKS
from scenekd.teachers.score import score_table, score_teacher, write_scores


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = config_parser(__doc__)
    parser.add_argument(
        "--task", default="both", choices=(*TASKS, "both"), help="both: every task with a teacher"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="processes, on GPUs where there are some")
    parser.add_argument("--verify", action="store_true", help="recompute every checksum, compare the images")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished or outdated cache")
    parser.add_argument("--rebuild", action="store_true", help="throw away what is there and begin anew")
    parser.add_argument("--score", action="store_true", help="score the teachers on the labelled images too")
    return parser.parse_intermixed_args()


def main() -> None:
    """Cache or verify the tasks asked for."""
    args = parse_args()
    cfg = load_config(args.config_file, config_overrides(args))
    kinds = KINDS if args.score else NETWORKS
    tasks = [args.task] if args.task != "both" else [t for t in TASKS if teacher_node(cfg, t).TYPE in kinds]
    if not tasks:
        raise UserError(
            f"{args.config_file}: no teacher to ask; set TEACHER.DETECTION.TYPE or "
            f"TEACHER.SEGMENTATION.TYPE to {' or '.join(kinds)}"
        )
    if args.verify:
        for task in tasks:
            check(cfg, task)
        return
    asked = [task for task in tasks if teacher_node(cfg, task).TYPE in NETWORKS or not args.score]
    if asked:
        fill(cfg, asked, args)
    if args.score:
        score(cfg, tasks)


def fill(cfg: Any, tasks: Sequence[str], args: argparse.Namespace) -> None:
    """Cache the tasks in one pass over the images, with a progress bar."""
    with tqdm(desc=f"{' and '.join(tasks)} teacher", unit="image", dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            if not bar.total:
                bar.total, bar.initial, bar.n = total, done - 1, done - 1
            bar.update(done - bar.n)

        options = {"processes": args.num_gpus, "resume": args.resume, "rebuild": args.rebuild}
        reports = cache_teachers(cfg, tasks, progress=show, **options)
    for report in reports:
        print(report)


def score(cfg: Any, tasks: Sequence[str]) -> None:
    """Score the teachers on the labelled training images; a table, and a file in each cache."""
    data = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True)
    scores = {task: score_teacher(cfg, task, data) for task in tasks}
    for task, found in scores.items():
        write_scores(cache_folder(cfg, task), {task: found})
    print(score_table(scores))


def check(cfg: Any, task: str) -> None:
    """Verify the cache of one task against its checksums and the training images."""
    store = open_store(cfg, task, merge=False)
    if not isinstance(store, CacheStore):
        raise UserError(f"TEACHER.{task.upper()}: a folder of saved outputs carries no checksums")
    problems = verify(store, load_datasets(cfg.DATASETS.TRAIN, cfg, train=False).records)
    for line in problems:
        print(line)
    if problems:
        raise UserError(f"{store.folder}: {len(problems)} problems; run again with --resume to mend them")
    print(f"{task}: {len(store)} records of {store.info['name']} in {store.folder} are whole")


if __name__ == "__main__":
    run_cli(main)
