"""The teacher cache: what is written is read; damage, kills and changes are noticed."""

import json
import os
import pickle
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from scenekd.data.catalog import Record
from scenekd.errors import UserError
from scenekd.sample import SoftSegmentation
from scenekd.teachers.cache import CacheStore, verify
from scenekd.teachers.cache_builder import CacheBuilder, encode_output, write_cache
from scenekd.teachers.images import image_state
from scenekd.teachers.manifest import Manifest, read_manifest
from scenekd.teachers.protocol import Detections, TeacherOutput
from scenekd.teachers.shards import pack_record, scan, shard_files, unpack_record

CLASSES = ("cat", "dog", "person")
TEACHER = {"type": "test", "name": "net", "weights_sha256": "0" * 64, "trained_on": [], "form": "logits"}


def make_manifest(task="detection", **changes):
    return Manifest(**({"task": task, "classes": CLASSES, "teacher": TEACHER, "max_boxes": 100} | changes))


def boxes_of(index):
    """Different boxes for every image, sorted by score."""
    n = index % 4
    rng = np.random.default_rng(index)
    return Detections.build(rng.uniform(0, 50, (n, 4)), rng.integers(0, 3, n), rng.uniform(0, 1, n))


def make_images(folder, count=6):
    records = []
    for i in range(count):
        path = folder / f"im{i}.png"
        cv2.imwrite(str(path), np.full((20, 30 + i, 3), i, np.uint8))
        records.append(Record(image_id=f"im{i}", file_name=str(path)))
    return records


def triples(records):
    return [(r.image_id, r.file_name, TeacherOutput(*boxes_of(i))) for i, r in enumerate(records)]


@pytest.fixture
def made(tmp_path):
    records = make_images(tmp_path)
    return records, write_cache(tmp_path / "cache", make_manifest(), triples(records))


def assert_holds_all(store, records):
    assert store.image_ids == sorted(r.image_id for r in records)
    for i, record in enumerate(records):
        for got, want in zip(store.get_detections(record.image_id), boxes_of(i)):
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)


def test_boxes_come_back_exactly(made):
    records, store = made
    assert_holds_all(store, records)
    assert "im0" in store and "im9" not in store
    assert store.info["name"] == "net"
    assert store.manifest.records["im3"].width == 33
    assert_holds_all(pickle.loads(pickle.dumps(store)), records)  # as a spawned worker receives it


def test_weak_boxes_and_too_many_are_left_out(tmp_path):
    record = make_images(tmp_path, 1)[0]
    detections = Detections.build(np.zeros((4, 4)), [0, 1, 2, 0], [0.2, 0.9, 0.5, 0.6])
    manifest = make_manifest(min_score=0.3, max_boxes=2)
    store = write_cache(
        tmp_path / "c", manifest, [(record.image_id, record.file_name, TeacherOutput(*detections))]
    )
    np.testing.assert_array_equal(store.get_detections("im0").scores, np.float32([0.9, 0.6]))


def test_dense_output_keeps_its_form(tmp_path):
    record = make_images(tmp_path, 1)[0]
    scores = np.zeros((4, 5, 6), np.float32)
    scores[2, 1:3, 2:5] = 0.7
    output = TeacherOutput(segmentation=SoftSegmentation(scores, "scores"))
    store = write_cache(tmp_path / "c", make_manifest("segmentation"), [("im0", record.file_name, output)])
    soft = store.get_segmentation("im0")
    assert soft.form == "scores"
    np.testing.assert_array_equal(soft.values, scores)
    with pytest.raises(ValueError, match="for segmentation, not detection"):
        store.get_detections("im0")


def test_flipped_byte_is_reported_with_its_image(made):
    """One flip in every third byte of a record in the middle: in its prefix, header and payload."""
    _, store = made
    shard, offset, length = store.manifest.records["im3"].location
    path = store.folder / shard
    clean = path.read_bytes()
    for position in range(offset, offset + length, 3):
        damaged = bytearray(clean)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        problems = verify(CacheStore(store.folder))
        assert len(problems) == 1 and "image im3 is damaged" in problems[0], position
        with pytest.raises(UserError, match="im3"):
            CacheStore(store.folder).get_detections("im3")


