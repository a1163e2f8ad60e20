"""Which framework drives a run, and starting its processes. Frameworks are imported only once chosen."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .. import checkpoint
from ..config import SYSTEMS
from ..errors import UserError, run_cli
from .slurm import join_slurm

ENGINES = ("mmengine", "detectron2")
_LOG_FILE = "scenekd log file"


def choose_engine(name: str, output_dir: str | Path = "", resume: bool = False) -> str:
    """The engine to use: ``auto`` is the engine of the run being resumed, else MMEngine.

    Raises:
        UserError: an unknown name, or the framework is not installed.
    """
    if name == "auto":
        name = "mmengine"
        last = Path(output_dir) / checkpoint.LAST
        if resume and last.is_file():
            name = checkpoint.read(last).get("engine", name)
    if name not in ENGINES:
        raise UserError(f"--engine: unknown engine {name!r}; choose auto, {' or '.join(ENGINES)}")
    if importlib.util.find_spec(name) is None:
        how = "see its INSTALL.md" if name == "detectron2" else "pip install onedl-mmengine"
        raise UserError(f"--engine {name}: {name} is not installed; {how}")
    return name


def engine_module(name: str) -> Any:
    """The module with ``train(experiment)`` and ``evaluate(experiment)`` of an engine."""
    return importlib.import_module(f".{name}_run", __package__)


def launch(
    main: Callable[..., None],
    args: tuple[Any, ...],
    *,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    launcher: str = "none",
) -> None:
    """Call ``main(rank, local_rank, world_size, *args)`` in every process of the run.

    Under torchrun (its variables are in the environment) and slurm the processes exist already; else ``num_gpus``
    processes are started here, over NCCL on GPUs and gloo on CPU.

    Args:
        num_gpus: processes on this machine.
        dist_url: ``tcp://host:port`` of machine 0; ``auto`` picks a free port where there is one machine.
        launcher: none | pytorch | slurm; ``none`` recognises torchrun by itself.
    """
    if launcher == "slurm":
        join_slurm()
    if launcher in ("pytorch", "slurm") or "TORCHELASTIC_RUN_ID" in os.environ:
        rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        _join(rank, local, int(os.environ["WORLD_SIZE"]), "env://")
        try:
            main(rank, local, dist.get_world_size(), *args)
        finally:
            dist.destroy_process_group()
        return
    world_size = num_gpus * num_machines
    if world_size == 1:
        main(0, 0, 1, *args)
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise UserError("--dist-url: several machines need tcp://HOST:PORT of machine 0")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    context = mp.start_processes(
        _worker,
        args=(main, num_gpus, world_size, machine_rank * num_gpus, dist_url, args),
        nprocs=num_gpus,
        join=False,
        start_method="spawn",
    )
    try:
        while not context.join():
            pass
    except mp.ProcessExitedException as error:
        # The worker has printed its line.
        raise SystemExit(error.exit_code) from None


def _worker(
    local_rank: int,
    main: Callable[..., None],
    local_world_size: int,
    world_size: int,
    first: int,
    url: str,
    args: tuple[Any, ...],
) -> None:
    def work() -> None:
        os.environ["LOCAL_WORLD_SIZE"] = str(local_world_size)
        _join(first + local_rank, local_rank, world_size, url)
        main(first + local_rank, local_rank, world_size, *args)
        dist.destroy_process_group()

    run_cli(work)


def _join(rank: int, local_rank: int, world_size: int, url: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(world_size))
    cuda = torch.cuda.is_available() and torch.cuda.device_count() > local_rank
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo", init_method=url, rank=rank, world_size=world_size)
    if "detectron2" in sys.modules or importlib.util.find_spec("detectron2") is not None:
        from detectron2.utils import comm

        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        comm.create_local_process_group(local_world)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def setup_logging(output_dir: str | Path, rank: int) -> None:
    """Send our log to ``OUTPUT_DIR/log.txt`` and warnings to the console."""
    logger = logging.getLogger("scenekd")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING if rank == 0 else logging.ERROR)
    console.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(console)
    if rank == 0:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(Path(output_dir) / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        file.set_name(_LOG_FILE)
        for name in ("scenekd", "detectron2", *SYSTEMS):
            logger = logging.getLogger(name)
            for handler in [h for h in logger.handlers if h.get_name() == _LOG_FILE]:
                logger.removeHandler(handler)  # of another run in this process
            logger.addHandler(file)
            logger.setLevel(logging.INFO)
