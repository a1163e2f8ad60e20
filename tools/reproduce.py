#!/usr/bin/env python
"""Run a system's experiments and put the paper's numbers beside ours: ``python tools/reproduce.py kd_mtl``.

[--only ID …] [--preset paper|small|smoke] [--seeds N] [--sweep] [--output DIR] [--data DIR] [--jobs N] [--list]
[--engine auto|mmengine|detectron2] [KEY VALUE …]
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that measures memory is chatty

from scenekd.errors import run_cli  # noqa: E402
from scenekd.study.study import main  # noqa: E402

if __name__ == "__main__":
    run_cli(main)
