"""A video that is segmented: the rule of key frames, the learner, and tools/stream.py with it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fcn_parts import CLASSES, read, save_network, save_teacher, write_config
from PIL import Image
from tool_runner import ToolRunner

from envise.frame_learner import FrameAnswer, FrameLearner, _Loss
from envise.frame_report import FrameReport
from envise.key_frames import KeyFrames, mask_agreement
from envise.saved import WHOLE
from scenekd import checkpoint
from scenekd.config import get_cfg
from scenekd.data.images import read_image

SIZE, FRAMES = 64, 24
CONFIG = """
SYSTEM: envise
MODEL:
  DEVICE: cpu
  ENVISE: {{SEGMENTATION: {{CONFIG: "{student}", MIN_STRIDE: 4, MAX_STRIDE: 16, MAX_UPDATES: 2}}}}
TEACHER: {{SEGMENTATION: "scenekd://{teacher}"}}
SOLVER: {{OPTIMIZER: SGD, BASE_LR: 0.01, STEPS: [], WARMUP_ITERS: 0}}
ONLINE: {{CHECKPOINT_PERIOD: 3}}
"""
NODE = "MODEL.ENVISE.SEGMENTATION"


@pytest.fixture(scope="module")
def parts(tmp_path_factory, scenes) -> Path:
    """A folder with ``frames`` that slide over a drawn scene, two configurations of students, a teacher."""
    folder = tmp_path_factory.mktemp("video")
    image = read_image(str(sorted((scenes / "JPEGImages").iterdir())[0]))
    (folder / "frames").mkdir()
    for t in range(FRAMES):
        Image.fromarray(image[t : t + SIZE, 2 * t : 2 * t + SIZE]).save(folder / "frames" / f"{t:03d}.png")
    file = write_config(folder)
    save_teacher(file, folder / "teacher.pth")
    (folder / "stream.yaml").write_text(CONFIG.format(student=file, teacher=folder / "teacher.pth"))
    return folder


@pytest.fixture
def stream(parts, tmp_path, monkeypatch) -> Callable[..., int]:
    """``stream(…)``: the tool over the frames; its exit code."""
    tool = ToolRunner("stream", monkeypatch)
    config = parts / "stream.yaml"

    def run(*more: object, source: object = parts / "frames", output: str = "out") -> int:
        where = () if source is None else ("--source", source)
        return tool("--config-file", config, *where, "--output", tmp_path / output, *more)

    return run


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def _untimed(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "milliseconds"} for row in _rows(folder)]


def test_stride_doubles_and_halves():
    """From 8 within 8…64, key frames at multiples of the stride; the threshold itself is good enough."""
    keys = KeyFrames(0.8, 8, 64)
    assert keys.is_due(0)
    followed = []
    # 0 good: 16 · 16 good: 32 · 32 good: 64 · 64 good: stays 64 · 128 bad: 32 · 160 bad: 16 · 176 bad: 8 ·
    # 184 bad: stays 8 · 192 good: 16 · 208 cannot be read, 209 stands for it, good: 32, whose next multiple is 224
    said = (
        (0, 0.9),
        (16, 0.8),
        (32, 1.0),
        (64, 0.85),
        (128, 0.79),
        (160, 0.1),
        (176, 0.0),
        (184, 0.7),
        (192, 0.8),
    )
    for position, agreement in (*said, (209, 0.9)):
        assert keys.is_due(position) and (position == 0 or not keys.is_due(keys.next - 1))
        keys.passed(position, agreement)
        followed.append((keys.stride, keys.next))
    assert followed == [
        *((16, 16), (32, 32), (64, 64), (64, 128), (32, 160), (16, 176), (8, 184), (8, 192), (16, 208)),
        (32, 224),
    ]
    again = KeyFrames(0.8, 8, 64)
    again.load_state_dict(keys.state_dict())
    assert (again.stride, again.next, again.good) == (32, 224, True)


def test_agreement_by_hand():
    """Over the classes that the teacher names."""
    teacher = np.array([[0, 0, 1, 1], [0, 0, 2, 2]], np.uint8)
    student = np.array([[0, 1, 1, 1], [0, 0, 2, 1]], np.uint8)
    # Background: 3 of 4 · class 1: 2 of 2 + 4 − 2 = 4 · class 2: 1 of 2 + 1 − 1 = 2
    assert mask_agreement(student, teacher, 4, background=False) == pytest.approx((0.5 + 0.5) / 2)
    assert mask_agreement(student, teacher, 4, background=True) == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    # Class 3 stands on one pixel of class 2, and is itself none that the teacher names: class 2 has 0 of 2
    student[1, 2] = 3
    assert mask_agreement(student, teacher, 4, background=False) == pytest.approx((0.5 + 0) / 2)
    # Where the teacher sees background alone, that is the class: 6 of 8
    student = np.array([[0, 1, 1, 0], [0, 0, 0, 0]], np.uint8)
    assert mask_agreement(student, np.zeros_like(student), 4, background=False) == pytest.approx(0.75)


def test_loss_by_hand():
    """Objects weigh 5: ln 2 on background, ln 4/3 on the object; the KL is 0 where the teacher says the same."""
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, math.log(3)]]]])
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    cfg = get_cfg("envise")
    expected = (math.log(2) + 5 * math.log(4 / 3)) / 6
    assert float(_Loss(cfg, 5.0)(logits, logits, labels)) == pytest.approx(expected, rel=1e-6)
    cfg.ONLINE.CE_WEIGHT, cfg.ONLINE.KD_WEIGHT = 0.0, 1.0
    assert float(_Loss(cfg, 5.0)(logits, logits, labels)) == pytest.approx(0, abs=1e-6)


def test_report_by_hand():
    """Against masks: void does not count, nor do classes that occur nowhere. Time: against the teacher's median."""
    report = FrameReport(("background", "a", "b"))
    label = np.array([[0, 0, 1, 255]], np.uint8)
    report.judge(np.array([[0, 1, 1, 2]], np.uint8), label.clip(max=1), label)
    nothing = torch.zeros(0)
    report.add(FrameAnswer(nothing, True, 8, 0.3, teacher_seconds=0.2, updates=2, before=0.4, after=0.9))
    report.add(FrameAnswer(nothing, False, 8, 0.1))
    found = FrameReport(("background", "a", "b"))
    found.load_state_dict(report.state_dict())
    scores = found.summary()["labels"]
    # System: background 1 of 2, a 1 of 2; teacher: all right
    assert scores["system_mIoU"] == pytest.approx(50) and scores["teacher_mIoU"] == pytest.approx(100)
    # 0.3 + 0.1 seconds for two frames that the teacher takes 0.2 each for
    assert found.summary()["time"]["ratio"] == pytest.approx(1)
    told = found.summary()["stream"]
    assert (told["share_asked"], told["updates"]) == (50, 2)
    assert (told["agreement"], told["agreement_after"]) == (pytest.approx(40), pytest.approx(90))


