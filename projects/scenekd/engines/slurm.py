"""Joining a run that slurm started: its variables become torchrun's, which everything else reads."""

from __future__ import annotations

import os
import re
import subprocess

from ..errors import UserError

_PORT = "29500"  # torchrun's own; MASTER_PORT chooses another


def join_slurm() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of this process.

    MASTER_ADDR and MASTER_PORT stay where they are set.

    Raises:
        UserError: this is no slurm step, or the first node cannot be told.
    """
    if "SLURM_PROCID" not in os.environ:
        raise UserError("--launcher slurm: not inside a slurm step; start with srun")
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_node()
    os.environ.setdefault("MASTER_PORT", _PORT)
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = _variable("SLURM_NTASKS", "SLURM_NPROCS")
    os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    tasks = tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE") or _variable("SLURM_TASKS_PER_NODE"))
    os.environ["LOCAL_WORLD_SIZE"] = str(tasks[int(os.environ.get("SLURM_NODEID", "0"))])


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form, node by node: ``2(x3),1`` is 2, 2, 2, 1."""
    tasks = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_TASKS_PER_NODE: {text!r} is not of slurm's form, such as 2(x3),1")
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def _first_node() -> str:
    """The name of the node on which process 0 runs."""
    nodes = _variable("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    how = "set MASTER_ADDR to the first node's name"
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(f"--launcher slurm: scontrol cannot be run ({error.strerror}); {how}") from None
    if done.returncode or not done.stdout.split():
        reason = " ".join(done.stderr.split()) or "no output"
        raise UserError(f"--launcher slurm: scontrol does not know the nodes {nodes!r} ({reason}); {how}")
    return done.stdout.split()[0]


def _variable(*names: str) -> str:
    """The first of some variables of slurm's that is set."""
    for name in names:
        if os.environ.get(name):
            return os.environ[name]
    raise UserError(f"--launcher slurm: {' and '.join(names)} not set; start with srun")
