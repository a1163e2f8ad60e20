"""Teachers, boxes and labels through MMSegmentation's own transforms.

The un-augmented image holds its own coordinates as colours, so that where a pixel comes from can be read off the
moved image.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmseg.datasets import PascalVOCDataset
from mmseg.registry import DATASETS, METRICS, TRANSFORMS
from mmseg.utils import register_all_modules
from PIL import Image

import scenekd.engines.mmengine  # noqa: F401
from scenekd.data.soft import sample_soft
from scenekd.engines.mmengine_model import to_target
from scenekd.engines.mmengine_track import SUPPORTED, TRACK, start_track
from scenekd.errors import BadRecordError, UserError
from scenekd.sample import SoftSegmentation

register_all_modules(init_default_scope=False)

HEIGHT, WIDTH, CLASSES = 120, 160, 4
BOX = (60, 30, 110, 70)
SCENES = ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")

CASES = {
    "smaller": [{"type": "Resize", "scale": (96, 72)}],
    "larger, another aspect": [{"type": "Resize", "scale": (400, 180)}],
    "kept ratio": [{"type": "Resize", "scale": (200, 130), "keep_ratio": True}],
    "area": [{"type": "Resize", "scale": (70, 50), "interpolation": "area"}],
    "bicubic": [{"type": "Resize", "scale": (300, 250), "interpolation": "bicubic"}],
    "RandomResize": [
        {"type": "RandomResize", "scale": (160, 120), "ratio_range": (0.5, 2.0), "keep_ratio": True}
    ],
    "RandomChoiceResize": [{"type": "RandomChoiceResize", "scales": [(100, 90), (150, 200), (220, 180)]}],
    "ResizeShortestEdge": [{"type": "ResizeShortestEdge", "scale": 90, "max_size": 110}],
    "ResizeToMultiple": [{"type": "ResizeToMultiple", "size_divisor": 32}],
    "RandomCrop": [{"type": "RandomCrop", "crop_size": (64, 80), "cat_max_ratio": 0.75}],
    "CenterCrop": [{"type": "CenterCrop", "crop_size": (90, 64)}],
    "horizontal": [{"type": "RandomFlip", "prob": 1.0}],
    "vertical": [{"type": "RandomFlip", "prob": 1.0, "direction": "vertical"}],
    "diagonal": [{"type": "RandomFlip", "prob": 1.0, "direction": "diagonal"}],
    "Pad": [{"type": "Pad", "size": (200, 170), "pad_val": {"img": 90, "seg": 255}}],
    "RandomRotate": [{"type": "RandomRotate", "prob": 1.0, "degree": 30.0}],
    "auto_bound": [{"type": "RandomRotate", "prob": 1.0, "degree": 45.0, "auto_bound": True}],
    "RandomRotFlip": [{"type": "RandomRotFlip", "rotate_prob": 0.0, "flip_prob": 1.0}],
    "crop, then pad over what was cut off": [
        {"type": "RandomCrop", "crop_size": (60, 60)},
        {"type": "Pad", "size": (100, 100), "pad_val": {"img": 0, "seg": 255}},
        {"type": "RandomCrop", "crop_size": (80, 80)},
    ],
    "all": [
        {"type": "RandomResize", "scale": (160, 120), "ratio_range": (0.6, 1.8), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (128, 128)},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "Pad", "size": (128, 128), "pad_val": {"img": 0, "seg": 255}},
        {"type": "RandomRotate", "prob": 0.7, "degree": 20.0},
        {"type": "Resize", "scale": (150, 150)},
    ],
}


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def _seed(seed):
    np.random.seed(seed)  # noqa: NPY002 - MMSegmentation draws from it


def _labels():
    """Big regions in different places, so that every move changes the map; class 3 fills BOX."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:50, :70] = 1
    labels[80:, 90:] = 2
    labels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 3
    return labels


