"""The doctor's tool, the environment, and a run: every check is triggered by the mistake it is for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_helpers import only, told, worse
from tool_runner import ToolRunner

from scenekd import checkpoint, doctor
from scenekd import doctor_environment as environment
from scenekd.doctor_findings import ok
from scenekd.doctor_run import check_losses, check_numbers, check_run
from scenekd.models import build_model

REQUIREMENTS = [
    "torch<2.16,>=2.11",
    "opencv-python",
    'timm; extra == "timm"',
    'detectron2 @ git+https://example.org/d2.git ; extra == "detectron2"',
]


def test_versions_are_held_against_the_requirements() -> None:
    good = {"torch": "2.15.0+cpu", "opencv-python": "5.0"}
    assert told(environment.check_required(good, REQUIREMENTS), "error") == []
    old = {"torch": "2.10.1", "opencv-python": "5.0"}
    only(
        environment.check_required(old, REQUIREMENTS),
        "error",
        "torch 2.10.1",
        'pip install "torch<2.16,>=2.11"',
    )
    missing = {"torch": "2.11.0"}
    only(
        environment.check_required(missing, REQUIREMENTS), "error", "opencv-python is missing", "pip install"
    )
    only(environment.check_required(good, []), "error", "scenekd is not installed")


def test_extras_are_told_with_their_command() -> None:
    lines = told(environment.check_extras({"timm": "1.0"}, REQUIREMENTS), "ok")
    assert lines[0].startswith("optional timm: timm 1.0")
    assert "INSTALL.md" in lines[1] and '-e ".[detectron2]"' in lines[1]


def test_mixed_openmmlab_packages() -> None:
    onedl = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6"}
    assert environment.check_openmmlab(onedl) == []
    mixed = onedl | {"mmcv-lite": "2.2.0"}
    only(
        environment.check_openmmlab(mixed), "error", "mmcv-lite with onedl-mmengine", "uninstall -y mmcv-lite"
    )
    only(environment.check_openmmlab({"mmsegmentation": "1.2.2"}), "error", "not supported")


def test_two_opencvs() -> None:
    one = {"opencv-python-headless": "5.0"}
    assert environment.check_opencv(one) == []
    only(environment.check_opencv(one | {"opencv-python": "5.0"}), "error", "opencv-python and", "uninstall")


def test_torch_pair() -> None:
    pair = {"torch": "2.15.0+cu130", "torchvision": "0.29.2+cu130"}
    assert environment.check_torch_pair(pair, lambda: None) == []
    other = pair | {"torchvision": "0.29.2+cpu"}
    only(environment.check_torch_pair(other, lambda: None), "error", "different builds")
    broken = environment.check_torch_pair(pair, lambda: "operator torchvision::nms does not exist")
    only(broken, "error", "do not fit", "nms does not exist")
    assert environment.check_torch_pair(pair) == [], "the pair of this environment imports"


def test_detectron2_needs_an_older_setuptools() -> None:
    assert environment.check_detectron2({"setuptools": "83.0"}) == []
    assert environment.check_detectron2({"setuptools": "81.0", "detectron2": "0.6"}) == []
    only(
        environment.check_detectron2({"setuptools": "82.0", "detectron2": "0.6"}),
        "warning",
        '"setuptools>=77.0.3,<82"',
    )


def test_this_environment_is_told_whole() -> None:
    lines = told(environment.check_environment(), "ok")
    assert any(line.startswith(f"torch {torch.__version__.split('+')[0]}") for line in lines)
    assert any("CPU" in line or "CUDA" in line for line in lines)


@pytest.fixture
def finished(tiny_config: Callable[..., Any]) -> Path:
    """The output folder of a run that ended well."""
    cfg = tiny_config("run", "SOLVER.WARMUP_ITERS", 1)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    state = checkpoint.model_state(build_model(cfg, pretrained=False), cfg.dump())
    checkpoint.atomic_save(state, folder / "model_final.pth")
    checkpoint.atomic_save({**state, "iteration": 10, "engine": "mmengine"}, folder / "last.pth")
    write_lines(folder, [5.0 / i for i in range(1, 11)])
    numbers = {"sem_seg": {"mIoU": 9.0, "IoU-cup": 9.0}, "bbox": {"mAP": 2.0, "AP-cup": 2.0, "AP-cow": None}}
    (folder / "results.json").write_text(json.dumps(numbers | {"meta": {}}))
    return folder


def write_lines(folder: Path, losses: Sequence[float]) -> None:
    lines = [{"iteration": i + 1, "total_loss": x, "loss_seg": x} for i, x in enumerate(losses)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_ended_well(finished: Path) -> None:
    findings = check_run(finished)
    assert worse(findings) == []
    assert any("no test label of cow" in line for line in told(findings, "ok"))


def test_an_interrupted_run_names_the_command_that_goes_on(finished: Path) -> None:
    (finished / "model_final.pth").unlink()
    (finished / "results.json").unlink()
    state = checkpoint.read(finished / "last.pth")
    checkpoint.atomic_save({**state, "iteration": 4}, finished / "last.pth")
    command = f"--config-file {finished}/config.yaml --output-dir {finished} --resume"
    only(check_run(finished), "warning", "4 of 10 iterations", command)


def test_damaged_checkpoints(finished: Path) -> None:
    state = checkpoint.read(finished / "model_final.pth")
    (finished / "last.pth").write_bytes((finished / "last.pth").read_bytes()[:1000])
    only(check_run(finished), "error", "last.pth: not a readable checkpoint")
    checkpoint.atomic_save({**state, "iteration": 10}, finished / "last.pth")
    state["model"]["trunk.conv1.weight"][0] = math.nan
    checkpoint.atomic_save(state, finished / "model_final.pth")
    only(check_run(finished), "error", "not finite")


def test_losses_that_are_not_finite_or_do_not_fall(finished: Path) -> None:
    write_lines(finished, [5.0, 4.0, math.nan])
    assert "total_loss is not finite from iteration 3" in told(check_run(finished), "error")[0]
    flat = [{"iteration": i, "total_loss": 3 + 0.01 * (i % 2), "loss_box": 0.0} for i in range(12)]
    lines = told(check_losses(flat), "warning")
    assert "total_loss is flat" in lines[0] and "loss_box is 0 throughout" in lines[1]
    # A quarter of 8 is 2: from 3.5 to 2.5 is no flat loss; 7 lines say nothing.
    assert check_losses([{"iteration": i, "total_loss": 4 - i / 5} for i in range(8)]) == []
    assert check_losses(flat[:7]) == []


def test_results_that_say_nothing(finished: Path) -> None:
    undefined = {"sem_seg": {"mIoU": None}}
    assert "sem_seg/mIoU is undefined" in told(check_numbers(undefined), "error")[0]
    nothing = {"sem_seg": {"mIoU": 8.0, "IoU-background": 80.0, "IoU-cup": 0.0, "IoU-cow": 0.0}}
    assert "every class scores 0" in told(check_numbers(nothing), "warning")[0]
    (finished / "results.json").write_text('{"sem_seg"')
    only(check_run(finished), "error", "results.json: damaged")
    (finished / "results.json").unlink()
    only(check_run(finished), "warning", "tools/test.py")


def test_leftovers_and_folders_that_are_no_run(finished: Path, tmp_path: Path) -> None:
    (finished / ".model_final.pth.7.tmp").touch()
    only(check_run(finished), "warning", ".model_final.pth.7.tmp")
    only(check_run(tmp_path / "gone"), "error", "no such folder")
    (tmp_path / "empty").mkdir()
    assert "config.yaml" in told(check_run(tmp_path / "empty"), "error")[0]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ToolRunner:
    """The tool, in an environment that is well."""
    monkeypatch.setattr(doctor, "check_environment", lambda: [ok("python")])
    return ToolRunner("doctor", monkeypatch)


def test_the_tool_prints_marks_and_fixes(
    run: ToolRunner, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "== installation\n[ok]      python\n\n0 errors, 0 warnings, 1 ok\n"
    assert run(finished / "config.yaml", "SOLVER.BASE_LR", "0.0", "--quiet") == 2
    out = capsys.readouterr().out
    assert "[error]   SOLVER.BASE_LR is 0.0: nothing is learned\n          → set it above 0" in out
    assert "[ok]" not in out and out.splitlines()[-1].startswith("1 errors, 0 warnings")
    assert run("--run", finished) == 0
    assert f"== {finished}" in capsys.readouterr().out
    assert run(tmp_path / "gone.yaml") == 2
    assert "no such config file" in capsys.readouterr().out
    assert run(finished / "config.yaml", "SOLVER.BASE_LR") == 2
    assert "stands alone" in capsys.readouterr().out


def test_an_installation_that_does_not_import_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scenekd.doctor_config", None)
    only(doctor.check_config("any.yaml"), "error", "cannot be imported", "see the errors above")
