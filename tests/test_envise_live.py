"""The cascade on a live source: tools/stream.py, its log, view and state; and a student that answers by bits."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from envise_parts import NAMES, SIZE, ColourTeacher, build_run, colour_dataset, envise_config, finish
from PIL import Image
from tool_runner import ToolRunner

from envise import run as run_module
from envise.live import LiveLog, Status, live_source
from envise.live_cascade import LiveCascade
from envise.live_tasks import live_overrides
from envise.live_view import BlockView, LineView
from envise.online import OnlineDistiller
from envise.phases import ANSWER, LEARN
from envise.saved import WHOLE
from scenekd.errors import UserError

BINARY = {"DEVICE": "cpu", "ENVISE": {"NETWORK": "bireal_resnet20"}}
CONFIG = """
SYSTEM: envise
MODEL: {DEVICE: cpu, ENVISE: {NETWORK: plain_cnn}}
INPUT: {SIZE: 8}
SOLVER: {BASE_LR: 0.01, STEPS: [], WARMUP_ITERS: 2}
ONLINE: {BATCH_SIZE: 10, REPLAY_SIZE: 30, REPLAY_BATCH: 10, WINDOW: 40, WINDOWS: 1, CALIBRATION: 40}
STREAM: {PAIRS: cifar100, PAIR: zoo_street, SHIFTS: [{AT: 10, OUTLIER_SHARE: 0.1}]}
"""


class CountedTeacher(ColourTeacher):
    """With a 1 × 1 convolution of 3 to 256 channels, so that it has operations: 2 · 3 · 256 · 64 on 8 × 8 pixels."""

    answered, classes = tuple(range(len(NAMES))), NAMES
    flops = 2 * 3 * 256 * SIZE * SIZE
    head = None

    def features_and_logits(self, images):
        torch.nn.functional.conv2d(images, torch.zeros(256, 3, 1, 1))
        return super().features_and_logits(images)


@pytest.fixture
def frames(tmp_path) -> Path:
    """A folder of 160 images, each of one of the five colours."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, record in enumerate(colour_dataset(32).records):
        Image.fromarray(record.pixels).save(folder / f"{number:04d}.png")
    return folder


@pytest.fixture
def stream(tmp_path, monkeypatch) -> Callable[..., int]:
    """``stream(source, …)``: the tool with the colour teacher; its exit code."""
    made = (CountedTeacher(), NAMES)
    monkeypatch.setattr(run_module, "build_stream_teacher", lambda cfg, classes=(): made)
    config = tmp_path / "stream.yaml"
    config.write_text(CONFIG)
    tool = ToolRunner("stream", monkeypatch)
    return lambda source, *more, output="out": tool(
        "--config-file", config, "--source", source, "--output", tmp_path / output, *more
    )


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_folder_to_its_end(tmp_path, frames, stream, capsys):
    """Every image has its line, in order, whatever the prior of the configuration said; the numbers add up."""
    assert stream(frames) == 0
    rows = _rows(tmp_path / "out")
    assert [row["position"] for row in rows] == list(range(160))
    assert [row["image"] for row in rows] == [f"{i:04d}.png" for i in range(160)]
    assert all(row["name"] == NAMES[row["class"]] for row in rows)
    learnt = [row for row in rows if row["phase"] == LEARN]
    assert learnt and all(row["by"] == "teacher" and row["score"] is None for row in learnt)
    # The nearest colour is the true one, and image i has colour i mod 5.
    assert all(row["class"] == row["position"] % 5 for row in learnt)
    answered = [row for row in rows if row["phase"] == ANSWER]
    assert {row["by"] for row in answered} >= {"student"}
    assert all(row["teacher"] is None or isinstance(row["teacher"], int) for row in answered)
    gain = json.loads((tmp_path / "out" / "results.json").read_text())["gain"]
    asked = sum(row["teacher"] is not None for row in answered) / len(answered)
    assert gain["share_teacher"] == pytest.approx(asked)
    assert gain["GiE"] + gain["share_teacher"] + gain["cost_ratio"] == pytest.approx(1, abs=1e-9)
    said = capsys.readouterr().out
    assert "160 samples · answer · answered by student" in said
    assert "the stream has ended" in said