def _start():
    x, y = (np.arange(WIDTH) + 0.5) / WIDTH, (np.arange(HEIGHT)[:, None] + 0.5) / HEIGHT
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = np.rint(20 + 200 * x), np.rint(20 + 200 * y), 255
    results = {
        "img": image,
        "img_shape": (HEIGHT, WIDTH),
        "ori_shape": (HEIGHT, WIDTH),
        "gt_seg_map": _labels(),
        "seg_fields": ["gt_seg_map"],
        "gt_bboxes": np.asarray([BOX], np.float32),
        "gt_bboxes_labels": np.asarray([2]),
    }
    start_track(results)
    return results


def _calm(mask, radius):
    """(H, W) bool: pixels whose neighbourhood is all of one value."""
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return cv2.erode(mask, kernel) == cv2.dilate(mask, kernel)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_teacher_follows_every_transform(case, seed):
    """The coordinates are those in the colours; the soft target's argmax is the warped label map; both show padding
    at the same place.

    Colours are rounded to 1/200 of the image at every step, 0.8 pixels, but evenly, so that their mean tells shifts of
    a quarter of a pixel. MMSegmentation moves labels by up to a pixel, as OpenCV's nearest pixel is the one to the
    left, hence a margin around the regions' borders.
    """
    _seed(seed)
    geometry = TRANSFORMS.build({"type": "SceneKDGeometry", "transforms": CASES[case]})
    results = geometry(_start())
    labels, image = results["gt_seg_map"], results["img"].astype(float)
    field = results[TRACK].coordinates()
    assert field.shape[:2] == labels.shape == image.shape[:2] == results["img_shape"]
    soft = SoftSegmentation(np.eye(CLASSES, dtype=np.float32)[_labels()].transpose(2, 0, 1), "probabilities")
    values, valid = sample_soft(soft, field)

    seen = valid & (image[..., 2] == 255)  # less where padding is mixed in
    assert seen.sum() > 500
    for axis in (0, 1):
        error = (image[..., axis][seen] - 20) / 200 - field[..., axis][seen]
        assert np.abs(error).max() < 0.01 and abs(error.mean()) < 1.5e-3
    calm = _calm(labels, 3)
    assert calm.mean() > 0.3
    np.testing.assert_array_equal(valid[calm], labels[calm] != 255)
    calm &= valid
    np.testing.assert_array_equal(values.argmax(0)[calm], labels[calm])


@pytest.mark.parametrize("case", [c for c in CASES if "otate" not in c and c not in ("auto_bound", "all")])
def test_boxes_follow(case):
    """The box still surrounds what it surrounded, to a pixel of the result, or it is gone with its centre."""
    _seed(5)
    results = TRANSFORMS.build({"type": "SceneKDGeometry", "transforms": CASES[case]})(_start())
    boxes, (rows, columns) = results["gt_bboxes"], np.nonzero(results["gt_seg_map"] == 3)
    assert len(boxes) == len(results["gt_bboxes_labels"])
    if not len(boxes):
        assert "rop" in case
        return
    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(boxes[0], around, atol=max(1.5, results["img"].shape[1] / WIDTH))


def test_rotated_box_surrounds_the_rotated_object():
    """A box turned by 90° is exact: RandomRotate turns clockwise about the centre of the pixel grid.

    (x, y) → (cx − (y − cy), cy + (x − cx)) with the centre (80, 60) between pixels: (60, 30, 110, 70) →
    x from 80 − (70 − 60) to 80 − (30 − 60), y from 60 + (60 − 80) to 60 + (110 − 80).
    """
    transforms = [{"type": "RandomRotate", "prob": 1.0, "degree": (90.0, 90.0)}]
    results = TRANSFORMS.build({"type": "SceneKDGeometry", "transforms": transforms})(_start())
    np.testing.assert_allclose(results["gt_bboxes"], [[70, 40, 110, 90]], atol=0.05)


