"""VOC by name: folders, lists, annotations, masks, and what a bad file says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from voc_folder import add_image, add_list, annotation, make_voc

from scenekd.data.catalog import load_dataset
from scenekd.data.images import read_image, voc_palette
from scenekd.data.voc import VOC_CLASSES, load_voc
from scenekd.errors import BadRecordError, UserError

REAL = os.environ.get("SCENEKD_TEST_DATA", "")
needs_data = pytest.mark.skipif(not REAL, reason="SCENEKD_TEST_DATA is not set")


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("", "voc_seg_train"),
        ("VOCdevkit", "voc_seg_train"),
        ("VOCdevkit/VOC2012", "voc2012_seg_train"),
        ("", "voc2012_seg_train"),
        ("VOCdevkit/VOC2007", "voc2012_seg_train"),  # another year's folder names its sibling
    ],
)
def test_every_kind_of_root_is_found(tmp_path: Path, root: str, name: str) -> None:
    make_voc(tmp_path / "VOCdevkit" / "VOC2012")
    make_voc(tmp_path / "VOCdevkit" / "VOC2007", count=2)
    assert load_voc(name, str(tmp_path / root)).image_ids == ["a0", "a1", "a2", "a3"]


def test_the_year_selects_the_folder(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC2012")
    make_voc(tmp_path / "VOC2007", count=2)
    assert len(load_voc("voc2007_seg_train", str(tmp_path))) == 2
    assert len(load_voc("voc_seg_train", str(tmp_path))) == 4


def test_a_year_that_is_not_there_says_where_it_looked(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC2012")
    with pytest.raises(UserError, match=r"VOC2007.*DATASETS\.ROOT"):
        load_voc("voc2007_seg_train", str(tmp_path))


def test_any_list_works_by_its_name_and_a_missing_one_names_the_others(tmp_path: Path) -> None:
    make_voc(tmp_path)
    add_list(tmp_path, "Segmentation", "every_other-1", ["a0", "a2"])
    assert load_voc("voc_seg_every_other-1", str(tmp_path)).image_ids == ["a0", "a2"]
    with pytest.raises(UserError, match="every_other-1, train"):
        load_voc("voc_seg_val", str(tmp_path))


def test_an_empty_list_is_an_error(tmp_path: Path) -> None:
    make_voc(tmp_path)
    add_list(tmp_path, "Segmentation", "train", [])
    with pytest.raises(UserError, match="train.txt: the list is empty"):
        load_voc("voc_seg_train", str(tmp_path))


def test_class_lists_leave_out_images_that_lack_the_class(tmp_path: Path) -> None:
    make_voc(tmp_path)
    add_list(tmp_path, "Main", "cat_train", ["a0  1", "a1 -1", "a2  0"])
    assert load_voc("voc_main_cat_train", str(tmp_path)).image_ids == ["a0", "a2"]


def test_boxes_become_zero_based_and_keep_fractions(tmp_path: Path) -> None:
    make_voc(tmp_path, count=1)
    add_image(tmp_path, "a0", annotation([("cat", (20, 10, 50, 30)), ("dog", (1.5, 1, 60, 40))]))
    record = load_voc("voc_main_train", str(_with_main(tmp_path))).records[0]
    # 1 is taken from xmin and ymin only: pixels 20…50 (1-based, inclusive) cover 19…50 of the continuous axis
    np.testing.assert_array_equal(record.boxes, np.float32([[19, 9, 50, 30], [0.5, 0, 60, 40]]))
    assert [VOC_CLASSES[label] for label in record.labels] == ["cat", "dog"]
    assert record.boxes.dtype == np.float32
    assert record.labels.dtype == np.int64


def _with_main(folder: Path) -> Path:
    add_list(folder, "Main", "train", ["a0"])
    return folder


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    """VOC's person layout lists heads and hands inside an object, each with a name and a box of its own."""
    make_voc(tmp_path, count=1)
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    xml = annotation([("person", (20, 10, 50, 30))])
    add_image(
        tmp_path, "a0", xml.replace("<object>", f"<object>{part}").replace("</object>", f"{part}</object>")
    )
    record = load_voc("voc_main_train", str(_with_main(tmp_path))).records[0]
    np.testing.assert_array_equal(record.boxes, np.float32([[19, 9, 50, 30]]))
    assert [VOC_CLASSES[label] for label in record.labels] == ["person"]


