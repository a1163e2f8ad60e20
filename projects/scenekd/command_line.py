"""The options of the tools that work by a configuration."""

from __future__ import annotations

import argparse


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