def test_random_numbers_go_on_as_without_us():
    """The transform and its second run see the same numbers; the next draw differs."""
    _seed(3)
    geometry = TRANSFORMS.build(
        {"type": "SceneKDGeometry", "transforms": [{"type": "RandomCrop", "crop_size": (40, 40)}]}
    )
    fields = [geometry(_start())[TRACK].coordinates()[0, 0] for _ in range(3)]
    assert not np.allclose(fields[0], fields[1]) or not np.allclose(fields[1], fields[2])


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS.module_dict) - set(SUPPORTED)))
def test_other_transforms_are_refused(name):
    """What is not on the list is refused when the pipeline is built, in a line that names it."""
    with pytest.raises(UserError, match=f"cannot follow {name}"):
        TRANSFORMS.build({"type": "SceneKDGeometry", "transforms": [{"type": name}]})


def test_what_is_no_affine_map_is_refused():
    """Nearest interpolation of the image, and Pillow's own resize."""
    nearest = [{"type": "Resize", "scale": (333, 222), "interpolation": "nearest"}]
    geometry = TRANSFORMS.build({"type": "SceneKDGeometry", "transforms": nearest})
    with pytest.raises(UserError, match="Resize moved the pixels by no affine map"):
        geometry(_start())
    with pytest.raises(UserError, match="backend='pillow'"):
        TRANSFORMS.build(
            {"type": "SceneKDGeometry", "transforms": [{"type": "Resize", "scale": 9, "backend": "pillow"}]}
        )


@pytest.mark.parametrize(
    "outside",
    [
        {"type": "RandomFlip", "prob": 1.0},
        {"type": "RandomCrop", "crop_size": (100, 100)},
        {"type": "Pad", "size": (300, 300)},
        {"type": "Resize", "scale": (80, 60)},
        {"type": "RandomRotate", "prob": 1.0, "degree": 10.0},
    ],
    ids=lambda config: config["type"],
)
def test_moves_outside_geometry_are_found(outside):
    """A transform that nothing could follow is told at the end of the pipeline; colours may change anywhere."""
    with pytest.raises(UserError, match="moved outside SceneKDGeometry"):
        Compose([TRANSFORMS.build(outside), TRANSFORMS.build({"type": "SceneKDPackInputs"})])(_start())
    Compose([TRANSFORMS.build({"type": t}) for t in ("PhotoMetricDistortion", "SceneKDPackInputs")])(_start())


# The whole pipeline -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(scenes, tmp_path_factory):
    """Saved outputs that are the true masks (void as background), on every second row and column."""
    folder = tmp_path_factory.mktemp("teacher")
    for file in (scenes / "SegmentationClass").glob("*.png"):
        mask = np.array(Image.open(file))
        mask[mask == 255] = 0
        classes = np.stack([mask, (mask + 1) % 11])[:, ::2, ::2]
        logits = np.stack([np.full(mask.shape, 8.0), np.zeros(mask.shape)])[:, ::2, ::2].astype(np.float16)
        total = np.log(np.exp(logits.astype(np.float32)).sum(0) + 9 * np.exp(-2.0))
        np.savez_compressed(
            folder / f"{file.stem}.npz", classes=classes, logits=logits, logsumexp=total.astype(np.float32)
        )
    return folder


def _pipeline(teacher, policy="fill_missing", **options):
    distill = {"SEGMENTATION": {"POLICY": policy, "TARGET": "logits", "FRACTION": 0.5}}
    return [
        {"type": "LoadImageFromFile"},
        {"type": "SceneKDLoadAnnotations", **options},
        {
            "type": "SceneKDLoadTeacher",
            "teacher": {"SEGMENTATION": {"TYPE": "folder", "WEIGHTS": str(teacher)}},
            "distill": distill,
            "classes": SCENES,
        },
        {
            "type": "SceneKDGeometry",
            "transforms": [
                {"type": "RandomResize", "scale": (128, 128), "ratio_range": (0.8, 1.5), "keep_ratio": True},
                {"type": "RandomCrop", "crop_size": (96, 96)},
                {"type": "RandomFlip", "prob": 0.5},
                {"type": "Pad", "size": (96, 96)},
            ],
        },
        {"type": "PhotoMetricDistortion"},
        {"type": "SceneKDPackInputs"},
    ]


