"""Asking teachers for a cache: in batches, for two tasks in one pass, cut off and gone on with; and scoring them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tool_runner import ToolRunner

from scenekd import checkpoint
from scenekd.engines.session import train_once
from scenekd.models import build_model
from scenekd.teachers import asking
from scenekd.teachers.asking import build_networks
from scenekd.teachers.cache import CacheStore
from scenekd.teachers.caching import cache_teacher, cache_teachers
from scenekd.teachers.more import asked_teachers
from scenekd.teachers.options import cache_folder
from scenekd.teachers.scenekd_teacher import SceneKDTeacher

TASKS = ("detection", "segmentation")


@pytest.fixture
def job(tiny_config, tmp_path):
    """``job(folder, *overrides)``: a configuration with one of our networks as the teacher of both tasks."""
    cfg = tiny_config("teacher")
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), tmp_path / "teacher.pth")
    pairs = [
        word for t in TASKS for word in (f"TEACHER.{t.upper()}", f"scenekd://{tmp_path / 'teacher.pth'}")
    ]
    return lambda folder, *more: tiny_config(folder, *pairs, *more)


def records_of(cfg, task):
    """Payload of every record by image id."""
    store = CacheStore(cache_folder(cfg, task))
    return {image_id: store.read(image_id)[1] for image_id in store.image_ids}


def test_one_pass_reads_each_image_once_and_asks_one_network_once(job, monkeypatch):
    """Both nodes describe the same network, which does both tasks."""
    read, asked = [], []
    read_image, predict = asking.read_image, SceneKDTeacher.predict

    def counting_read(record):
        read.append(record.image_id)
        return read_image(record)

    def counting_predict(self, images):
        asked.append(len(images))
        return predict(self, images)

    monkeypatch.setattr(asking, "read_image", counting_read)
    monkeypatch.setattr(SceneKDTeacher, "predict", counting_predict)
    both = job("both", "TEACHER.BATCH_SIZE", 5)
    reports = cache_teachers(both, TASKS)
    assert [(r.task, r.asked, r.found) for r in reports] == [("detection", 12, 0), ("segmentation", 12, 0)]
    assert len(read) == len(set(read)) == 12 and asked == [5, 5, 2]

    apart = job("apart", "TEACHER.BATCH_SIZE", 5)
    for task in TASKS:
        cache_teacher(apart, task)
        assert records_of(apart, task) == records_of(both, task)


def test_two_networks_where_the_nodes_differ(job):
    same = build_networks(asked_teachers(job("a"), TASKS))
    other = build_networks(asked_teachers(job("a", "TEACHER.DETECTION.MAX_BOXES", 5), TASKS))
    assert same[0] is same[1] and other[0] is not other[1]


def test_batches_change_nothing_beyond_rounding(job):
    one, five = job("one", "TEACHER.BATCH_SIZE", 1), job("five", "TEACHER.BATCH_SIZE", 5)
    for cfg in (one, five):
        cache_teachers(cfg, TASKS)
    boxes, dense = ([CacheStore(cache_folder(cfg, task)) for cfg in (one, five)] for task in TASKS)
    for image_id in boxes[0].image_ids:
        a, b = (store.get_detections(image_id) for store in boxes)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        a, b = (store.get_segmentation(image_id).values for store in dense)
        np.testing.assert_allclose(a, b, atol=0.55)  # one step of the codec, where rounding falls otherwise


@pytest.mark.parametrize("stop", [1, 7])
def test_a_cut_run_goes_on_to_the_same_bytes(job, stop):
    """An image is asked about in the same company, though only what is missing is written."""
    whole, cut = (job(name, "TEACHER.BATCH_SIZE", 5) for name in ("whole", "cut"))
    cache_teachers(whole, TASKS)

    def interrupt(done, total):
        assert total == 12
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_teachers(cut, TASKS, progress=interrupt)
    found = cache_teachers(cut, TASKS, resume=True)
    assert all(0 < report.found < 12 and report.asked + report.found == 12 for report in found)
    for task in TASKS:
        assert records_of(cut, task) == records_of(whole, task)


def test_one_task_may_be_further_than_the_other(job):
    cfg = job("run", "TEACHER.BATCH_SIZE", 4)
    cache_teacher(cfg, "detection")
    detection, segmentation = cache_teachers(cfg, TASKS)
    assert (detection.asked, detection.found) == (0, 12)
    assert (segmentation.asked, segmentation.found) == (12, 0)


def test_tool_scores_on_the_labels_that_are_left(job, tmp_path, monkeypatch, capsys):
    """Half of the masks are kept; the table is printed, and a file lies in each cache."""
    cfg = job("run")
    (tmp_path / "run.yaml").write_text(cfg.dump())
    tool = ToolRunner("cache_teacher", monkeypatch)
    assert tool("--config-file", tmp_path / "run.yaml", "--score") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["task", "detection", "segmentation"]
    for task, images in zip(TASKS, (12, 6)):
        saved = json.loads((cache_folder(cfg, task) / "teacher_scores.json").read_text())[task]
        assert saved["labelled"] == saved["images"] == images
        assert 0 <= saved["quality"] <= 100 and 0 <= saved["agreement"] <= 100
    # Again, for one task, from the finished cache.
    assert tool("--config-file", tmp_path / "run.yaml", "--score", "--task", "segmentation") == 0
    assert "0 images asked, 12 found" in capsys.readouterr().out


def test_a_run_scores_its_teachers_and_reports_them(job):
    """The table stands in the report of a run that learns from a teacher, of that teacher alone."""
    more = ("DISTILL.SEGMENTATION.POLICY", "fill_missing", "SOLVER.MAX_ITER", 1, "TEACHER.SCORE_IMAGES", 4)
    cfg = job("run", *more, "TEST.VISUALIZE", 0)
    cache_teachers(cfg, TASKS)
    train_once(0, 0, 1, cfg, "mmengine")
    folder = Path(cfg.OUTPUT_DIR)
    saved = json.loads((folder / "teacher_scores.json").read_text())
    assert list(saved) == ["segmentation"] and saved["segmentation"]["images"] == 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h2>Teachers</h2>" in page and "pixels without a class above background" in page