def test_goes_on(tmp_path, frames, stream, capsys):
    """In two parts, with lines that a kill left beyond the state, the log is that of one run."""
    assert stream(frames, output="whole") == 0
    assert stream(frames, "--max-samples", 50) == 0
    log = tmp_path / "out" / "answers.jsonl"
    assert len(_rows(tmp_path / "out")) == 50
    with open(log, "a") as file:
        file.write('{"position": 50, "image": "of a batch that was lost"}\n{"posit')
    assert stream(frames) == 0
    assert "goes on at sample 50" in capsys.readouterr().out
    assert log.read_text() == (tmp_path / "whole" / "answers.jsonl").read_text()


def test_interrupt(tmp_path, frames, stream, capsys, monkeypatch):
    """Ctrl-C within a batch: that batch is finished, logged and saved, and the next start goes on after it."""
    process, calls = OnlineDistiller.process, []

    def interrupted(self, batch):
        calls.append(len(batch))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return process(self, batch)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(OnlineDistiller, "process", interrupted)
    # States every 100 batches alone: the interrupt writes one all the same.
    assert stream(frames, "ONLINE.CHECKPOINT_PERIOD", 100) == 0
    assert "interrupted; the same command goes on at sample 30" in capsys.readouterr().out
    assert len(_rows(tmp_path / "out")) == 30
    assert signal.getsignal(signal.SIGINT) is before
    assert stream(frames) == 0
    assert [row["position"] for row in _rows(tmp_path / "out")] == list(range(160))


def test_weights(tmp_path, frames, stream):
    """A student of an earlier stream begins where that ended: its first answers agree with the teacher's."""
    assert stream(frames, output="first") == 0
    assert stream(frames, "--weights", tmp_path / "first" / WHOLE, "--max-samples", 10) == 0
    rows = _rows(tmp_path / "out")
    assert sum(row["student"] == row["teacher"] for row in rows) >= 9


def test_video(tmp_path, stream):
    """Frames of a video, one after the other."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (16, 16))
    for record in colour_dataset(4).records:
        writer.write(cv2.cvtColor(cv2.resize(record.pixels, (16, 16)), cv2.COLOR_RGB2BGR))
    writer.release()
    assert stream(path) == 0
    assert [row["image"] for row in _rows(tmp_path / "out")] == [f"film_{i:08d}" for i in range(20)]


def test_errors_of_a_user(tmp_path, frames, stream, capsys):
    """Each is one line, and exit code 2."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    stream(frames, "--max-samples", 10, output="other")
    for arguments, told in (
        (("nowhere",), "--source nowhere: no such folder or file"),
        ((tmp_path / "empty",), "holds no image"),
        ((tmp_path / "text.mp4",), "OpenCV cannot read it as a video"),
        ((tmp_path / "bad",), "holds no image that can be read"),
        (("97",), "camera:97: no such camera"),
        ((frames, "--max-samples", 0), "--max-samples: 0 must be at least 1"),
        ((frames, "--packed", "on"), "--packed on: nothing to pack"),
        ((frames, "--weights", tmp_path / "no.pth"), "no.pth: no such checkpoint"),
    ):
        capsys.readouterr()
        name = f"out_{len(told)}_{told[:5]}".replace(":", "")
        assert stream(*arguments, output=name) == 2, told
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error
    assert stream(tmp_path / "bad", output="other") == 2
    assert "give another --output" in capsys.readouterr().err


def test_source_of_a_command_line(tmp_path):
    """A camera by its number, what is there by its whole path; the prior goes, the source is taken whole."""
    assert live_source("0") == live_source("camera:0") == "camera:0"
    assert live_source(str(tmp_path)) == str(tmp_path.resolve())
    with pytest.raises(UserError, match="no such folder or file"):
        live_source("-1")
    assert live_overrides(None, None) == []
    assert live_overrides(None, 7) == ["STREAM.SAMPLES", "7"]
    own = live_overrides("2", None)
    assert dict(zip(own[::2], own[1::2])) == {
        "STREAM.SOURCE": "camera:2",
        "STREAM.PAIRS": "",
        "STREAM.SHIFTS": "()",
        "STREAM.SAMPLES": "0",
    }


def _task(folder: Path, packed: str, **online) -> LiveCascade:
    cfg = envise_config(MODEL=BINARY, ONLINE={"AGREEMENT": 0.3, **online}, STREAM={"SAMPLES": 160})
    run = build_run(cfg, folder, teacher=CountedTeacher())
    return LiveCascade(run, folder, SIZE, packed=packed, classes=NAMES)


