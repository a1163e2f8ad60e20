#!/usr/bin/env python
"""Make or check data sets.

python tools/prepare_data.py scenes --root DIR [--split train=2000 --split val=500] [--seed N]
python tools/prepare_data.py voc    --root VOCdevkit [--lists]
python tools/prepare_data.py sbd    --sbd benchmark_RELEASE --voc VOCdevkit
python tools/prepare_data.py coco   --root DIR [--class-id-masks]
python tools/prepare_data.py cifar10|cifar100|tiny_imagenet|folder --root DIR

--report prints how many images lack the labels of each task.
"""

from __future__ import annotations

import argparse

from scenekd.errors import UserError, run_cli

DEFAULT_SPLITS = (("train", 2000), ("val", 500))
CLASSIFICATION = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "tiny-imagenet",
    "folder": "folders <split>/<class> of images",
}


def parse_split(text: str) -> tuple[str, int]:
    """``name=count``."""
    name, _, count = text.partition("=")
    if not name or not count.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not name=count, for example train=2000")
    return name, int(count)


def parse_size(text: str) -> tuple[int, int]:
    """``HEIGHTxWIDTH``."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, for example 128x160")
    return int(height), int(width)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--report",
        nargs="*",
        metavar="NAME",
        help="count missing labels of these data sets; without names, of all that were found",
    )
    common.add_argument("--debug", action="store_true", help="show tracebacks")

    scenes = commands.add_parser("scenes", parents=[common], help="make the synthetic data set")
    scenes.add_argument("--root", required=True, metavar="DIR", help="where it is made, in VOC's layout")
    scenes.add_argument(
        "--split",
        action="append",
        type=parse_split,
        metavar="NAME=COUNT",
        dest="splits",
        help="images of a split, once for each split; default train=2000 and val=500",
    )
    scenes.add_argument("--seed", type=int, default=0, help="default 0")
    scenes.add_argument("--size", type=parse_size, default=(128, 160), metavar="HxW", help="default 128x160")
    scenes.add_argument("--border", type=int, default=0, metavar="N", help="void rim in pixels, default 0")
    scenes.set_defaults(run=run_scenes)

    voc = commands.add_parser("voc", parents=[common], help="check PASCAL VOC")
    voc.add_argument("--root", required=True, metavar="DIR", help="VOCdevkit, or a folder of VOC's layout")
    voc.add_argument(
        "--lists",
        action="store_true",
        help="write Main/trainval_minus_seg_val.txt; otherwise nothing is written",
    )
    voc.set_defaults(run=run_voc)

    sbd = commands.add_parser("sbd", parents=[common], help="put SBD into VOC's layout")
    sbd.add_argument("--sbd", required=True, metavar="DIR", help="the unpacked benchmark_RELEASE")
    sbd.add_argument("--voc", required=True, metavar="DIR", help="VOCdevkit, or a folder of VOC's layout")
    sbd.set_defaults(run=run_sbd)

    coco = commands.add_parser("coco", parents=[common], help="check COCO")
    coco.add_argument("--root", required=True, metavar="DIR", help="the folder with annotations/")
    coco.add_argument(
        "--class-id-masks",
        action="store_true",
        help="store each image's mask of class ids in class_ids/, from where training reads it faster",
    )
    coco.set_defaults(run=run_coco)

    for kind, what in CLASSIFICATION.items():
        classes = commands.add_parser(kind, parents=[common], help=f"check {what}")
        classes.add_argument("--root", required=True, metavar="DIR", help="as DATASETS.ROOT")
        classes.set_defaults(run=run_classes)
    return parser.parse_args(argv)


def run_scenes(args: argparse.Namespace) -> None:
    """Make the scenes data set."""
    from scenekd.data.scenes import SCENES_CLASSES, generate_scenes

    pairs = args.splits or list(DEFAULT_SPLITS)
    splits = dict(pairs)
    if len(splits) < len(pairs):
        raise UserError("--split: the same name is given twice; name each split once")
    made = generate_scenes(args.root, splits=splits, seed=args.seed, size=args.size, border=args.border)
    counts = ", ".join(f"{name} {count}" for name, count in splits.items())
    print(f"{args.root}: {'made' if made else 'there already, left as it is'}; {counts} images")
    report(args, [f"voc_seg_{name}" for name in splits], args.root, SCENES_CLASSES)


def run_voc(args: argparse.Namespace) -> None:
    """Check VOC, and write the derived list where asked."""
    from scenekd.data.verify import VOC_SOURCE, verify_voc, write_detection_list

    checked = verify_voc(args.root)
    for folder, found in checked:
        print("\n".join([str(folder), *found.lines]))
        if args.lists:
            path, count = write_detection_list(folder)
            print(f"{path}: {count} ids")
        report(args, found.names, str(folder))
    for _, found in checked:
        found.check(VOC_SOURCE)


def run_sbd(args: argparse.Namespace) -> None:
    """Convert SBD."""
    from scenekd.data.sbd import prepare_sbd

    done = prepare_sbd(args.sbd, args.voc)
    print(
        f"SegmentationClassAug: {done.from_voc} masks of VOC, {done.from_sbd} of SBD, {done.void} void; "
        f"{done.written} written now; {done.without_image} ids without an image left out\n"
        f"train_aug: {done.train_aug} ids, trainval_aug: {done.trainval_aug}"
    )
    report(args, ["voc_aug_train", "voc_aug_trainval"], args.voc)


def run_coco(args: argparse.Namespace) -> None:
    """Check COCO, and store the masks where asked."""
    from pathlib import Path

    from scenekd.data.class_ids import masks_folder, store_class_ids
    from scenekd.data.coco import read_instances
    from scenekd.data.verify import COCO_SOURCE, verify_coco

    found = verify_coco(args.root)
    print("\n".join(found.lines))
    for name in found.names if args.class_id_masks else ():
        path = Path(args.root) / "annotations" / f"{name.removeprefix('coco_')}.json"
        written = store_class_ids(read_instances(path, name, on_error="skip"), path)
        print(f"{masks_folder(path)}: {written or 'all there, none'} written")
    report(args, found.names, args.root)
    found.check(COCO_SOURCE)


def run_classes(args: argparse.Namespace) -> None:
    """Check a data set for classification."""
    from scenekd.data.verify_classes import verify_classes

    found, source = verify_classes(args.command, args.root)
    print("\n".join(found.lines))
    report(args, found.names, args.root)
    found.check(source)


def report(args: argparse.Namespace, names: list[str], root: str, classes: tuple[str, ...] = ()) -> None:
    """Print the availability of labels, where ``--report`` asks for it."""
    if args.report is None:
        return
    from scenekd.data.catalog import availability_report, load_dataset

    for name in args.report or names:
        found = availability_report(load_dataset(name, root=root, classes=classes, on_error="skip"))
        print(f"\n{found}")


def main() -> None:
    """Run the subcommand."""
    args = parse_args()
    args.run(args)


if __name__ == "__main__":
    run_cli(main)
