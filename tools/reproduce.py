#!/usr/bin/env python
"""Run a system's experiments and put the paper's numbers beside ours: ``python tools/reproduce.py kd_mtl``.

[--only ID …] [--preset paper|small|smoke] [--seeds N] [--sweep] [--output DIR] [--data DIR] [--jobs N] [--list]
[--engine auto|mmengine|detectron2] [KEY VALUE …]
"""

from __future__ import annotations

from scenekd.errors import run_cli
from scenekd.study.study import main

if __name__ == "__main__":
    run_cli(main)
