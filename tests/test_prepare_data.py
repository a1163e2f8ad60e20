"""tools/prepare_data.py: the command line, SBD in VOC's layout, and what the checks report."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from scenekd.data import sbd
from scenekd.data.catalog import load_dataset
from scenekd.data.images import voc_palette
from scenekd.data.sbd import find_sbd_folder, prepare_sbd, read_sbd_mask
from scenekd.errors import BadRecordError, UserError, run_cli

TOOL = Path(__file__).parents[1] / "tools" / "prepare_data.py"
HEIGHT, WIDTH = 20, 30


def run_tool(monkeypatch, *words) -> int:
    """Run the tool in this process as its command line would; return the exit code."""
    spec = importlib.util.spec_from_file_location("prepare_data", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
    try:
        run_cli(module.main)
    except SystemExit as stop:
        return int(stop.code)
    return 0


def write_ids(path: Path, ids: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{i}\n" for i in ids))


def write_png(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette().ravel().tolist())
    picture.save(path)


def write_mat(path: Path, mask: np.ndarray) -> None:
    """As SBD's own: a struct with more than the mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    others = {"Boundaries": np.zeros((20, 1)), "CategoriesPresent": np.unique(mask)}
    savemat(path, {"GTcls": {"Segmentation": mask, **others}}, do_compression=True)


