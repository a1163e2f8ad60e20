"""The main job on the embedded scenes, as ``make quickstart`` runs it.

Scenes are drawn; one teacher per task learns on a split of its own; their soft output is cached; three
students with the same initial weights, image order and step count learn from a split where every image has
boxes and one in five has a mask. All are scored by ``tools/test.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scenekd.checkpoint import load_weights
from scenekd.config import load_config
from scenekd.data.catalog import load_datasets
from scenekd.data.scenes import generate_scenes
from scenekd.engines.select import choose_engine
from scenekd.errors import UserError, run_cli
from scenekd.evaluation.evaluator import trivial_baseline
from scenekd.evaluation.statistics import paired_difference
from scenekd.models import build_model, choose_device
from scenekd.predictor import Predictor
from scenekd.recorder import training_seconds
from scenekd.report import write_comparison
from scenekd.report_panels import TeacherViews, report_panels
from scenekd.side_by_side import run_together

CONFIG = Path(__file__).with_name("quickstart.yaml")
TOOLS = Path(__file__).parents[2] / "tools"
TASKS = ("detection", "segmentation")
SPLITS = {"teacher": 1500, "train": 600, "val": 300}
TEACHER_STEPS = 1200

# What tells the rows apart; everything else, steps included, is the same.
ROWS: dict[str, tuple[str, list[str]]] = {
    "a": ("ground truth only", []),
    "b": ("teacher fills in missing masks", ["DISTILL.SEGMENTATION.POLICY", "fill_missing"]),
    "c": (
        "both tasks from ground truth and teacher",
        ["DISTILL.SEGMENTATION.POLICY", "combined", "DISTILL.DETECTION.POLICY", "combined"],
    ),
    "labelled": (
        "ground truth only, images without a mask left out",
        ["DATASETS.REQUIRE_LABELS", "('segmentation',)"],
    ),
    "oracle": ("ground truth, every mask", ["DATASETS.KEEP_SEM_SEG", "1.0"]),
}


class Quickstart:
    """The stages of one quickstart below ``output``; a stage whose result is there is not run again."""

    def __init__(self, output: Path, engine: str, overrides: list[str]) -> None:
        self.output, self.engine, self.overrides = output, engine, overrides
        self.teacher_steps = TEACHER_STEPS

    def config(self, folder: str, *more: str) -> CfgNode:
        """The configuration of one run."""
        return load_config(CONFIG, self._pairs(folder, *more))

    def _pairs(self, folder: str, *more: str) -> list[str]:
        caches = []
        for task in ("DETECTION", "SEGMENTATION"):
            weights = self.output / f"teacher_{task.lower()}" / "model_final.pth"
            caches += [f"TEACHER.{task}.CACHE", str(self.output / "cache" / task.lower())]
            caches += [f"TEACHER.{task}.WEIGHTS", str(weights)]
        root = ["DATASETS.ROOT", str(self.output / "scenes"), "OUTPUT_DIR", str(self.output / folder)]
        return [*root, *caches, *self.overrides, *more]

    def draw_scenes(self) -> None:
        """Make the data set."""
        generate_scenes(self.output / "scenes", splits=SPLITS, seed=0)

    def train(self, jobs: dict[str, list[str]]) -> None:
        """Train the networks that have no checkpoint yet side by side, one thread each; an interrupted training
        goes on.

        Small networks gain little from a second thread, so this is quicker than one after the other; and the
        numbers do not depend on how many cores there are.

        Args:
            jobs: folder below ``output`` → what its configuration overrides.
        """
        jobs = {f: more for f, more in jobs.items() if not (self.output / f / "model_final.pth").is_file()}
        commands = []
        for folder, more in jobs.items():
            pairs = self._pairs(folder, "DATALOADER.NUM_WORKERS", "0", *more)
            commands.append(["--config-file", str(CONFIG), "--engine", self.engine, "--resume", *pairs])
        if commands:
            steps = {f: self.config(f, *more).SOLVER.MAX_ITER for f, more in jobs.items()}
            run_together(TOOLS / "train_net.py", dict(zip(jobs, commands)), self.output, steps)

    def train_teachers(self) -> None:
        """Train the teacher of each task on the teachers' own split, with every label."""
        common = ["DATASETS.TRAIN", "('voc_seg_teacher',)", "DATASETS.TEST", "()"]
        common += ["DATASETS.KEEP_SEM_SEG", "1.0", "SOLVER.MAX_ITER", str(self.teacher_steps)]
        self.train({f"teacher_{t}": ["MODEL.BLITZNET.TASKS", f"('{t}',)", *common] for t in TASKS})

    def cache(self) -> None:
        """Cache both teachers' output on the students' training split."""
        self._tool(
            "cache_teacher.py",
            "--config-file",
            str(CONFIG),
            "--task",
            "both",
            "--resume",
            *self._pairs("cache"),
        )

    def train_students(self, rows: list[str], seed: int) -> None:
        """Train the students of one seed."""
        fixed = ["DATASETS.TEST", "()", "SEED", str(seed)]
        self.train({student_folder(row, seed): [*ROWS[row][1], *fixed] for row in rows})

    def test(self, row: str, seed: int) -> dict[str, Any]:
        """Score one student with ``tools/test.py``."""
        folder = self.output / student_folder(row, seed)
        out = folder / "results.json"
        if not out.is_file():
            pairs = self._pairs(folder.name, *ROWS[row][1], "SEED", str(seed))
            self._tool("test.py", str(CONFIG), str(folder / "model_final.pth"), "--out", str(out), *pairs)
        return json.loads(out.read_text(encoding="utf-8"))

    def report(self, lines: list[dict[str, Any]], rows: list[str], notes: list[str]) -> Path:
        """One page with the table, bars, and panels of what teachers and students see."""
        cfg = self.config("cache")
        device = choose_device(cfg)
        predictors = {}
        for row in rows:
            net = build_model(cfg, pretrained=False)
            load_weights(net, self.output / f"student_{row}" / "model_final.pth", strict=True)
            predictors[f"student ({row})"] = Predictor(net.to(device), cfg, device)
        panels = report_panels(
            predictors,
            load_datasets(cfg.DATASETS.TEST, cfg, train=False),
            teachers=TeacherViews(cfg, TASKS),
            count=cfg.TEST.VISUALIZE,
        )
        return write_comparison(
            self.output / "report.html",
            lines[1:],
            title="SceneKD: one network, two tasks, one mask in five",
            trivial=lines[0],
            notes=notes,
            panels=panels,
        )

    def _tool(self, name: str, *args: str) -> None:
        # One thread, as in training: with another number the teachers' output differs in its last digits.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, str(TOOLS / name), *args], check=False, env=environment)
        if done.returncode:
            raise UserError(f"tools/{name} ended with exit code {done.returncode}; its message is above")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text: mIoU, mAP, AP50 (0–100), training images seen and seconds."""
    lines = [f"{'row':<8}{'labels':<44}{'mIoU':>7}{'mAP':>7}{'AP50':>7}{'images':>9}{'seconds':>9}"]
    for row in rows:
        numbers = "".join(f"{row[key]:>7.2f}" for key in ("mIoU", "mAP", "AP50"))
        lines.append(f"{row['row']:<8}{row['what']:<44}{numbers}{row['images']:>9}{row['seconds']:>9.0f}")
    return "\n".join(lines)


def summarise(row: str, results: dict[str, Any], config: CfgNode, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    return {
        "row": row,
        "what": ROWS[row][0],
        "mIoU": results["sem_seg"]["mIoU"],
        "mAP": results["bbox"]["mAP"],
        "AP50": results["bbox"]["AP50"],
        "images": config.SOLVER.MAX_ITER * config.SOLVER.IMS_PER_BATCH,
        "seconds": seconds,
    }


def baseline_row(cfg: CfgNode) -> dict[str, Any]:
    """The predictor that looks at no image (:mod:`scenekd.evaluation.baseline`)."""
    train = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True)
    results = trivial_baseline(train, load_datasets(cfg.DATASETS.TEST, cfg, train=False))
    line = {
        name: results[task][name] for task, name in (("sem_seg", "mIoU"), ("bbox", "mAP"), ("bbox", "AP50"))
    }
    return {"row": "-", "what": "trivial: looks at no image", **line, "images": 0, "seconds": 0.0}


def run(quickstart: Quickstart, rows: list[str], seeds: int) -> list[dict[str, Any]]:
    """All stages; returns the lines of the table: the trivial baseline, then one a row and seed."""
    quickstart.draw_scenes()
    quickstart.train_teachers()
    quickstart.cache()
    lines = []
    for seed in range(seeds):
        quickstart.train_students(rows, seed)
        for row in rows:
            results = quickstart.test(row, seed)
            folder = quickstart.output / student_folder(row, seed)
            seconds = training_seconds(folder)
            lines.append({**summarise(row, results, quickstart.config(folder.name), seconds), "seed": seed})
    return [baseline_row(quickstart.config("cache")), *lines]


def student_folder(row: str, seed: int) -> str:
    """Name of a student's folder."""
    return f"student_{row}" + (f"_seed{seed}" if seed else "")