def test_boxes_over_the_border_are_clipped_and_counted(tmp_path: Path) -> None:
    make_voc(tmp_path, count=1)
    add_image(tmp_path, "a0", annotation([("cat", (-3, 0, 70, 41)), ("cat", (1, 1, 60, 40))]))
    dataset = load_voc("voc_main_train", str(_with_main(tmp_path)))
    np.testing.assert_array_equal(dataset.records[0].boxes, np.float32([[0, 0, 60, 40], [0, 0, 60, 40]]))
    assert dataset.clipped == 1


def test_a_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    make_voc(tmp_path, count=1)
    add_image(tmp_path, "a0", annotation([("cat", (5, 5, 500, 500))], size=None), size=(30, 50))
    record = load_voc("voc_main_train", str(_with_main(tmp_path))).records[0]
    np.testing.assert_array_equal(record.boxes, np.float32([[4, 4, 50, 30]]))


def test_an_annotation_without_objects_is_labelled_and_a_missing_one_is_not(tmp_path: Path) -> None:
    add_image(tmp_path, "empty", annotation([]))
    add_image(tmp_path, "unlabelled")
    add_list(tmp_path, "Main", "train", ["empty", "unlabelled"])
    empty, unlabelled = load_voc("voc_main_train", str(tmp_path)).records
    assert empty.has_boxes
    assert empty.boxes.shape == (0, 4)
    assert not unlabelled.has_boxes
    assert not empty.has_sem_seg


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (
            annotation([("cat", (50, 10, 20, 30))]),
            r"a0\.xml: box \[50.0, 10.0, 20.0, 30.0\] is empty, inverted",
        ),
        (annotation([("cat", (20, 100, 50, 130))]), "outside the 60×40 image"),
        (
            annotation([("unicorn", (20, 10, 50, 30))]),
            r"a0\.xml: class 'unicorn' is not in DATASETS\.CLASSES",
        ),
        (annotation([("cat", (20, 10, 50, "x"))]), r"a0\.xml: <ymax> holds 'x'"),
        (annotation([("cat", (20, 10, 50, "nan"))]), r"a0\.xml: <ymax> holds 'nan'"),
        ("<annotation><object><name>cat</name></object></annotation>", r"a0\.xml: <xmin> holds None"),
        ("<annotation>", r"a0\.xml: not a valid annotation"),
        (
            '<!DOCTYPE a [<!ENTITY b "c">]><annotation><folder>&b;</folder></annotation>',
            r"a0\.xml: not a valid annotation",
        ),
    ],
)
def test_bad_annotations_are_one_line_or_a_counted_skip(tmp_path: Path, xml: str, message: str) -> None:
    make_voc(tmp_path)
    (tmp_path / "Annotations" / "a0.xml").write_text(xml)
    with pytest.raises(BadRecordError, match=message) as caught:
        load_dataset("voc_seg_train", root=str(tmp_path))
    assert "\n" not in str(caught.value)
    dataset = load_dataset("voc_seg_train", root=str(tmp_path), on_error="skip")
    assert dataset.image_ids == ["a1", "a2", "a3"]
    assert len(dataset.skipped) == 1


