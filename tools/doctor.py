#!/usr/bin/env python
"""Say what is wrong with the installation, a configuration or a run, and what to do about it.

python tools/doctor.py                               the installation
python tools/doctor.py CONFIG [KEY VALUE ...]        and a configuration, its data and teachers
python tools/doctor.py --run DIR                     and what a run has left in its OUTPUT_DIR

Exit code: 0 without errors, 2 with errors.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from pathlib import Path

if importlib.util.find_spec("scenekd") is None:  # not installed: that is what the doctor has to tell
    sys.path.insert(0, str(Path(__file__).parents[1] / "projects"))


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", metavar="DIR", help="check the output folder of a run")
    parser.add_argument("--quiet", action="store_true", help="leave out what is well")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("words", nargs="*", metavar="CONFIG KEY VALUE")
    return parser.parse_intermixed_args()


def main() -> None:
    """Print the findings of each part; errors make the exit code 2."""
    from scenekd import doctor

    args = parse_args()
    logging.getLogger("scenekd").setLevel(logging.ERROR)  # what is logged on the way is told as findings
    parts = [("installation", doctor.check_environment())]
    if args.words:
        parts.append((args.words[0], doctor.check_config(args.words[0], args.words[1:])))
    if args.run:
        parts.append((args.run, doctor.check_folder(args.run)))
    for title, findings in parts:
        print(f"== {title}")
        print("".join(f"{finding}\n" for finding in findings if not (args.quiet and finding.level == "ok")))
    findings = [finding for _, part in parts for finding in part]
    print(doctor.summary(findings))
    if any(finding.level == "error" for finding in findings):
        raise SystemExit(2)


if __name__ == "__main__":
    try:
        from scenekd.errors import run_cli
    except ModuleNotFoundError as missing:
        sys.exit(f"error: {missing.name} is not installed; make test, or python -m pip install -e .")
    run_cli(main)
