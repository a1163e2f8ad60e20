#!/usr/bin/env python
"""Ask the teachers once for every training image: ``python tools/cache_teacher.py --config-file FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, cast

from tqdm import tqdm

from scenekd.command_line import config_overrides, config_parser
from scenekd.config import load_config
from scenekd.data.catalog import load_datasets
from scenekd.data.records import Record
from scenekd.errors import UserError, run_cli
from scenekd.teachers.build import open_saved
from scenekd.teachers.cache import CacheStore, verify
from scenekd.teachers.caching import cache_teachers
from scenekd.teachers.more import each_teacher
from scenekd.teachers.options import FOLDERS, KINDS, NETWORKS, cache_folder
from scenekd.teachers.protocol import SAVED_TASKS
from scenekd.teachers.score import score_table, score_teacher, write_scores


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = config_parser(__doc__)
    parser.add_argument(
        "--task",
        default="both",
        choices=(*SAVED_TASKS, "both"),
        help="both: every task with a teacher; detection: with the teachers of TEACHER.DETECTION.MORE",
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
    tasks = [args.task] if args.task != "both" else [t for t in SAVED_TASKS if has_kind(cfg, t, kinds)]
    if not tasks:
        raise UserError(
            f"{args.config_file}: no teacher to ask; set TEACHER.DETECTION.TYPE or "
            f"TEACHER.SEGMENTATION.TYPE to {' or '.join(kinds)}"
        )
    if args.verify:
        for task in tasks:
            check(cfg, task)
        return
    asked = [task for task in tasks if has_kind(cfg, task, NETWORKS) or not args.score]
    if asked:
        fill(cfg, asked, args)
    if args.score:
        score(cfg, tasks)


def has_kind(cfg: Any, task: str, kinds: Sequence[str]) -> bool:
    """Whether one of the teachers of a task is of these kinds."""
    return any(one.node.TYPE in kinds for one in each_teacher(cfg, task))


def fill(cfg: Any, tasks: Sequence[str], args: argparse.Namespace) -> None:
    """Cache the tasks in one pass over the images, with a progress bar."""
    bar: Any = None
    options = {"processes": args.num_gpus, "resume": args.resume, "rebuild": args.rebuild}

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:  # not before there is progress: what fails at once is one line
            name = f"{' and '.join(tasks)} teacher"
            bar = tqdm(desc=name, unit="image", total=total, initial=done - 1, dynamic_ncols=True)
        bar.update(done - bar.n)

    try:
        reports = cache_teachers(cfg, tasks, progress=show, **options)
    finally:
        if bar is not None:
            bar.close()
    for report in reports:
        print(report)


def score(cfg: Any, tasks: Sequence[str]) -> None:
    """Score the teachers on the labelled training images; a table, and a file in each task's cache.

    Of several detection teachers the score of all together is kept, from which a run learns; the table shows each
    alone, too.
    """
    data, rows = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True), {}
    for task in tasks:
        rows[task] = score_teacher(cfg, task, data)
        write_scores(cache_folder(cfg, task), {task: rows[task]})
        teachers = each_teacher(cfg, task)
        for one in teachers if len(teachers) > 1 else ():
            with one.naming():
                store = open_saved(one.cfg, task, data.records)
                rows[one.key] = score_teacher(one.cfg, task, data, store=store)
    print(f"in percent, of the labelled part of {data.name}; docs/teachers.md says what the columns are")
    print(score_table(rows))


def check(cfg: Any, task: str) -> None:
    """Verify the caches of one task against their checksums and the training images."""
    teachers = each_teacher(cfg, task)
    caches = [one for one in teachers if one.node.TYPE not in FOLDERS]
    if not caches:
        raise UserError(f"{teachers[0].key}: a folder of saved outputs carries no checksums")
    records = load_datasets(cfg.DATASETS.TRAIN, cfg, train=False).records
    for one in caches:
        with one.naming():
            check_cache(cast(CacheStore, open_saved(one.cfg, task)), records)


def check_cache(store: CacheStore, records: Sequence[Record]) -> None:
    """Verify one cache."""
    problems = verify(store, records)
    for line in problems:
        print(line)
    if problems:
        raise UserError(f"{store.folder}: {len(problems)} problems; run again with --resume to mend them")
    print(f"{store.manifest.task}: {len(store)} records of {store.info['name']} in {store.folder} are whole")


if __name__ == "__main__":
    run_cli(main)
