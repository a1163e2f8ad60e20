"""The options of the tools that work by a configuration, and of those that work by a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from .config import get_cfg, load_config
from .predictor import open_config
from .quantize import Int8Options


def config_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --config-file, --output-dir, --debug and KEY VALUE pairs, for ``parse_intermixed_args``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output-dir", metavar="DIR", help="the same as OUTPUT_DIR DIR")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser


def config_overrides(args: argparse.Namespace) -> list[str]:
    """The ``KEY VALUE`` pairs of the command line, --output-dir among them."""
    return [*args.overrides, *(["OUTPUT_DIR", args.output_dir] if args.output_dir else [])]


def checkpoint_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --weights, --config-file, --opts and --debug, see :func:`checkpoint_config`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="default: the one in the checkpoint"
    )
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def checkpoint_config(args: argparse.Namespace) -> CfgNode:
    """The configuration named on the command line, else the one in the checkpoint."""
    if args.config_file:
        return load_config(args.config_file, args.opts)
    return open_config(args.weights, args.opts)


def split_words(words: Sequence[str], system: str) -> tuple[list[str], list[str]]:
    """The words after an option that takes several: its own, then ``KEY VALUE`` pairs from the first configuration key
    on."""
    keys = get_cfg(system)
    for i, word in enumerate(words):
        if word.split(".")[0] in keys:
            return list(words[:i]), list(words[i:])
    return list(words), []


def add_int8_options(parser: argparse.ArgumentParser) -> None:
    """Add --backend and --keep-float, see :func:`int8_options`."""
    parser.add_argument(
        "--backend",
        default="auto",
        help="of torch's int8: onednn, x86, fbgemm, qnnpack; default: the first here",
    )
    parser.add_argument(
        "--keep-float",
        action="append",
        default=[],
        metavar="PATTERN",
        help="modules of the bare network that torch's int8 leaves out, such as 'classifier.*'; may be repeated",
    )


def int8_options(args: argparse.Namespace) -> Int8Options:
    """What :func:`add_int8_options` has read."""
    return Int8Options(args.backend, tuple(args.keep_float))