def test_flipped_manifest_byte_is_reported(made):
    _, store = made
    path = store.folder / "manifest.json"
    clean = path.read_bytes()
    for position in range(0, len(clean), 7):
        damaged = bytearray(clean)
        damaged[position] ^= 1
        if damaged[position : position + 1].isspace() and clean[position : position + 1].isspace():
            continue
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_manifest(store.folder)


def test_resume_after_a_cut_at_any_byte_loses_and_doubles_nothing(tmp_path):
    records = make_images(tmp_path, 3)
    whole = write_cache(tmp_path / "whole", make_manifest(), triples(records))
    data = shard_files(whole.folder)[0].read_bytes()
    ends = sorted(e.location.offset + e.location.length for e in whole.manifest.records.values())
    for cut in range(0, len(data) + 1, 5):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "shard-000-000.skd").write_bytes(data[:cut])
        with CacheBuilder(folder, make_manifest()) as builder:
            assert len(builder.done) == sum(end <= cut for end in ends), cut
        store = write_cache(folder, make_manifest(), triples(records))
        assert_holds_all(store, records)
        written = [header["image_id"] for path in shard_files(folder) for _, header in scan(path)]
        assert sorted(written) == ["im0", "im1", "im2"], cut


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_cache import *
records = [Record(image_id=f"im{{i}}", file_name={folder!r} + f"/im{{i}}.png") for i in range(6)]
def slowly():
    for i, triple in enumerate(triples(records)):
        print(i, flush=True)
        time.sleep(0.15)
        yield triple