def _dataset(scenes, teacher, policy="fill_missing", **options):
    return DATASETS.build(
        {
            "type": "SceneKDDataset",
            "names": ["voc_seg_train"],
            "root": str(scenes),
            "classes": SCENES,
            "pipeline": _pipeline(teacher, policy),
            **options,
        }
    )


def test_missing_masks_are_filled_by_the_teacher(scenes, teacher):
    """Images without a mask stay, marked as such, and get the teacher's; the others keep their own."""
    _seed(0)
    dataset = _dataset(scenes, teacher, keep_sem_seg=0.5, keep_boxes=0.75)
    truth = {record.image_id: record for record in dataset.dataset.records}
    assert len(dataset) == 12
    counts = {"mask": 0, "soft": 0, "boxes": 0}
    for i in range(len(dataset)):
        target = to_target(dataset[i]["data_samples"])
        record = truth[target.image_id]
        counts["mask"] += target.has_sem_seg
        counts["soft"] += target.soft_seg is not None
        counts["boxes"] += target.has_boxes
        assert target.has_sem_seg == record.has_sem_seg and target.has_boxes == record.has_boxes
        assert (target.soft_seg is None) == record.has_sem_seg
        assert target.weights.segmentation_gt == float(record.has_sem_seg)
        assert target.weights.segmentation_teacher == float(not record.has_sem_seg)
        assert (target.height, target.width) == record.size()
    assert counts == {"mask": 6, "soft": 6, "boxes": 9}


def test_teacher_and_mask_agree_after_the_pipeline(scenes, teacher):
    """With both sources, the teacher that tells the truth tells it of the same pixels."""
    _seed(1)
    dataset = _dataset(scenes, teacher, policy="combined")
    for i in range(len(dataset)):
        target = to_target(dataset[i]["data_samples"])
        calm = _calm(target.sem_seg.numpy().astype(np.uint8), 4) & (target.sem_seg.numpy() != 255)
        assert calm.any() and target.soft_valid.numpy()[calm].all()
        same = target.soft_seg.argmax(0).numpy()[calm] == target.sem_seg.numpy()[calm]
        assert same.mean() > 0.998  # the teacher saw every second pixel
        assert (target.weights.segmentation_gt, target.weights.segmentation_teacher) == (0.5, 0.5)


def test_masks_of_boxes_follow_the_pipeline(scenes):
    """Where a box's mask is, the labels tell its class; images that lost their masks have none."""
    _seed(2)
    pipeline = _pipeline(None, with_masks=True)
    del pipeline[2]  # no teacher
    dataset = _dataset(scenes, None, keep_instance_masks=0.5, pipeline=pipeline)
    owned = 0
    for i in range(len(dataset)):
        target = to_target(dataset[i]["data_samples"])
        owned += target.has_instance_masks
        assert target.weights["instance_segmentation"] == (float(target.has_instance_masks), 0.0)
        assert target.masks.shape == (len(target.boxes), 96, 96)
        labels = target.sem_seg.numpy()
        if not target.has_instance_masks:
            assert (target.masks == 255).all()
            continue
        calm = _calm(labels.astype(np.uint8), 2)
        for mask, label in zip(target.masks.numpy(), target.labels.tolist()):
            assert (labels[(mask == 1) & calm] == label + 1).all()
            assert (mask[labels == 255] == 255).all()
    assert owned == 6


