"""Slurm's launcher: two processes with its variables and a stand-in for ``scontrol``, over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scenekd.engines.select import launch
from scenekd.engines.slurm import join_slurm, tasks_per_node
from scenekd.errors import UserError

STEP = {
    "SLURM_NTASKS": "2",
    "SLURM_TASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NODELIST": "gpu[01;touch pwned]",  # no shell may see it
}
WORK = """
import os, torch, torch.distributed as dist
from scenekd.engines.select import launch

def work(rank, local_rank, world_size):
    total = torch.tensor([10.0 ** rank])
    dist.all_reduce(total)
    print(rank, local_rank, world_size, int(total), os.environ["LOCAL_WORLD_SIZE"])

launch(work, (), launcher="slurm")
"""


@pytest.fixture
def scontrol(tmp_path: Path) -> Path:
    """A folder with a ``scontrol`` that knows the step's nodes, the first of which is this machine."""
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"assert sys.argv[1:] == ['show', 'hostnames', {STEP['SLURM_STEP_NODELIST']!r}], sys.argv\n"
        "print('127.0.0.1')\nprint('gpu02')\n"
    )
    script.chmod(0o755)
    return script.parent


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Process 1 of a step of two, in this process's environment, where no program can be found."""
    monkeypatch.setattr(os, "environ", {**STEP, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
    monkeypatch.setenv("PATH", str(tmp_path))
    return monkeypatch


def test_two_processes_join(scontrol: Path, tmp_path: Path) -> None:
    """Both find each other and their places: 10⁰ + 10¹ = 11 is what their sum must be."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    shared = {
        **os.environ,
        **STEP,
        "PATH": f"{scontrol}{os.pathsep}{os.environ['PATH']}",
        "MASTER_PORT": str(port),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORK],
            env={**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(started):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert out.split() == [str(rank), str(rank), "2", "11", "2"]
    assert not (tmp_path / "pwned").exists()


def test_a_given_master_needs_no_scontrol(step: pytest.MonkeyPatch) -> None:
    """MASTER_ADDR and MASTER_PORT stay as they are set; the port is torchrun's own where it is not."""
    step.setenv("MASTER_ADDR", "gpu01")
    join_slurm()
    found = {
        name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    assert list(found.values()) == ["gpu01", "29500", "1", "2", "1"]
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"


def test_what_is_missing_is_one_line(step: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No scontrol, one that fails, no list of nodes, no step at all."""
    with pytest.raises(UserError, match="scontrol cannot be run .*; set MASTER_ADDR") as caught:
        launch(print, (), launcher="slurm")
    assert "\n" not in str(caught.value)
    script = tmp_path / "scontrol"
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('slurm_load_node:\\n no such host')\n")
    script.chmod(0o755)
    with pytest.raises(UserError, match=r"does not know the nodes .*\(slurm_load_node: no such host\)"):
        join_slurm()
    step.delenv("SLURM_STEP_NODELIST")
    with pytest.raises(UserError, match="SLURM_NODELIST not set; start with srun"):
        join_slurm()
    step.delenv("SLURM_PROCID")
    with pytest.raises(UserError, match="not inside a slurm step; start with srun"):
        join_slurm()


def test_tasks_per_node() -> None:
    assert tasks_per_node("4") == [4]
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(UserError, match="not of slurm's form"):
        tasks_per_node("two")