def test_student_that_equals_its_teacher(parts, tmp_path, stream):
    """It is never updated, and the stride doubles to its bound: 0, 8 (of stride 8), 16, then every 16 frames."""
    save_network(read(parts / "tiny.yaml"), tmp_path / "same.pth")
    equal = ("TEACHER.SEGMENTATION", f"scenekd://{tmp_path / 'same.pth'}")
    assert stream(*equal, "MODEL.WEIGHTS", tmp_path / "same.pth") == 0
    rows = _rows(tmp_path / "out")
    assert [row["position"] for row in rows if row["asked"]] == [0, 8, 16]
    assert [row["stride"] for row in rows if row["asked"]] == [8, 16, 16]
    assert all(row["updates"] == 0 for row in rows)
    assert {row["agreement"] for row in rows if row["asked"]} == {1.0}
    before, after = (
        checkpoint.weights_of(checkpoint.read(path))
        for path in (tmp_path / "same.pth", tmp_path / "out/model_final.pth")
    )
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("statistics", ["kept", "frame"])
def test_folder_to_its_end(tmp_path, stream, capsys, statistics):
    """A student that learns: every frame has its line, and the numbers are those of the lines."""
    assert stream(f"{NODE}.STATISTICS", statistics, f"{NODE}.MAX_UPDATES", 6) == 0
    rows = _rows(tmp_path / "out")
    assert [row["position"] for row in rows] == list(range(FRAMES))
    assert [row["image"] for row in rows] == [f"{i:03d}.png" for i in range(FRAMES)]
    asked = [row for row in rows if row["asked"]]
    assert all((row["by"] == "teacher") == row["asked"] for row in rows)
    assert all(row["agreement"] is None and not row["updates"] for row in rows if not row["asked"])
    # Updates end where the student is good enough, else after six; the stride follows
    assert all(row["updates"] == 6 or row["agreement_after"] >= 0.8 for row in asked)
    assert all(not row["updates"] or row["agreement"] < 0.8 for row in asked)
    stride = 4
    for row in asked:
        stride = min(16, 2 * stride) if row["agreement_after"] >= 0.8 else max(4, stride // 2)
        assert row["stride"] == stride
    results = json.loads((tmp_path / "out/results.json").read_text())
    told = results["stream"]
    assert told["updates"] == sum(row["updates"] for row in rows) > 0
    assert told["share_asked"] == pytest.approx(100 * len(asked) / FRAMES)
    assert told["agreement"] == pytest.approx(100 * np.mean([row["agreement"] for row in asked]))
    assert told["agreement_after"] > told["agreement"]
    time = results["time"]
    assert time["milliseconds"] == pytest.approx(np.mean([row["milliseconds"] for row in rows]), abs=0.01)
    assert time["ratio"] == pytest.approx(time["milliseconds"] / time["teacher_milliseconds"])
    said = capsys.readouterr().out
    assert f"{FRAMES} samples" in said and "% of the teacher alone" in said and "the stream has ended" in said
    final = checkpoint.read(tmp_path / "out/model_final.pth")
    state = checkpoint.read(tmp_path / "out" / WHOLE)
    assert "fcn_kd" in final["config"]
    assert all(torch.equal(value, state["student"][name]) for name, value in final["model"].items())


def test_killed_and_resumed(tmp_path, stream, monkeypatch, capsys):
    """Killed in a key frame, with lines beyond the state: the rest is that of an uninterrupted run, to the bit."""
    assert stream(output="whole") == 0
    process, seen = FrameLearner.process, []

    def killed(self, frame, position):
        seen.append(position)
        if position == 16 and seen.count(16) == 1:
            raise MemoryError
        return process(self, frame, position)

    monkeypatch.setattr(FrameLearner, "process", killed)
    with pytest.raises(MemoryError):
        stream()
    assert len(_rows(tmp_path / "out")) == 16  # a state after every third: the last is of 15 frames
    with open(tmp_path / "out/answers.jsonl", "a") as file:
        file.write('{"position": 16, "image": "lost"}\n{"posit')
    assert stream() == 0
    assert "goes on at sample 15" in capsys.readouterr().out
    assert _untimed(tmp_path / "out") == _untimed(tmp_path / "whole")
    one, two = (checkpoint.read(tmp_path / name / WHOLE) for name in ("whole", "out"))
    assert one["step"] == two["step"] > 0
    assert all(torch.equal(value, two["student"][name]) for name, value in one["student"].items())
    momentum = [
        [slot["momentum_buffer"] for slot in state["optimizer"]["state"].values()] for state in (one, two)
    ]
    assert momentum[0] and all(torch.equal(a, b) for a, b in zip(*momentum))


def test_video_and_pictures(parts, tmp_path, stream):
    """Frames of a video; masks at their own size, with VOC's colours, of the answer; overlays likewise."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 48))
    for file in sorted((parts / "frames").iterdir())[:3]:
        writer.write(cv2.resize(cv2.imread(str(file)), (80, 48)))
    writer.release()
    for kind, folder in (("masks", "segmentation"), ("overlay", "overlay")):
        assert stream(f"{NODE}.PICTURES", kind, source=path, output=kind) == 0
        files = sorted((tmp_path / kind / folder).iterdir())
        assert [file.stem for file in files] == [f"film_{i:08d}" for i in range(3)]
        picture = Image.open(files[0])
        assert picture.size == (80, 48) and picture.mode == ("P" if kind == "masks" else "RGB")
    assert np.array(Image.open(tmp_path / "masks/segmentation/film_00000000.png")).max() <= len(CLASSES)


def test_labels_are_for_the_report(scenes, tmp_path, stream):
    """A data set's images in their order: system and teacher against its masks; the teacher on every frame where it is
    judged. With every frame a key frame the system is the teacher."""
    keys = ("DATASETS.ROOT", scenes, "DATASETS.TRAIN", "('voc_seg_train',)")
    assert stream(*keys, source=None, output="some") == 0
    told = json.loads((tmp_path / "some/results.json").read_text())["labels"]
    assert told["system_frames"] == told["teacher_frames"] == 12
    every = (f"{NODE}.MIN_STRIDE", 1, f"{NODE}.MAX_STRIDE", 1, f"{NODE}.MAX_UPDATES", 0)
    assert stream(*keys, *every, source=None, output="every") == 0
    all_asked = json.loads((tmp_path / "every/results.json").read_text())["labels"]
    assert all_asked["system_mIoU"] == all_asked["teacher_mIoU"] == told["teacher_mIoU"]
    assert stream(*keys, "ONLINE.JUDGE_TEACHER", False, source=None, output="unjudged") == 0
    asked = sum(row["asked"] for row in _rows(tmp_path / "unjudged"))
    unjudged = json.loads((tmp_path / "unjudged/results.json").read_text())["labels"]
    assert unjudged["teacher_frames"] == asked < 12
    assert unjudged["system_mIoU"] == told["system_mIoU"]
    assert _untimed(tmp_path / "unjudged") == _untimed(tmp_path / "some")


def test_student_of_kd_mtl(parts, tmp_path, stream):
    """The multi-task student learns its masks; its head of detection stays as it was."""
    quickstart = Path(__file__).parents[1] / "projects/kd_mtl/quickstart.yaml"
    file = tmp_path / "blitznet.yaml"
    file.write_text(f'_BASE_: "{quickstart}"\nMODEL: {{BLITZNET: {{TRUNK_WIDTH: 8}}}}\n')
    assert stream(f"{NODE}.CONFIG", file, "--max-samples", 3) == 0
    assert sum(row["updates"] for row in _rows(tmp_path / "out")) == 2
    final = checkpoint.read(tmp_path / "out/model_final.pth")["model"]
    assert stream(f"{NODE}.CONFIG", file, f"{NODE}.MAX_UPDATES", 0, "--max-samples", 3, output="fresh") == 0
    fresh = checkpoint.read(tmp_path / "fresh/model_final.pth")["model"]
    changed = {name.split(".")[0] for name, value in final.items() if not torch.equal(value, fresh[name])}
    assert "segmentation" in changed and "detection" not in changed


def test_video_needs_no_data_set(parts, tmp_path, stream):
    """A teacher that tells what it was trained on, and data sets of a configuration that are not at hand."""
    path = tmp_path / "told.pth"
    state = checkpoint.read(parts / "teacher.pth")
    torch.save(state | {"config": state["config"].replace("  TRAIN: []", "  TRAIN: [voc_seg_train]")}, path)
    assert "TRAIN: [voc_seg_train]" in checkpoint.read(path)["config"]
    absent = ("DATASETS.ROOT", tmp_path / "absent", "DATASETS.TEST", "('voc_seg_val',)")
    told = ("TEACHER.SEGMENTATION", f"scenekd://{path}", "DATASETS.TRAIN", "('voc_seg_train',)")
    assert stream(*absent, *told, "--max-samples", 2) == 0


def test_errors_of_a_user(parts, tmp_path, stream, monkeypatch, capsys):
    """Each is one line, and exit code 2."""
    voc = tmp_path / "voc.yaml"
    voc.write_text((parts / "tiny.yaml").read_text().replace(f"CLASSES: {CLASSES}", "CLASSES: ()"))
    classifier = tmp_path / "classifier.yaml"
    text = (parts / "tiny.yaml").read_text().split("  FCN_KD:")[0] + "  FCN_KD: {NETWORK: cifar_resnet20}\n"
    classifier.write_text(text)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(parts / "stream.yaml", empty / "note.txt")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no image")
    for number, (arguments, told) in enumerate(
        (
            ((f"{NODE}.CONFIG", voc), "TEACHER.SEGMENTATION.CLASS_MAP"),
            ((f"{NODE}.CONFIG", parts / "stream.yaml"), "SYSTEM is envise; take one of fcn_kd or kd_mtl"),
            ((f"{NODE}.CONFIG", classifier), "no network for segmentation"),
            ((f"{NODE}.CONFIG", tmp_path / "no.yaml"), "no such config file"),
            ((f"{NODE}.CONFIG", tmp_path / "no.pth"), "no such checkpoint"),
            ((f"{NODE}.THRESHOLD", 1.5), "THRESHOLD: 1.5 is no mean IoU"),
            ((f"{NODE}.MIN_STRIDE", 20), "MIN_STRIDE 20 and MAX_STRIDE 16"),
            ((f"{NODE}.STATISTICS", "none"), "STATISTICS: 'none'; choose kept, frame"),
            (("ONLINE.CE_WEIGHT", 0), "CE_WEIGHT and KD_WEIGHT"),
            (("TEACHER.SEGMENTATION.TYPE", ""), "TEACHER.SEGMENTATION.TYPE"),
            (("--packed", "on"), "--packed on: the student"),
            (("SOLVER.BASE_LR", 1e30, f"{NODE}.MAX_UPDATES", 8), "not finite, lower SOLVER.BASE_LR"),
        )
    ):
        capsys.readouterr()
        assert stream(*arguments, output=f"out{number}") == 2, told
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error
    for source, told in ((empty, "holds no image"), (bad, "holds no image that can be read")):
        assert stream(source=source, output=f"of_{source.name}") == 2
        assert told in capsys.readouterr().err
    tool = ToolRunner("train_net", monkeypatch)
    assert tool("--config-file", parts / "stream.yaml", "OUTPUT_DIR", tmp_path / "trained") == 2
    assert f"{NODE}.CONFIG: a video is segmented by tools/stream.py" in capsys.readouterr().err