def test_fixed_subset_is_that_of_our_own_loader(scenes, teacher):
    """The same ids take the teacher as in SceneKD's own mapper."""
    from scenekd.data.subset import stable_subset

    dataset = _dataset(scenes, teacher, policy="fixed_subset")
    targets = [to_target(dataset[i]["data_samples"]) for i in range(len(dataset))]
    chosen = {t.image_id for t in targets if t.weights.segmentation_teacher}
    assert chosen == stable_subset([t.image_id for t in targets], 0.5, 0, salt="teacher")
    assert len(chosen) == 6


def test_teacher_options_that_cannot_be_had(scenes, teacher):
    """per_batch needs our loader; an unknown key is named."""
    with pytest.raises(UserError, match="per_batch needs SceneKD's own loader"):
        _dataset(scenes, teacher, policy="per_batch")
    with pytest.raises(
        UserError, match=r"DISTILL.SEGMENTATION.TOP_K is the loss's; .*SoftLabelCrossEntropy\(top_k"
    ):
        TRANSFORMS.build(
            {"type": "SceneKDLoadTeacher", "teacher": {}, "distill": {"SEGMENTATION": {"TOP_K": 2}}}
        )
    with pytest.raises(UserError, match="TEACHER.SEGMENTATION.WEIGHT: no such key"):
        TRANSFORMS.build({"type": "SceneKDLoadTeacher", "teacher": {"SEGMENTATION": {"WEIGHT": "x"}}})


# MMSegmentation's own data sets -----------------------------------------------------------------------------


class _WithInstances(PascalVOCDataset):
    """As a user adds boxes to one: ``instances`` in the entries."""

    records = ()

    def load_data_list(self):
        entries = super().load_data_list()
        for entry, record in zip(entries, self.records):
            entry["instances"] = [
                {"bbox": box.tolist(), "bbox_label": int(label), "ignore_flag": int(difficult)}
                for box, label, difficult in zip(record.boxes, record.labels, record.difficult)
            ]
        return entries


def _stock(root, pipeline, kind=PascalVOCDataset):
    return kind(
        ann_file="ImageSets/Segmentation/train.txt",
        data_root=str(root),
        data_prefix={"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"},
        pipeline=pipeline,
    )


def test_stock_dataset_gives_what_ours_gives(scenes, teacher):
    """Image, mask, boxes, soft targets and flags of PascalVOCDataset, moved by the same random numbers, are those of a
    SceneKDDataset."""
    ours = _dataset(scenes, teacher, policy="combined")
    _WithInstances.records = ours.dataset.records
    stock = _stock(scenes, _pipeline(teacher, "combined"), _WithInstances)
    assert len(stock) == len(ours) == 12
    for i in range(len(ours)):
        samples = []
        for dataset in (ours, stock):
            _seed(i)
            samples.append(dataset[i])
        (wanted, got), images = [s["data_samples"] for s in samples], [s["inputs"] for s in samples]
        assert torch.equal(*images)
        for name in ("gt_sem_seg", "gt_soft_seg", "gt_soft_valid", "gt_shown"):
            assert torch.equal(getattr(got, name).data, getattr(wanted, name).data), name
        assert torch.equal(got.gt_shown.data, got.gt_soft_valid.data)
        for name in ("bboxes", "labels", "scores", "from_teacher", "difficult"):
            assert torch.equal(got.gt_instances[name], wanted.gt_instances[name]), name
        for name in (
            "image_id",
            "has_boxes",
            "has_sem_seg",
            "scenekd_weights",
            "scenekd_soft_form",
            "img_shape",
        ):
            assert got.metainfo[name] == wanted.metainfo[name], name
        assert to_target(got).image_id == ours.dataset.records[i].image_id


