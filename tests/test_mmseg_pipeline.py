"""Teachers, boxes and labels through MMSegmentation's own transforms.

The un-augmented image holds its own coordinates as colours, so that where a pixel comes from can be read off the
moved image.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg.utils import register_all_modules
from PIL import Image

import scenekd.engines.mmengine  # noqa: F401
from scenekd.data.soft import sample_soft
from scenekd.engines.mmengine_model import to_target
from scenekd.engines.mmengine_track import SUPPORTED, TRACK, start_track
from scenekd.errors import UserError
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


def _dataset(scenes, teacher, policy="fill_missing", **options):
    distill = {"SEGMENTATION": {"POLICY": policy, "TARGET": "logits", "FRACTION": 0.5}}
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "SceneKDLoadAnnotations"},
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
    return DATASETS.build(
        {
            "type": "SceneKDDataset",
            "names": ["voc_seg_train"],
            "root": str(scenes),
            "classes": SCENES,
            "pipeline": pipeline,
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
    with pytest.raises(UserError, match="TEACHER.SEGMENTATION.WEIGHT: no such key"):
        TRANSFORMS.build({"type": "SceneKDLoadTeacher", "teacher": {"SEGMENTATION": {"WEIGHT": "x"}}})