write_cache({folder!r} + "/cache", make_manifest(), slowly())
"""


def test_killed_process_leaves_a_cache_that_goes_on(tmp_path):
    records = make_images(tmp_path)
    code = KILLED.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "3":
        pass
    with pytest.raises(UserError, match="another process is writing"):
        CacheBuilder(tmp_path / "cache", make_manifest())
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="not finished.*--resume"):
        CacheStore(tmp_path / "cache")
    with CacheBuilder(tmp_path / "cache", make_manifest()) as builder:
        assert sorted(builder.done) == ["im0", "im1", "im2"]
    assert_holds_all(write_cache(tmp_path / "cache", make_manifest(), triples(records)), records)


def test_damage_inside_a_shard_costs_that_record_only(made):
    """Resuming passes over the damaged record and finds the ones behind it."""
    records, store = made
    location = store.manifest.records["im2"].location
    path = store.folder / location.shard
    data = bytearray(path.read_bytes())
    data[location.offset + 5] ^= 255  # in the prefix: the record's length is no longer known
    path.write_bytes(data)
    with CacheBuilder(store.folder, make_manifest()) as builder:
        assert sorted(builder.done) == ["im0", "im1", "im3", "im4", "im5"]
    assert_holds_all(write_cache(store.folder, make_manifest(), triples(records)), records)


def test_two_processes_write_shards_of_their_own(tmp_path):
    records = make_images(tmp_path)
    manifest = make_manifest()
    with CacheBuilder(tmp_path / "cache", manifest) as builder:
        builder.begin()
        writers = [builder.writer(0), builder.writer(1)]
        for i, (image_id, file_name, output) in enumerate(triples(records)):
            writers[i % 2].write(*encode_output(output, manifest, image_id, image_state(file_name)))
        for writer in writers:
            writer.close()
        builder.finish([r.image_id for r in records])
    assert len(shard_files(tmp_path / "cache")) == 2
    assert_holds_all(CacheStore(tmp_path / "cache"), records)


def test_changed_image_is_refused_and_rebuilt(made):
    records, store = made
    store.check_images(records)
    os.utime(records[0].file_name, ns=(1, 1))  # only touched: the content counts
    store.check_images(records)
    cv2.imwrite(records[1].file_name, np.zeros((20, 31, 3), np.uint8))
    with pytest.raises(UserError, match=r"1 images have changed since \(first: im1\).*--resume"):
        store.check_images(records)
    assert ["im1 has changed" in line for line in verify(store, records)] == [True]
    with CacheBuilder(store.folder, make_manifest()) as builder:
        builder.forget_changed(records)
        assert "im1" not in builder.done and len(builder.done) == 5


def test_other_classes_task_or_teacher_are_refused(made):
    _, store = made
    with pytest.raises(UserError, match=r"other classes \(differing: cow, person\).*--rebuild"):
        CacheStore(store.folder, classes=("cat", "dog", "cow"))
    with pytest.raises(UserError, match="their order"):
        CacheStore(store.folder, classes=("dog", "cat", "person"))
    with pytest.raises(UserError, match="is for detection, not segmentation"):
        CacheStore(store.folder, task="segmentation")
    with pytest.raises(UserError, match="another teacher; run tools/cache_teacher.py --rebuild"):
        CacheBuilder(store.folder, make_manifest(teacher=TEACHER | {"weights_sha256": "1" * 64}))
    (store.folder / "manifest.json").unlink()  # the records know whose they are, too
    with pytest.raises(UserError, match="made by another teacher"):
        CacheBuilder(store.folder, make_manifest(max_boxes=7))
    with CacheBuilder(store.folder, make_manifest(max_boxes=7), rebuild=True) as builder:
        assert builder.done == {} and shard_files(store.folder) == []


def test_what_is_known_of_the_training_does_not_make_another_teacher(made):
    records, store = made
    told = make_manifest(teacher=TEACHER | {"trained_on": ["coco"], "source": {"weights": "moved.pth"}})
    again = write_cache(store.folder, told, triples(records))
    assert again.info["trained_on"] == ["coco"] and len(shard_files(store.folder)) == 1
    assert_holds_all(again, records)


def test_missing_folder_and_record(tmp_path, made):
    with pytest.raises(UserError, match="no teacher cache here; run tools/cache_teacher.py"):
        CacheStore(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds nothing for image im77"):
        made[1].get_detections("im77")


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "shard-000-000.skd/../x", "", 3])
def test_manifest_cannot_name_a_file_elsewhere(made, shard):
    """Even with a right checksum, which a stranger can compute."""
    from scenekd.teachers import manifest as module

    _, store = made
    path = store.folder / "manifest.json"
    body = json.loads(path.read_text())["manifest"]
    body["records"]["im0"][0] = shard
    path.write_text(json.dumps({"checksum": module._hash(body), "manifest": body}))
    with pytest.raises(UserError, match="damaged"):
        CacheStore(store.folder)


@pytest.mark.parametrize(
    "data",
    [
        {"boxes": 1 << 40},
        {"boxes": -1},
        {"boxes": 3},
        {},
        {"boxes": None},
    ],
)
def test_hostile_header_is_one_clear_error(tmp_path, made, data):
    """A record with a right checksum, whose header asks for more than its payload holds."""
    _, store = made
    entry = store.manifest.records["im1"]
    header, payload = store.read("im1")
    record = pack_record(header | {"data": data}, payload)
    (store.folder / "shard-009-000.skd").write_bytes(record)
    location = entry.location._replace(shard="shard-009-000.skd", offset=0, length=len(record))
    store.manifest.records["im1"] = type(entry)(location, *list(vars(entry).values())[1:])
    with pytest.raises(UserError, match="image im1 is damaged"):
        store.get_detections("im1")


def test_records_do_not_trust_lengths():
    record = pack_record({"a": 1}, b"payload")
    assert unpack_record(record) == ({"a": 1}, b"payload")
    for wrong in (record[:-1], record + b"x", b"", b"SKD1" + bytes(40)):
        with pytest.raises(ValueError):
            unpack_record(wrong)
