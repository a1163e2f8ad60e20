#!/usr/bin/env python
"""Evaluate checkpoints, or score saved predictions of any model.

python tools/test.py CONFIG CHECKPOINT [KEY VALUE ...]
python tools/test.py --predictions DIR --dataset NAME [KEY VALUE ...]

DIR holds detections.json (COCO's results format: boxes, masks of objects or both) and/or segmentation/<image_id>.png.
CONFIG may be a native configuration of MMEngine (.py) or detectron2 (YAML with MODEL.META_ARCHITECTURE).
CHECKPOINT may be a folder: each checkpoint in it is evaluated, oldest step first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fvcore.common.config import CfgNode

from scenekd import checkpoint
from scenekd.config import apply_overrides, get_cfg, load_config
from scenekd.data.catalog import load_datasets
from scenekd.engines.native import NativeRun, native_framework, run_native
from scenekd.engines.select import choose_engine, launch
from scenekd.engines.session import evaluate_once, summary_line
from scenekd.errors import UserError, run_cli
from scenekd.evaluation.predictions import score_predictions
from scenekd.results import describe_run, write_results


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--predictions", metavar="DIR", help="score DIR/detections.json, DIR/segmentation/*.png"
    )
    parser.add_argument("--dataset", metavar="NAME", help="with --predictions: the data set")
    parser.add_argument("--engine", default="auto", help="auto, mmengine or detectron2")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--out", default="", metavar="FILE", help="where results.json goes")
    parser.add_argument("--show-dir", default="", metavar="DIR", help="save panels of images and predictions")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("words", nargs="*", metavar="CONFIG CHECKPOINT KEY VALUE")
    return parser.parse_intermixed_args()


def score(args: argparse.Namespace) -> None:
    """Score saved predictions."""
    if not args.dataset:
        raise UserError("--predictions: name the data set with --dataset NAME (and DATASETS.ROOT DIR)")
    cfg = get_cfg()
    apply_overrides(cfg, args.words)
    cfg.DATASETS.TEST = (args.dataset,)
    cfg.freeze()
    results = score_predictions(args.predictions, load_datasets(cfg.DATASETS.TEST, cfg, train=False), cfg)
    out = args.out or str(Path(args.predictions) / "results.json")
    write_results(out, results, describe_run(cfg, "none", predictions=args.predictions))
    print(summary_line(results))


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate one checkpoint, or each in a folder."""
    if len(args.words) < 2:
        raise UserError("give CONFIG and CHECKPOINT, or --predictions DIR --dataset NAME")
    config, path, *overrides = args.words
    files = _checkpoints(Path(path))
    native = native_framework(config)
    for file in files:
        out = args.out or str(file.parent / "results.json")
        if len(files) > 1:
            print(f"{file}: ", end="", flush=True)
            out = str(file.with_suffix(".results.json"))
        if native:
            run = NativeRun(
                config,
                tuple(overrides),
                str(file.parent),
                weights=str(file),
                eval_only=True,
                out=out,
                show_dir=args.show_dir,
            )
            launch(run_native, (native, run), num_gpus=args.num_gpus)
        else:
            cfg = _config(config, file, overrides)
            if len(files) == 1 and not args.out:
                out = str(Path(cfg.OUTPUT_DIR) / "results.json")
            engine = choose_engine(args.engine, file.parent)
            launch(evaluate_once, (cfg, engine, False, out, args.show_dir), num_gpus=args.num_gpus)


def _checkpoints(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("model*.pth"), key=lambda file: (file.stat().st_mtime, file.name))
    if not files:
        raise UserError(f"{path}: holds no model*.pth")
    return files


def _config(config: str, file: Path, overrides: list[str]) -> CfgNode:
    cfg = load_config(config, overrides).clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(file)
    ours = checkpoint.config_of(file) is not None  # a bad file is told before the data is read
    # Beside our own checkpoint lies its run; weights of others may lie where nothing can be written.
    if ours and cfg.OUTPUT_DIR == get_cfg(cfg.SYSTEM).OUTPUT_DIR:
        cfg.OUTPUT_DIR = str(file.parent)
    cfg.freeze()
    return cfg


def main() -> None:
    """Score predictions or evaluate checkpoints."""
    args = parse_args()
    if args.predictions:
        score(args)
    else:
        evaluate(args)


if __name__ == "__main__":
    run_cli(main)
