#!/usr/bin/env python
"""Write a trained network as one file for other programs.

python tools/export.py --config-file F --weights W --output model.onnx [--format onnx|torchscript|torch_export] [--nms]
python tools/export.py --config-file F --weights W --output model.pt --format torchscript|onnx --quantize N

The graph takes "images", (B, 3, S, S) float32 RGB in 0…255, and normalises them itself. Without --nms it gives class
probabilities and decoded boxes of all anchors, segmentation logits and logits of the whole image, as far as the network
has such tasks, for any B. With --nms it takes one image and gives the boxes, labels and scores that the network keeps;
their number varies. The file is compared with PyTorch on the images of --check before it gets its name. --quantize
writes int8, with scales from N images of DATASETS.TRAIN.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from fvcore.common.config import CfgNode
from torch import nn

from scenekd import checkpoint
from scenekd.calibration_images import calibration_batches
from scenekd.command_line import add_int8_options, checkpoint_config, checkpoint_parser, int8_options
from scenekd.data.images import image_files, read_image
from scenekd.errors import UserError, run_cli
from scenekd.export import FORMATS, TOLERANCE, Exported, export
from scenekd.export_int8 import export_int8
from scenekd.models import build_model
from scenekd.quantize import Int8Options


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--format", default="onnx", choices=FORMATS)
    parser.add_argument("--nms", action="store_true", help="boxes after the network's own NMS, for one image")
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX; default: the exporter's choice")
    parser.add_argument(
        "--check", nargs="+", default=[], metavar="IMAGE", help="images, or folders; default: drawn scenes"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference from PyTorch, relative to an output's largest value where that is above 1; "
        f"default: {TOLERANCE:g}, or four times the network's own rounding in float32 where that is more",
    )
    parser.add_argument("--quantize", type=int, metavar="N", help="int8, calibrated on N training images")
    add_int8_options(parser)
    return parser.parse_args()


def describe(exported: Exported) -> str:
    """What was written, and how it differs from PyTorch."""
    comparison = exported.comparison
    size = exported.path.stat().st_size / 1e6
    detail = f", {exported.detail}" if exported.detail else ""
    lines = [f"{exported.path}: {exported.format}{detail}, {size:.1f} MB"]
    for name, shape in exported.outputs.items():
        text = ", ".join(map(str, shape))
        difference = f"{comparison.absolute[name]:.2g} ({comparison.relative[name]:.2g} of the largest value)"
        lines.append(f"  {name:<20} ({text + ')':<24} largest difference from PyTorch {difference}")
    boxes = f"; {comparison.same} of {comparison.boxes} boxes are the same" if comparison.boxes else ""
    if comparison.tied:
        boxes += f"; {comparison.tied} more share their score with other anchors, and no order is right"
    lines.append(f"  compared on {comparison.inputs} inputs{boxes}")
    if exported.same_class is not None:
        lines.append(f"  {exported.same_class:.2%} of the classes are those of the float network")
    if comparison.rounding is not None:
        worst = max(comparison.rounding.relative.values())
        lines.append(
            f"  float32 alone moves this network's outputs by up to {worst:.2g}, and keeps "
            f"{comparison.rounding.share:.0%} of its boxes; is it trained?"
        )
    return "\n".join(lines)


def write(args: argparse.Namespace, cfg: CfgNode, net: nn.Module, images: Sequence[np.ndarray]) -> Exported:
    """The file in float or int8."""
    if args.quantize is None:
        if int8_options(args) != Int8Options():
            raise UserError("--backend, --keep-float: belong to --quantize; add it, or leave them out")
        options = {"nms": args.nms, "opset": args.opset, "tolerance": args.tolerance}
        return export(net, cfg, args.output, format=args.format, images=images, **options)
    if args.nms or args.opset is not None or args.tolerance is not None:
        raise UserError("--nms, --opset, --tolerance: have no meaning with --quantize; leave them out")
    return export_int8(
        net,
        cfg,
        args.output,
        calibration_batches(cfg, args.quantize),
        format=args.format,
        options=int8_options(args),
        images=images,
    )


def main() -> None:
    """Build the network, export it and say what was written."""
    args = parse_args()
    cfg = checkpoint_config(args)
    images = []
    for file in image_files(args.check):
        if not file.is_file():
            raise UserError(f"--check: {file}: no such file")
        images.append(read_image(str(file)))
    net = build_model(cfg, pretrained=False)
    checkpoint.load_weights(net, args.weights)
    print(describe(write(args, cfg, net, images)))


if __name__ == "__main__":
    run_cli(main)