def test_stock_dataset_without_some_masks(scenes, teacher, tmp_path):
    """A missing mask file is an error, or, with allow_missing, no mask: the teacher fills it in. Without ``instances``
    there are no boxes to learn from, which is not the same as an image without objects."""
    for name in ("JPEGImages", "ImageSets"):
        (tmp_path / name).symlink_to(scenes / name)
    (tmp_path / "SegmentationClass").mkdir()
    ids = (scenes / "ImageSets/Segmentation/train.txt").read_text().split()
    for image_id in ids[:5]:
        (tmp_path / f"SegmentationClass/{image_id}.png").symlink_to(
            scenes / f"SegmentationClass/{image_id}.png"
        )
    _seed(0)
    dataset = _stock(tmp_path, _pipeline(teacher, allow_missing=True))
    for i in range(len(ids)):
        sample = dataset[i]["data_samples"]
        assert sample.metainfo["has_sem_seg"] == ("gt_soft_seg" not in sample) == (i < 5)
        assert not sample.metainfo["has_boxes"] and len(sample.gt_instances) == 0
        assert (sample.gt_sem_seg.data == 255).all() == (i >= 5)
    with pytest.raises(BadRecordError, match=f"{ids[5]}.png: no such mask"):
        _stock(tmp_path, _pipeline(teacher))[5]


def test_labels_that_an_entry_carries():
    """gt_bboxes with labels; has_sem_seg False and no seg_map_path; lists of different lengths are refused."""
    load = TRANSFORMS.build({"type": "SceneKDLoadAnnotations"})
    entry = {"img": np.zeros((8, 9, 3), np.uint8), "ori_shape": (8, 9), "img_path": "a.jpg", "seg_fields": []}
    boxes = {"gt_bboxes": [[1, 2, 5, 6], [0, 0, 3, 3]], "gt_bboxes_labels": [4, 2]}
    results = load({**entry, **boxes, "seg_map_path": None})
    assert results["has_boxes"] and not results["has_sem_seg"]
    np.testing.assert_array_equal(results["gt_bboxes"], np.float32(boxes["gt_bboxes"]))
    assert results["gt_bboxes_labels"].tolist() == [4, 2] and results["gt_bboxes_scores"].tolist() == [1, 1]
    assert not results["gt_bboxes_difficult"].any() and (results["gt_seg_map"] == 255).all()
    results = load(
        {**entry, "seg_fields": [], "seg_map_path": "a.png", "has_sem_seg": False, "instances": []}
    )
    assert results["has_boxes"] and not results["has_sem_seg"] and results["gt_bboxes"].shape == (0, 4)
    with pytest.raises(UserError, match=r"a\.jpg: 2 boxes, 1 labels"):
        load({**entry, "seg_fields": [], **boxes, "gt_bboxes_labels": [4]})


def test_masks_load_as_mmsegmentation_loads_them(scenes):
    """Classes renamed by a data set's metainfo, and reduce_zero_label, as its LoadAnnotations does them."""
    file = sorted((scenes / "SegmentationClass").glob("*.png"))[0]
    size = np.array(Image.open(file)).shape
    for extra in ({"label_map": {1: 3, 2: 255}, "reduce_zero_label": False}, {"reduce_zero_label": True}):
        maps = []
        for name in ("SceneKDLoadAnnotations", "LoadAnnotations"):
            entry = {"img": np.zeros((*size, 3), np.uint8), "ori_shape": size, "seg_map_path": str(file)}
            maps.append(TRANSFORMS.build({"type": name})({**entry, "seg_fields": [], **extra})["gt_seg_map"])
        np.testing.assert_array_equal(*maps)
        assert maps[0].max() > 0


def test_metric_of_other_images_is_refused(scenes):
    """The evaluator's data set must hold the loader's images; one line names the image."""
    options = {"names": ("voc_seg_val",), "root": str(scenes), "classes": SCENES, "tasks": ("sem_seg",)}
    metric = METRICS.build({"type": "SceneKDMetric", "evaluator": options})
    with pytest.raises(UserError, match="voc_seg_val has no image 'other'"):
        metric.process({}, [{"img_path": "a/other.jpg"}])
