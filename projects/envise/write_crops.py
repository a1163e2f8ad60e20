"""The objects of ``DATASETS.TEST`` as folders of classes, on which a teacher for object crops is trained:

python -m envise.write_crops --config-file projects/envise/scenes.yaml --root datasets/scenes_crops
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fvcore.common.config import CfgNode
from PIL import Image

from scenekd.config import load_config
from scenekd.data.catalog import load_datasets
from scenekd.errors import UserError, run_cli

from .sources import object_crops


def write_crops(cfg: CfgNode, root: str | Path, split: str = "train") -> int:
    """Write <root>/<split>/<class>/<id>.png, which the data set ``folder_<split>`` reads; returns how many.

    Raises:
        UserError: no objects, or the folder is there already.
    """
    folder = Path(root) / split
    if folder.exists():
        raise UserError(f"{folder}: is there already; delete it or choose another --root")
    crops = object_crops(load_datasets(cfg.DATASETS.TEST, cfg, train=False), cfg)
    for record in crops.records:
        assert record.class_label is not None and record.pixels is not None
        place = folder / crops.classes[record.class_label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(record.pixels).save(place / f"{record.image_id}.png")
    return len(crops)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--root", required=True, help="folder above the split's")
    parser.add_argument("--split", default="train", help="name of the split (default: train)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration overrides")
    args = parser.parse_args()
    written = write_crops(load_config(args.config_file, args.opts), args.root, args.split)
    print(f"{written} objects in {Path(args.root) / args.split}")


if __name__ == "__main__":
    run_cli(main)