def test_packed_answers_are_those_of_the_simulation(tmp_path):
    """Answers, scores, thresholds and later training are the same to the bit; the student is packed once it answers,
    and again after it has learned anew."""
    told, phases = {}, []
    for packed in ("on", "off"):
        task = _task(tmp_path / packed, packed, AUDIT_SHARE=0.5, AUDIT_WINDOW=5, AUDIT_AGREEMENT=1.0)
        rows = []
        while (some := task.advance()) is not None:
            rows += some
            if packed == "on":
                phases.append((some[0]["phase"], task.run.distiller.student.is_packed))
        told[packed] = rows, task.run.distiller.phases.changes, task.run.distiller.student.state_dict()
    assert told["on"][:2] == told["off"][:2]
    assert all(torch.equal(value, told["off"][2][name]) for name, value in told["on"][2].items())
    names = [phase for phase, _ in phases]
    assert ANSWER in names and LEARN in names[names.index(ANSWER) :]  # it learnt again
    assert all(is_packed == (phase != LEARN) for phase, is_packed in phases)


def test_operations_and_gain(tmp_path):
    """The teacher's are its convolution's; GiE counts from the first answer on."""
    task = _task(tmp_path, "off")
    assert task.gain() is None
    assert task._costs[1].flops == CountedTeacher.flops
    finish(task.run)
    gain = task.gain()
    answering = task.run.distiller.counts.summary()[ANSWER]
    assert gain.share_teacher == answering["asked"] / answering["samples"]
    assert gain.cost_ratio == pytest.approx(task._costs[0].ops / CountedTeacher.flops)


def test_packed_student_follows_its_weights(tmp_path):
    """Packed bits serve without gradients alone, and are dropped by training and by other weights."""
    student = _task(tmp_path, "off").run.distiller.student.eval()
    images = torch.rand(3, 3, SIZE, SIZE) * 255
    with torch.no_grad():
        features, logits = student.features_and_logits(images)
        student.pack()
        packed = student.features_and_logits(images)
        assert torch.equal(packed[0], features) and torch.equal(packed[1], logits)
        assert torch.equal(student(images), logits)
    assert student.features_and_logits(images)[1].requires_grad
    assert not any("packed" in name for name in student.state_dict())
    student.load_state_dict(student.state_dict())
    assert not student.is_packed
    student.pack()
    student.train()
    assert not student.is_packed


class _Standing:
    """A task that stands still."""

    position, phase = 40, LEARN

    def status(self):
        return Status(self.position, self.phase, (("to teacher", "100.0 %"), ("GiE", "not yet")))


def test_views():
    """On a terminal the block is written over from its first line; elsewhere a line for each phase and each while."""
    now = [0.0]
    task, block, lines = _Standing(), io.StringIO(), io.StringIO()
    on_terminal = BlockView(block, "cam", seconds=1, clock=lambda: now[0])
    elsewhere = LineView(lines, seconds=10, clock=lambda: now[0])
    for seconds, position, phase in ((0, 10, LEARN), (0.5, 20, LEARN), (2, 50, LEARN), (4, 90, ANSWER)):
        now[0], task.position, task.phase = seconds, position, phase
        on_terminal.update(task)
        elsewhere.update(task)
    elsewhere.finish(task)  # nothing new
    blocks = block.getvalue().split("\x1b[J")[:-1]
    assert len(blocks) == 3  # at 0, 2 and 4 seconds
    assert not blocks[0].startswith("\x1b[") and blocks[1].startswith("\x1b[3F")  # three lines up
    assert blocks[2].count("\n") == 3
    # 80 samples in 4 seconds
    assert "cam · 90 samples · answer · 20.0 samples/s" in blocks[2]
    assert lines.getvalue().splitlines() == [
        "10 samples · learn · to teacher 100.0 % · GiE not yet · … samples/s",
        "90 samples · answer · to teacher 100.0 % · GiE not yet · 20.0 samples/s",
    ]


def test_log_keeps_what_comes_before(tmp_path):
    """Whole lines of earlier samples stay; the first of a later one, and all after it, go."""
    with LiveLog(tmp_path, 0) as log:
        log.write([{"position": i, "x": "é"} for i in range(5)])
    with LiveLog(tmp_path, 3) as log:
        log.write([{"position": 3, "x": "new"}])
    assert [(row["position"], row["x"]) for row in _rows(tmp_path)] == [
        *((i, "é") for i in range(3)),
        (3, "new"),
    ]