def paired_lines(lines: list[dict[str, Any]], rows: list[str]) -> list[str]:
    """Each row against (a), paired by seed: mean difference ± standard error and its 95 % interval."""
    text = []
    for row in rows:
        if row == "a" or "a" not in rows:
            continue
        for metric in ("mIoU", "mAP"):
            pair = [[line[metric] for line in lines if line["row"] == name] for name in ("a", row)]
            found = paired_difference(*pair)
            text.append(
                f"{row} - a, {metric}: {found.mean:+.2f} ± {found.standard_error:.2f} "
                f"[{found.low:+.2f}, {found.high:+.2f}] over {len(pair[0])} seeds"
            )
    return text


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The main job on the embedded scenes.")
    parser.add_argument("--output", default="output/quickstart", metavar="DIR")
    parser.add_argument("--engine", default="auto", help="auto, mmengine or detectron2")
    parser.add_argument("--rows", default="a b c", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=1, help="student runs of each row, paired by seed")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config overrides for every run")
    return parser.parse_intermixed_args()


def main() -> None:
    """Run the stages, print the table, write the report."""
    args = parse_args()
    rows = args.rows.split()
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise UserError(f"--rows: unknown row {unknown[0]!r}; choose of {', '.join(ROWS)}")
    output = Path(args.output)
    quickstart = Quickstart(output, choose_engine(args.engine), args.overrides)
    lines = run(quickstart, rows, args.seeds)
    print("\n" + table(lines))
    text = paired_lines(lines, rows) if args.seeds > 1 else []
    print("\n".join(text))
    report = quickstart.report(lines, rows, text)
    print(f"report: {report}")
    (output / "quickstart.json").write_text(json.dumps({"rows": lines, "paired": text}, indent=2) + "\n")


if __name__ == "__main__":
    run_cli(main)
