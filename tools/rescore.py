#!/usr/bin/env python
"""Let scene context correct a detector: every detection is hidden in turn, and scored again by what the context says.

python tools/rescore.py --config-file projects/blindnet/scenes.yaml --weights output/model_final.pth
       --detections DETECTOR --fit DETECTOR --fit-dataset NAME [--dataset NAME] [--output DIR] [KEY VALUE ...]

DETECTOR: a json of COCO's results format (image_id may be the VOC id), a folder with detections.json, a checkpoint of
ours, or a network by URI, such as torchvision://fasterrcnn_resnet50_fpn_v2. --fit: the same detector on held-out
images, on which the rule is fitted; --rule takes one that was fitted before.
Writes to DIR: detections.json (the new scores; everything else as it was), results.json (AP before and after),
rule.json, out_of_context.json, rescore.html.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fvcore.common.config import CfgNode

from blindnet.detections import read_detections
from blindnet.region_context import RegionContext
from blindnet.rescore import account, average_precisions, judge, out_of_context
from blindnet.rescore_choice import choose_rule
from blindnet.rescore_page import write_rescore_page
from blindnet.rescore_rule import Rule
from scenekd.config import load_config
from scenekd.data.catalog import load_datasets
from scenekd.data.records import Dataset
from scenekd.engines import datasets  # noqa: F401 - the frameworks' data sets by name
from scenekd.errors import UserError, run_cli
from scenekd.files import write_text
from scenekd.predictor import open_config, open_predictor
from scenekd.results import describe_run, plain, write_results


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the context network")
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="default: the one in the checkpoint"
    )
    parser.add_argument("--detections", required=True, metavar="DETECTOR", help="what is scored again")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--fit", metavar="DETECTOR", help="on held-out images, to fit the rule on")
    how.add_argument("--rule", metavar="FILE", help="rule.json of an earlier run, instead")
    parser.add_argument("--fit-dataset", default="", metavar="NAME", help="with --fit: the held-out data set")
    parser.add_argument("--dataset", default="", metavar="NAME", help="default: DATASETS.TEST")
    parser.add_argument("--output", default="output/rescore", metavar="DIR", help="default: output/rescore")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = parser.parse_intermixed_args()
    if args.fit and not args.fit_dataset:
        raise UserError("--fit: name its held-out data set with --fit-dataset NAME")
    return args


def held_out(name: str, test: Dataset, cfg: CfgNode) -> Dataset:
    """The data set that the rule is fitted on.

    Raises:
        UserError: it shares images with the test set.
    """
    dataset = load_datasets((name,), cfg, train=False)
    shared = {record.file_name for record in dataset.records} & {record.file_name for record in test.records}
    if shared:
        raise UserError(
            f"--fit-dataset {name}: {len(shared)} of its images are in {test.name}, too; fit on images that are not "
            "tested on"
        )
    return dataset


def make_rule(args: argparse.Namespace, test: Dataset, context: RegionContext, cfg: CfgNode) -> Rule:
    """The rule of ``--rule``, or one fitted on ``--fit``."""
    if args.rule:
        try:
            content = json.loads(Path(args.rule).read_bytes())
        except ValueError:
            raise UserError(f"{args.rule}: no JSON; give the rule.json of an earlier run") from None
        rule = Rule.from_dict(content, args.rule)
        if rule.classes != test.classes:
            raise UserError(f"{args.rule}: a rule for {len(rule.classes)} other classes; fit one with --fit")
        return rule
    found = read_detections(args.fit, held_out(args.fit_dataset, test, cfg), cfg, Path(args.output))
    return choose_rule(found, context, cfg)


def main() -> None:
    """Fit, score again, compare."""
    args = parse_args()
    cfg = (
        load_config(args.config_file, args.overrides)
        if args.config_file
        else open_config(args.weights, args.overrides)
    )
    folder, options = Path(args.output), cfg.MODEL.BLINDNET.RESCORE
    names = (args.dataset,) if args.dataset else cfg.DATASETS.TEST
    test = load_datasets(names, cfg, train=False)
    predictor = open_predictor(args.weights, cfg, strict=True)
    context = RegionContext(predictor, groups=options.GROUPS, batch_size=cfg.TEST.BATCH_SIZE)
    found = read_detections(args.detections, test, cfg, folder)
    rule = make_rule(args, test, context, cfg)
    judged = judge(found, context, cfg, rule.min_score)
    scores = rule.rescore(judged.cases)
    after = judged.with_scores(scores)
    results = average_precisions(found, after, cfg)
    listed = out_of_context(judged, rule, scores, options.SURE)
    results["rescore"] = account(judged, rule, listed, options.SURE)
    write_text(folder / "detections.json", json.dumps(after.content))
    write_text(folder / "rule.json", json.dumps(rule.as_dict(), indent=2) + "\n")
    write_text(folder / "out_of_context.json", json.dumps(plain(listed), indent=2) + "\n")
    about = describe_run(cfg, "none", context=args.weights, detections=args.detections, dataset=test.name)
    write_results(folder / "results.json", results, about)
    page = write_rescore_page(folder, results, judged, rule, listed, context, cfg)
    for task, key in (("bbox", "AP50"), ("coco", "AP")):
        gain = results[f"{task}_gain"]
        interval = gain.get(f"{key}_interval")
        over = f", 95 % interval {interval[0]:+.2f} … {interval[1]:+.2f}" if interval else ""
        print(
            f"{task} {key}: {results[f'{task}_before'][key]:.2f} → {results[task][key]:.2f} ({gain[key]:+.2f}{over})"
        )
    print(f"{judged.images} images, {len(found)} detections, {judged.seconds:.1f} s; see {page}")


if __name__ == "__main__":
    run_cli(main)