def mask_of(value: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:9, 4:20] = value
    return mask


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """(SBD, VOC). VOC segments a, b, v, w (v, w: val); SBD lists b, c, d, v, x; d has no .mat, x no image."""
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    release = tmp_path / "benchmark_RELEASE"
    for image_id in "abcdvw":
        (voc / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(voc / "JPEGImages" / f"{image_id}.jpg")
    for image_id in "abvw":
        write_png(voc / "SegmentationClass" / f"{image_id}.png", mask_of(1))
    write_ids(voc / "ImageSets/Segmentation/train.txt", "ab")
    write_ids(voc / "ImageSets/Segmentation/val.txt", "vw")
    write_ids(voc / "ImageSets/Main/trainval.txt", "abcdw")
    write_ids(release / "dataset/train.txt", "bcv")
    write_ids(release / "dataset/val.txt", "dx")
    for image_id in "bcvx":
        write_mat(release / "dataset/cls" / f"{image_id}.mat", mask_of(2))
    return release, voc


def read(voc: Path, image_id: str) -> np.ndarray:
    with Image.open(voc / "SegmentationClassAug" / f"{image_id}.png") as mask:
        assert mask.mode == "P"
        return np.array(mask)


def test_sbd_prefers_voc_then_sbd_then_void(folders):
    release, voc = folders
    done = prepare_sbd(release, voc.parent, progress=False)
    for image_id in "abvw":
        np.testing.assert_array_equal(read(voc, image_id), mask_of(1))
    np.testing.assert_array_equal(read(voc, "c"), mask_of(2))
    np.testing.assert_array_equal(read(voc, "d"), np.full((HEIGHT, WIDTH), 255))
    assert sorted(os.listdir(voc / "SegmentationClassAug")) == [f"{i}.png" for i in "abcdvw"]
    assert (done.from_voc, done.from_sbd, done.void, done.written) == (4, 1, 1, 6)
    assert done.without_image == 1
    # {a, b} ∪ {b, c, v, d, x} without val {v, w} and without x, which has no picture.
    lists = voc / "ImageSets/Segmentation"
    assert (lists / "train_aug.txt").read_text().split() == list("abcd")
    assert (lists / "trainval_aug.txt").read_text().split() == list("abcdvw")
    assert (done.train_aug, done.trainval_aug) == (4, 6)


def test_the_catalog_reads_what_sbd_made(folders):
    release, voc = folders
    prepare_sbd(release, voc, progress=False)
    dataset = load_dataset("voc_aug_train", root=str(voc))
    assert dataset.image_ids == list("abcd")
    assert set(np.unique(dataset.read_sem_seg(dataset.records[2]))) == {0, 2}


def test_an_ended_run_goes_on_where_it_stopped(folders, monkeypatch):
    release, voc = folders
    real, calls = sbd.write_mask, []

    def dying(path, mask):
        calls.append(path)
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sbd, "write_mask", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare_sbd(release, voc, progress=False)
    assert sorted(os.listdir(voc / "SegmentationClassAug")) == ["a.png", "b.png"]
    monkeypatch.setattr(sbd, "write_mask", real)
    before = (voc / "SegmentationClassAug/a.png").stat().st_mtime_ns
    assert prepare_sbd(release, voc, progress=False).written == 4
    assert (voc / "SegmentationClassAug/a.png").stat().st_mtime_ns == before
    assert prepare_sbd(release, voc, progress=False).written == 0


def test_a_void_mask_is_made_again_once_there_is_a_source(folders):
    release, voc = folders
    prepare_sbd(release, voc, progress=False)
    write_mat(release / "dataset/cls/d.mat", mask_of(7))
    assert prepare_sbd(release, voc, progress=False).written == 1
    np.testing.assert_array_equal(read(voc, "d"), mask_of(7))


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_sbd_is_found_from_its_inner_folders(folders, inside):
    release, _ = folders
    assert find_sbd_folder(release / inside) == find_sbd_folder(release.parent) == release / "dataset"


def test_damaged_mat_files_are_one_line_errors(folders, tmp_path):
    release, voc = folders
    path = release / "dataset/cls/c.mat"
    whole = path.read_bytes()
    for content in (b"", b"not a mat file", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BadRecordError, match="c.mat"):
            read_sbd_mask(path)
    savemat(path, {"GTinst": np.zeros((3, 3))})
    with pytest.raises(BadRecordError, match="GTcls"):
        read_sbd_mask(path)
    write_mat(path, mask_of(21))
    with pytest.raises(BadRecordError, match="0…20"):
        read_sbd_mask(path)
    write_mat(path, np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    with pytest.raises(BadRecordError, match="31×20, its image 30×20"):
        prepare_sbd(release, voc, progress=False)
    with pytest.raises(BadRecordError, match="no such file"):
        read_sbd_mask(tmp_path / "none.mat")


def test_sbd_command(folders, monkeypatch, capsys):
    release, voc = folders
    assert run_tool(monkeypatch, "sbd", "--sbd", release, "--voc", voc.parent, "--report") == 0
    printed = capsys.readouterr().out
    assert "4 masks of VOC, 1 of SBD, 1 void" in printed
    # Detection: none of the four training images has an annotation. Segmentation: all have a mask.
    rows = [line.split() for line in printed.splitlines()]
    assert ["detection", "0", "4", "100.0"] in rows
    assert ["segmentation", "4", "0", "0.0"] in rows
    assert run_tool(monkeypatch, "sbd", "--sbd", voc, "--voc", voc) == 2
    message = capsys.readouterr().err
    assert "looked for cls/" in message and "--sbd" in message and message.count("\n") == 1


def test_voc_that_is_not_there(tmp_path, monkeypatch, capsys):
    """One line that speaks of the tool's own option."""
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "--root: no such folder"), ("empty", "looked for ImageSets")):
        assert run_tool(monkeypatch, "voc", "--root", tmp_path / folder) == 2
        error = capsys.readouterr().err
        assert message in error and "set --root" in error and "DATASETS" not in error
        assert error.count("\n") == 1


def test_voc_command_counts_what_is_missing_and_writes_the_list(folders, monkeypatch, capsys):
    _, voc = folders
    before = sorted(voc.rglob("*"))
    # Main/trainval names five ids, none of which has an XML.
    assert run_tool(monkeypatch, "voc", "--root", voc.parent) == 2
    printed = capsys.readouterr()
    assert ["Main/trainval", "5", "0", "5", "2"] in [line.split() for line in printed.out.splitlines()]
    assert "5 listed files are missing" in printed.err and "a.xml" in printed.err
    assert sorted(voc.rglob("*")) == before
    (voc / "Annotations").mkdir()
    for image_id in "abcdw":
        (voc / "Annotations" / f"{image_id}.xml").write_text("<annotation></annotation>")
    assert run_tool(monkeypatch, "voc", "--root", voc.parent, "--lists") == 0
    # {a, b, c, d, w} without segmentation's val {v, w}
    made = load_dataset("voc_main_trainval_minus_seg_val", root=str(voc))
    assert made.image_ids == list("abcd")


