"""Native configurations of the frameworks: run by the framework itself, with SceneKD's components by name.

A ``.py`` file is MMEngine's, a YAML file with ``MODEL.META_ARCHITECTURE`` detectron2's. Both leave
``model_final.pth`` in SceneKD's form and ``results.json`` in the output folder.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import read_config
from ..errors import UserError
from ..results import write_results
from .select import choose_engine, setup_logging
from .session import summary_line

_RUNNERS = {"mmengine": "mmengine_native", "detectron2": "detectron2_native"}


@dataclass(frozen=True)
class NativeRun:
    """What the command line says of a native run.

    Attributes:
        config_file: the framework's configuration.
        overrides: ``KEY VALUE`` pairs, in the framework's own keys.
        output_dir: instead of the configuration's.
        weights: checkpoint to start from, or to evaluate.
        resume: go on from the output folder's last checkpoint.
        eval_only: evaluate, do not train.
        out: where the results are written; by default OUTPUT_DIR/results.json.
        show_dir: where an evaluation draws a panel of every image.
    """

    config_file: str
    overrides: tuple[str, ...] = ()
    output_dir: str = ""
    weights: str = ""
    resume: bool = False
    eval_only: bool = False
    out: str = ""
    show_dir: str = ""


def native_framework(config_file: str | Path) -> str | None:
    """``mmengine`` or ``detectron2`` where the file is that framework's own configuration, else None.

    Raises:
        UserError: the framework is not installed.
    """
    path = Path(config_file)
    if not path.is_file():
        return None
    name = None
    if path.suffix == ".py":
        name = "mmengine"
    else:
        try:
            loaded = read_config(path)
        except UserError:
            return None  # load_config tells what is wrong
        model = loaded.get("MODEL") if isinstance(loaded, dict) else None
        if isinstance(model, dict) and "META_ARCHITECTURE" in model:
            name = "detectron2"
    return choose_engine(name) if name else None


def run_native(rank: int, local_rank: int, world_size: int, framework: str, run: NativeRun) -> dict[str, Any]:
    """Train or evaluate in one process; returns the results, {'sem_seg': …, 'bbox': …}."""
    if len(run.overrides) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE; {run.overrides[-1]!r} stands alone")
    module = importlib.import_module(f".{_RUNNERS[framework]}", __package__)
    session = module.Session(run)
    if rank == 0:
        Path(session.output_dir).mkdir(parents=True, exist_ok=True)
    setup_logging(session.output_dir, rank)
    results: dict[str, Any] = session.evaluate() if run.eval_only else session.train()
    if rank == 0 and results:
        meta = {"engine": framework, "native": str(run.config_file), "torch": torch.__version__}
        write_results(run.out or Path(session.output_dir) / "results.json", results, meta)
        print(summary_line(results))
    if rank == 0 and run.eval_only and run.show_dir:
        print(f"panels in {run.show_dir}")
    return results