def test_a_listed_image_that_is_missing(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (tmp_path / "JPEGImages" / "a2.jpg").unlink()
    with pytest.raises(BadRecordError, match=r"a2\.jpg: missing"):
        load_voc("voc_seg_train", str(tmp_path))
    assert load_voc("voc_seg_train", str(tmp_path), on_error="skip").image_ids == ["a0", "a1", "a3"]


def test_a_segmentation_split_without_any_mask_is_an_error(tmp_path: Path) -> None:
    add_image(tmp_path, "a", annotation([]))
    add_list(tmp_path, "Segmentation", "train", ["a"])
    with pytest.raises(UserError, match="no image has a mask in SegmentationClass"):
        load_voc("voc_seg_train", str(tmp_path))


def test_aug_takes_the_larger_list_and_its_masks(tmp_path: Path) -> None:
    make_voc(tmp_path, count=2)
    with pytest.raises(UserError, match="SegmentationAug"):  # VOC's own train list must not pass for SBD's
        load_voc("voc_aug_train", str(tmp_path))
    add_image(tmp_path, "sbd", None, np.full((40, 60), 3), masks="SegmentationClassAug")
    add_list(tmp_path, "SegmentationAug", "train", ["a0", "sbd"])
    voc, sbd = load_voc("voc_aug_train", str(tmp_path)).records
    assert Path(voc.sem_seg_file).parent.name == "SegmentationClass"
    assert Path(sbd.sem_seg_file).parent.name == "SegmentationClassAug"


def test_rgb_masks_are_converted_by_the_palette(tmp_path: Path) -> None:
    make_voc(tmp_path, count=1)
    labels = np.random.default_rng(0).choice([0, 1, 7, 20, 255], (40, 60)).astype(np.uint8)
    Image.fromarray(voc_palette()[labels]).save(tmp_path / "SegmentationClass" / "a0.png")
    dataset = load_voc("voc_seg_train", str(tmp_path))
    np.testing.assert_array_equal(dataset.read_sem_seg(dataset.records[0]), labels)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((40, 60, 3), 77, np.uint8), r"colour \(77, 77, 77\), not in the palette"),
        (np.zeros((41, 60), np.uint8), "mask is 60×41, its image 60×40"),
        (np.full((40, 60), 21, np.uint8), "mask value 21, but there are 20 classes"),
    ],
)
def test_bad_masks(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    make_voc(tmp_path, count=1)
    Image.fromarray(mask).save(tmp_path / "SegmentationClass" / "a0.png")
    dataset = load_voc("voc_seg_train", str(tmp_path))
    with pytest.raises(BadRecordError, match=message):
        dataset.read_sem_seg(dataset.records[0])


def test_images_of_every_mode_become_rgb(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 6), dtype=np.uint8)
    for mode in ("L", "RGB", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.fromarray(grey).convert(mode).save(path)
        image = read_image(str(path))
        assert image.shape == (8, 6, 3)
        assert image.dtype == np.uint8
        if mode in ("L", "RGB", "RGBA"):
            np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, 2))


def test_exif_rotation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(str(tmp_path / "a.jpg")).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("content", "message"), [(b"no image at all", "not an image"), (None, "damaged image")]
)
def test_damaged_images(tmp_path: Path, content: bytes | None, message: str) -> None:
    make_voc(tmp_path, count=1)
    path = tmp_path / "JPEGImages" / "a0.jpg"
    path.write_bytes(content or path.read_bytes()[:900])
    with pytest.raises(BadRecordError, match=message):
        read_image(str(path))


def test_the_palette_is_voc_s() -> None:
    # the development kit's first colours, and void
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert [tuple(colour) for colour in voc_palette()[:5].tolist()] == expected
    assert tuple(voc_palette()[20].tolist()) == (0, 64, 128)
    assert tuple(voc_palette()[255].tolist()) == (224, 224, 192)


@needs_data
def test_real_voc() -> None:
    # the numbers are those of the data's own description
    dataset = load_voc("voc2012_seg_train", f"{REAL}/voc_mini/VOCdevkit")
    assert len(dataset) == 60
    assert sum(int((~record.difficult).sum()) for record in dataset.records) == 179
    assert len(load_voc("voc_seg_val", f"{REAL}/voc_mini/VOCdevkit/VOC2012")) == 110
    assert len(load_voc("voc_seg_train_vocmask", f"{REAL}/voc_pool_320")) == 384
    for record in dataset.records:
        image = read_image(record)
        mask = dataset.read_sem_seg(record, image.shape[:2])
        assert image.shape[:2] == record.size() == mask.shape