def test_voc_report_is_table_7(folders, monkeypatch, capsys):
    _, voc = folders
    (voc / "Annotations").mkdir()
    for image_id in "abcdw":
        (voc / "Annotations" / f"{image_id}.xml").write_text("<annotation></annotation>")
    assert run_tool(monkeypatch, "voc", "--root", voc, "--report", "voc_main_trainval") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Five images: all have boxes, a, b and w a mask.
    assert ["detection", "5", "0", "0.0"] in rows
    assert ["segmentation", "3", "2", "40.0"] in rows


def test_unknown_layouts_say_where_they_looked(tmp_path, monkeypatch, capsys):
    for words in (("voc", "--root", tmp_path), ("coco", "--root", tmp_path)):
        assert run_tool(monkeypatch, *words) == 2
        message = capsys.readouterr().err
        assert str(tmp_path) in message and "--root" in message and "http" in message
        assert message.count("\n") == 1


def test_coco_command_counts_missing_pictures(tmp_path, monkeypatch, capsys):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (1, 2)]
    box = {"id": 1, "image_id": 1, "category_id": 18, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}
    content = {"images": images, "annotations": [box], "categories": [{"id": 18, "name": "dog"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    (tmp_path / "annotations/captions_val2017.json").write_text("{}")
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "val2017/1.jpg")
    assert run_tool(monkeypatch, "coco", "--root", tmp_path) == 2
    printed = capsys.readouterr()
    assert "instances_val2017.json: 2 images, 1 without a file, 1 boxes, 1 classes" in printed.out
    assert "1 listed files are missing" in printed.err and "2.jpg" in printed.err
    Image.new("RGB", (30, 20)).save(tmp_path / "val2017/2.jpg")
    assert run_tool(monkeypatch, "coco", "--root", tmp_path) == 0


def test_scenes_command(tmp_path, monkeypatch, capsys):
    words = (
        "scenes",
        "--root",
        tmp_path / "set",
        "--split",
        "train=3",
        "--split",
        "val=2",
        "--size",
        "96x96",
    )
    assert run_tool(monkeypatch, *words, "--report") == 0
    printed = capsys.readouterr().out
    assert "voc_seg_train: 3 images" in printed and "voc_seg_val: 2 images" in printed
    assert ["segmentation", "2", "0", "0.0"] in [line.split() for line in printed.splitlines()]
    assert Image.open(tmp_path / "set/JPEGImages/val_000001.jpg").size == (96, 96)
    assert run_tool(monkeypatch, *words) == 0
    assert "there already" in capsys.readouterr().out
    assert run_tool(monkeypatch, *words, "--seed", "1") == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--split", "train"), ("--split", "train=x"), ("--size", "128")])
def test_malformed_options_name_the_form(tmp_path, monkeypatch, capsys, words):
    assert run_tool(monkeypatch, "scenes", "--root", tmp_path / "set", *words) == 2
    assert "for example" in capsys.readouterr().err


def test_a_missing_list_of_sbd_is_named(folders):
    release, voc = folders
    (release / "dataset/val.txt").unlink()
    with pytest.raises(UserError, match="val.txt: SBD's list is missing"):
        prepare_sbd(release, voc, progress=False)


@pytest.mark.skipif("SCENEKD_TEST_DATA" not in os.environ, reason="needs SCENEKD_TEST_DATA")
def test_real_folders_are_complete(monkeypatch, capsys):
    data = Path(os.environ["SCENEKD_TEST_DATA"])
    assert run_tool(monkeypatch, "voc", "--root", data / "voc_mini" / "VOCdevkit") == 0
    assert ["Segmentation/val", "110", "0", "0", "0"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]
    assert run_tool(monkeypatch, "coco", "--root", data / "coco_mini") == 0
    assert "120 images, 0 without a file, 1144 boxes" in capsys.readouterr().out
