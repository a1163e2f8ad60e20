"""tools/cache_teacher.py: fills, goes on, spreads over processes, verifies; errors are one line and code
2."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scenekd import checkpoint
from scenekd.errors import run_cli
from scenekd.models import build_model
from scenekd.teachers.build import build_teacher
from scenekd.teachers.cache import CacheStore
from scenekd.teachers.shards import scan, shard_files

TOOL = Path(__file__).parent.parent / "tools" / "cache_teacher.py"


@pytest.fixture
def job(tiny_config, scenes, tmp_path):
    """Arguments of the tool, with a teacher of ours for both tasks and a copy of the scenes."""
    root = tmp_path / "voc"
    shutil.copytree(scenes, root)
    cfg = tiny_config("teacher")
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), tmp_path / "teacher.pth")
    pairs = [
        "OUTPUT_DIR",
        str(tmp_path / "run"),
        "DATASETS.ROOT",
        str(root),
        "TEACHER.DETECTION.MAX_BOXES",
        "20",
    ]
    for task in ("DETECTION", "SEGMENTATION"):
        pairs += [f"TEACHER.{task}.TYPE", "scenekd", f"TEACHER.{task}.WEIGHTS", str(tmp_path / "teacher.pth")]
    return ["--config-file", str(tmp_path / "tiny.yaml"), *pairs]


def run(arguments, capsys=None):
    """(exit code, stdout, error line) of the tool, in this process."""
    argv, sys.argv = sys.argv, [str(TOOL), *arguments]
    try:
        run_cli(runpy.run_path(str(TOOL))["main"])
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = argv
    out = capsys.readouterr()
    errors = [line for line in out.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0) and "Traceback" not in out.err
    return code, out.out, "".join(errors)


def folder(tmp_path, task="segmentation"):
    return tmp_path / "run" / "teacher_cache" / task


def image_files(tmp_path):
    return sorted((tmp_path / "voc").rglob("JPEGImages/*"))


def test_both_tasks_are_cached_and_verified(job, tmp_path, capsys, tiny_config):
    code, out, _ = run(job, capsys)
    assert code == 0
    assert "detection: 12 images asked, 0 found" in out
    assert "segmentation: 12 images asked, 0 found" in out and "argmax 100.00 %, worst" in out
    dense, boxes = CacheStore(folder(tmp_path)), CacheStore(folder(tmp_path, "detection"))
    assert len(dense) == len(boxes) == 12 and dense.info["trained_on"] == ["voc_seg_train"]

    from scenekd.data.images import read_image

    cfg = tiny_config("x", *job[2:])
    image_id = dense.image_ids[0]
    file = next(f for f in image_files(tmp_path) if f.stem == image_id)
    output = build_teacher(cfg, "detection").predict([read_image(str(file))])[0]
    want = output.detections.keep(0.0, 20)
    for got, expected in zip(boxes.get_detections(image_id), want):
        np.testing.assert_array_equal(got, expected)
    soft = dense.get_segmentation(image_id)
    np.testing.assert_array_equal(soft.values.argmax(0), output.segmentation.values.argmax(0))

    code, out, _ = run([*job, "--verify"], capsys)
    assert code == 0 and out.count("12 records of kd_mtl") == 2
    code, out, _ = run([*job, "TEACHER.SEGMENTATION.SPARSE", "True", "--verify"], capsys)
    assert code == 0 and out.count("12 records of kd_mtl") == 2  # what is saved is dense all the same
    code, out, _ = run(job, capsys)  # a second time there is nothing to do
    assert code == 0 and "segmentation: 0 images asked, 12 found" in out


def test_verify_names_the_image_of_a_flipped_byte(job, tmp_path, capsys):
    job = [*job, "--task", "segmentation"]
    run(job, capsys)
    entry = CacheStore(folder(tmp_path)).manifest.records
    image_id, location = sorted(entry.items())[5][0], sorted(entry.items())[5][1].location
    path = folder(tmp_path) / location.shard
    data = bytearray(path.read_bytes())
    data[location.offset + location.length // 2] ^= 4
    path.write_bytes(data)
    code, out, err = run([*job, "--verify"], capsys)
    assert code == 2 and f"image {image_id} is damaged" in out
    assert "1 problems; run again with --resume to mend them" in err
    code, _, err = run(job, capsys)
    assert code == 2 and "holds 11 of 12 images; add --resume to go on, or --rebuild" in err
    code, out, _ = run([*job, "--resume"], capsys)
    assert code == 0 and "1 images asked, 11 found" in out
    assert run([*job, "--verify"], capsys)[0] == 0


def test_changed_image_is_reported_and_asked_again(job, tmp_path, capsys):
    job = [*job, "--task", "detection"]
    run(job, capsys)
    store = CacheStore(folder(tmp_path, "detection"))
    first, second = (next(f for f in image_files(tmp_path) if f.stem == i) for i in store.image_ids[:2])
    shutil.copyfile(second, first)
    code, out, _ = run([*job, "--verify"], capsys)
    assert code == 2 and f"image {store.image_ids[0]} has changed since it was cached" in out
    code, out, _ = run([*job, "--resume"], capsys)
    assert code == 0 and "1 images asked, 11 found" in out
    assert run([*job, "--verify"], capsys)[0] == 0
    store = CacheStore(folder(tmp_path, "detection"))
    for a, b in zip(*(store.get_detections(i) for i in store.image_ids[:2])):
        np.testing.assert_array_equal(a, b)


def test_other_teacher_is_refused_in_one_line(job, tmp_path, capsys, tiny_config):
    job = [*job, "--task", "detection"]
    run(job, capsys)
    cfg = tiny_config("teacher", "SEED", "5")
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), tmp_path / "teacher.pth")
    code, _, err = run([*job, "--resume"], capsys)
    assert code == 2
    assert "made with another teacher; run tools/cache_teacher.py --rebuild" in err
    code, _, err = run([*job, "--verify"], capsys)
    assert code == 2 and "another teacher's (file_sha256" in err
    code, out, _ = run([*job, "--rebuild"], capsys)
    assert code == 0 and "12 images asked, 0 found" in out


def test_bad_image_is_an_error_or_skipped(job, tmp_path, capsys):
    job = [*job, "--task", "detection"]
    train = (tmp_path / "voc").rglob("ImageSets/Segmentation/train.txt")
    image_id = next(train).read_text().split()[3]
    file = next(f for f in image_files(tmp_path) if f.stem == image_id)
    file.write_bytes(file.read_bytes()[:400])
    code, _, err = run(job, capsys)
    assert code == 2 and file.name in err
    code, out, _ = run([*job, "--resume", "DATASETS.ON_ERROR", "skip"], capsys)
    assert code == 0 and "1 skipped" in out and len(CacheStore(folder(tmp_path, "detection"))) == 11


def test_nothing_to_ask(tiny_config, tmp_path, capsys):
    tiny_config("x")
    code, _, err = run(["--config-file", str(tmp_path / "tiny.yaml")], capsys)
    assert code == 2 and "no teacher to ask; set TEACHER.DETECTION.TYPE" in err
    code, _, err = run(["--config-file", str(tmp_path / "none.yaml")], capsys)
    assert code == 2 and "none.yaml: no such config file" in err


def contents(path):
    store = CacheStore(path)
    return {image_id: store.get(image_id).values for image_id in store.image_ids}


@pytest.mark.slow
def test_kill_and_several_processes_give_the_same_cache(job, tmp_path, capsys):
    """A killed run that is finished by two processes equals an unbroken one; nothing is doubled."""
    job = [*job, "--task", "segmentation"]
    assert run(job, capsys)[0] == 0
    whole = contents(folder(tmp_path))
    shutil.rmtree(folder(tmp_path))

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(TOOL), *job], env=environment, stderr=subprocess.DEVNULL)
    found = 0
    while found < 3 and process.poll() is None:
        found = sum(1 for path in shard_files(folder(tmp_path)) for _ in scan(path))
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, out, err = run([*job, "--resume", "--num-gpus", "2"], capsys)
    assert code == 0, err
    for image_id, values in contents(folder(tmp_path)).items():
        # Another process may round the network's sums otherwise: at most one step apart.
        np.testing.assert_allclose(values, whole.pop(image_id), atol=0.55)
    assert not whole
    written = [header["image_id"] for path in shard_files(folder(tmp_path)) for _, header in scan(path)]
    assert len(written) == len(set(written)) == 12


@pytest.mark.slow
def test_error_in_a_process_is_one_line(job, tmp_path, capsys):
    for file in image_files(tmp_path):
        file.write_bytes(b"no image")
    code, _, err = run([*job, "--task", "detection", "--num-gpus", "2"], capsys)
    assert code == 2 and "not an image" in err
